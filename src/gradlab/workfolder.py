"""Names in a run's work folder, `work/<sweep>/<run>/`: what stands there until it is a result. No torch."""

from __future__ import annotations

import re
from pathlib import Path

LOG = "log"
"""Folder of the files that grow with each step (`runlog`)."""
FINISHED = "finished"
"""Folder of a run that has ended, for its job to publish (`staging`)."""
EVALUATED = "evaluated"
"""Folder of an evaluation that a pack made, for the run's job to fetch (`staged_evaluation`)."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors")


def checkpoint_file(work: Path, step: int) -> Path:
    """The state before `step`."""
    return work / f"checkpoint-{step}.safetensors"


def checkpoint_files(work: Path) -> dict[int, Path]:
    """All of a run's, by step."""
    return {int(m[1]): path for path in work.glob("checkpoint-*") if (m := _CHECKPOINT.fullmatch(path.name))}
