"""What a call of Snakemake would do with a sweep: which runs train together, what they take, how long. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from gradlab.config import BaseConfig
from gradlab.gpu.slots import Capacity
from gradlab.launch.estimate import History, Job, makespan
from gradlab.launch.progress import Folders, Progress
from gradlab.packs.size import Sizing, measured, plan_sweep
from gradlab.sweep import Run, Sweep, load_base
from gradlab.sweep_file import Pack

TO_TRAIN = ("to do", "running", "interrupted", "failed")


@dataclass(frozen=True)
class Planned:
    """pack     runs in its process; None: it is trained
    slots    GPU slots of that process
    seconds  of that process, from where the run stands; None: unknown, or it is trained
    """

    run: Run
    progress: Progress
    pack: int | None
    slots: int
    seconds: float | None


@dataclass(frozen=True)
class Forecast:
    """runs     in the order of the sweep
    seconds  until all are trained and evaluated; of what is known
    unknown  runs that are left to train, and nothing tells how long
    evaluated  whether `seconds` holds the evaluations
    """

    runs: list[Planned]
    seconds: float
    unknown: int
    evaluated: bool


def forecast(
    sweep: Sweep,
    pack: Pack,
    now: dict[str, Progress],
    history: History,
    capacity: Capacity,
    cores: int,
    folders: Folders,
    bases: str = "config/bases",
) -> Forecast:
    """What a call with these packs, slots and cores would do. Raises ValueError for a run that never fits."""
    made_here = {name: load_base(name, bases) for name in {run.base for run in sweep.runs.values()} if name}

    def base_of(run: Run) -> BaseConfig | None:
        return made_here[run.base] if run.base else None

    results, work = folders.results / sweep.name, folders.work / sweep.name
    size = Sizing(pack, cores, capacity, measured(results / "calibration.json", capacity.gpus), base_of)
    packs = plan_sweep(sweep.runs.values(), size, results, work)
    together = {run.id: members for members in packs.values() for run in members}

    planned, training, evaluating, unknown, evaluated = [], [], [], 0, True
    for run in sweep.runs.values():
        state, members = now[run.id].state, together.get(run.id, [run])
        slots = capacity.ask(f"{sweep.name}/{run.id}", [member.config for member in members], base_of(run))
        seconds = None
        if state in TO_TRAIN:
            seconds = history.training([member.config for member in members], now[run.id].step)
            unknown += seconds is None
            if run is members[0]:
                training.append(Job(seconds, run.config.placement.threads, slots))
        if state not in ("done", "diverged"):
            evaluation = history.evaluation(run.config)
            evaluated = evaluated and evaluation is not None
            evaluating.append(Job(evaluation, run.config.placement.threads, slots))
        planned.append(Planned(run, now[run.id], len(members) if state in TO_TRAIN else None, slots, seconds))
    return Forecast(planned, makespan([*training, *evaluating], cores, capacity.total), unknown, evaluated)
