"""How a run ended, and whether its folder can be read by this version. No torch.

A run that diverges is a result: its folder is whole and says why. A folder that another version wrote is refused by
name, never misread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gradlab import __version__
from gradlab.config import Frozen, RunConfig
from gradlab.explain import validate
from gradlab.store import read_json, write_json, write_jsonl


class RunOutcome(Frozen):
    """`outcome.json`. A run that diverged has `steps_done` rows in metrics.jsonl, fewer than `steps`, and a reason."""

    status: Literal["finished", "diverged"]
    steps_done: int = Field(ge=0)
    steps: int = Field(ge=1)
    reason: str | None = None

    @property
    def finished(self) -> bool:
        return self.status == "finished"


def read_outcome(run_dir: str | Path) -> RunOutcome:
    """Raises ValueError naming file, version and mend when there is none, or it says what cannot be."""
    path = Path(run_dir) / "outcome.json"
    if not path.exists():
        raise ValueError(
            f"run {path.parent.name}: expected the file {path}, which gradlab {__version__} writes for every run; "
            f"found none: the folder is of an older version, or of a run that has not ended. {_mend(path.parent)}"
        )
    found = _read(RunOutcome, path)
    wrong = found.steps_done != found.steps if found.finished else not found.reason or found.steps_done >= found.steps
    if wrong:
        raise ValueError(
            f"run {path.parent.name}: {path}: expected all steps of a finished run, or fewer and a reason; found "
            f"{found.status} at {found.steps_done} of {found.steps} steps, reason {found.reason!r}. "
            f"{_mend(path.parent)}"
        )
    return found


def read_config(run_dir: str | Path) -> RunConfig:
    """The run's `config.json`; keys added since it was written have their defaults.

    Raises ValueError naming file, key and mend when this version does not know a key, or its value.
    """
    return _read(RunConfig, Path(run_dir) / "config.json")


def write_failed_evaluation(run_dir: str | Path, outcome: RunOutcome) -> None:
    """`eval.json` and `eval_samples.jsonl` of a run that diverged: the reason, and no completion."""
    write_jsonl(Path(run_dir) / "eval_samples.jsonl", [])
    write_json(Path(run_dir) / "eval.json", {"failed": outcome.reason})


def _read(model: Any, path: Path) -> Any:
    try:
        return validate(model, read_json(path))
    except FileNotFoundError:
        raise ValueError(
            f"run {path.parent.name}: expected the file {path}; found none. {_mend(path.parent)}"
        ) from None
    except ValueError as error:
        what = str(error).removeprefix(f"{path}: ")
        raise ValueError(
            f"run {path.parent.name}: {path}: expected a file of gradlab {__version__}; found another's: {what} "
            f"{_mend(path.parent)}"
        ) from None


def _mend(run_dir: Path) -> str:
    return (
        f"Make the run again: `snakemake --cores all --force -- {run_dir / 'outcome.json'}`, or remove the folder "
        "and make the sweep again."
    )
