"""How long runs will take, from runs that were like them. No torch. What no run tells is None, never a guess.

A step's time is that of earlier runs with the same shape (`planner.shared`), trained with as many others, on the same
kind of device; start-up and evaluation come from Snakemake's benchmark files of the same runs. Left out: the base
model, aggregation and report, and that jobs which run at the same time slow each other down.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from gradlab.config import RunConfig
from gradlab.packs.planner import shared
from gradlab.store import read_json, read_jsonl

NEWEST = 300  # run folders that are read


@dataclass(frozen=True)
class Job:
    """One training process: of one run, or of a pack. `seconds`: None where unknown."""

    seconds: float | None
    threads: int
    slots: int


@dataclass(frozen=True)
class History:
    """Seconds of a step by (shape, runs in the process); of start-up by shape; of an evaluation by its key."""

    steps: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    starts: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    evaluations: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))

    def training(self, configs: Sequence[RunConfig], from_step: int = 0) -> float | None:
        """Seconds of the process that trains these runs together from a step on."""
        found = self.steps.get((_shape(configs[0]), len(configs)))
        if not found:
            return None
        start = self.starts.get(_shape(configs[0]))
        return median(found) * (configs[0].steps - from_step) + (median(start) if start else 0.0)

    def evaluation(self, config: RunConfig) -> float | None:
        found = self.evaluations.get(_evaluated(config))
        return median(found) if found else None


def read_history(results: Path, logs: Path, gpu: bool) -> History:
    """What the newest finished runs of all sweeps tell. `gpu`: of those on one, else of those on the CPU."""
    history = History()
    finished = sorted(results.glob("*/runs/*/outcome.json"), key=lambda path: -path.stat().st_mtime)
    for path in finished[:NEWEST]:
        _add(history, path.parent, logs, gpu)
    return history


def makespan(jobs: Iterable[Job], cores: int, slots: int | None) -> float:
    """Seconds until all have ended, when each starts in turn as soon as cores and slots are free."""
    free_cores, free_slots = float(cores), float("inf") if slots is None else float(slots)
    now, end = 0.0, 0.0
    running: list[tuple[float, float, float]] = []
    for job in jobs:
        threads, taken = min(job.threads, cores), job.slots if slots is None else min(job.slots, slots)
        while threads > free_cores or taken > free_slots:
            now, ended, freed = heapq.heappop(running)
            free_cores, free_slots = free_cores + ended, free_slots + freed
        free_cores, free_slots = free_cores - threads, free_slots - taken
        heapq.heappush(running, (now + (job.seconds or 0.0), threads, taken))
        end = max(end, now + (job.seconds or 0.0))
    return end


def _add(history: History, run_dir: Path, logs: Path, gpu: bool) -> None:
    try:
        config = RunConfig.model_validate(read_json(run_dir / "config.json"))
        provenance = read_json(run_dir / "provenance.json")
        seconds = [row["seconds/step"] for row in read_jsonl(run_dir / "metrics.jsonl")]
    except (ValueError, FileNotFoundError):  # of another version, or being written: it tells nothing
        return
    if (provenance.get("device", "cpu") != "cpu") != gpu:
        return
    sizes = {len(part["runs"]) for part in provenance.get("pack") or [{"runs": [run_dir.name]}]}
    if len(sizes) == 1:
        history.steps[_shape(config), sizes.pop()].append(sum(seconds) / len(seconds))
    sweep, run = run_dir.parts[-3], run_dir.name
    whole = _benchmark(logs / sweep / "train" / f"{run}.jsonl")
    if whole is not None and not provenance.get("pack") and whole > sum(seconds):  # less: only its end, after a stop
        history.starts[_shape(config)].append(whole - sum(seconds))
    if (evaluation := _benchmark(logs / sweep / "eval" / f"{run}.jsonl")) is not None:
        history.evaluations[_evaluated(config)].append(evaluation)


def _benchmark(path: Path) -> float | None:
    """Wall-clock seconds of the job's last repetition, as Snakemake's benchmark directive writes them."""
    return float(read_jsonl(path)[-1]["s"]) if path.is_file() else None


def _shape(config: RunConfig) -> Hashable:
    """Of a step, so without the number of steps."""
    return repr({key: value for key, value in shared(config).items() if key != "steps"}) + config.weighting.name


def _evaluated(config: RunConfig) -> Hashable:
    return repr((config.model, config.adapter, config.data.heldout, config.rollout.max_new_tokens, config.evaluation))
