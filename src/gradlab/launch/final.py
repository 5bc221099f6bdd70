"""What a sweep came to, run by run, read from the runs' own files: they are there when its tables are not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gradlab.aggregate.files import run_files
from gradlab.aggregate.rows import BUILDERS
from gradlab.launch.progress import Progress
from gradlab.sweep import Run, Sweep


@dataclass(frozen=True)
class Final:
    """reward   mean over the last tenth of the steps, as in runs.parquet; None unless the run finished
    rewards  the same of each objective; None where it did not apply
    heldout  mean reward of each objective on held-out prompts; None where there is none, empty until evaluated
    """

    run: Run
    progress: Progress
    reward: float | None
    rewards: dict[str, float | None]
    heldout: dict[str, float | None]


def finals(sweep: Sweep, now: dict[str, Progress], results: Path) -> list[Final]:
    """In the order of the sweep. Raises ValueError naming run and file where one can not be read."""
    return [_final(run, now[run.id], results / sweep.name) for run in sweep.runs.values()]


def _final(run: Run, progress: Progress, folder: Path) -> Final:
    if progress.state not in ("trained", "done"):
        return Final(run, progress, None, {}, {})
    files = run_files(folder, run.id)
    row = next(iter(BUILDERS["runs"](files)))
    evaluation = files.evaluation if progress.state == "done" else None
    return Final(
        run,
        progress,
        row["reward_mean"],
        {label: row[f"reward_mean/{label}"] for label in files.objectives},
        {label: _mean(found["policy"]) for label, found in evaluation["objectives"].items()} if evaluation else {},
    )


def _mean(estimate: dict[str, float] | None) -> float | None:
    return None if estimate is None else estimate["mean"]
