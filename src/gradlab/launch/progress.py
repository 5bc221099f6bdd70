"""Where each run of a sweep stands, read from its files while jobs write them. No torch, and no lock is touched."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from gradlab.outcome import read_outcome
from gradlab.sweep import Run, Sweep
from gradlab.workfolder import FINISHED, LOG, checkpoint_files

State = Literal["to do", "running", "interrupted", "failed", "staged", "trained", "diverged", "done"]
ENDED: tuple[State, ...] = ("diverged", "done")
RECENT = 20  # steps whose mean is the speed now
FRESH = 120.0  # seconds since its last step after which a job on another machine is taken for dead
TAIL = 1 << 16  # bytes of a growing file that are read


@dataclass(frozen=True)
class Progress:
    """state  to do; running; interrupted (has a checkpoint, or was stopped); failed (its log ends in an error);
           staged (trained in a pack, not yet in results); trained (not yet
           evaluated); diverged; done
    step   steps done, of `steps`
    step_seconds  mean of the latest steps of this attempt; None before the second
    reward_mean   of the latest step; None before the first
    note   why it diverged or failed
    """

    state: State
    step: int
    steps: int
    step_seconds: float | None = None
    reward_mean: float | None = None
    note: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Of training, at the speed now."""
        return None if self.step_seconds is None else (self.steps - self.step) * self.step_seconds


@dataclass(frozen=True)
class Folders:
    """Where a call keeps its files."""

    results: Path = Path("results")
    work: Path = Path("work")
    logs: Path = Path("logs")


def progress(sweep: Sweep, folders: Folders, known: dict[str, Progress] | None = None) -> dict[str, Progress]:
    """Of every run. `known`: an earlier answer, kept for runs that have ended."""
    known = known or {}
    return {
        run.id: known[run.id]
        if run.id in known and known[run.id].state in ENDED
        else _progress(sweep.name, run, folders)
        for run in sweep.runs.values()
    }


def _progress(sweep: str, run: Run, folders: Folders) -> Progress:
    steps = run.config.steps
    run_dir, work = folders.results / sweep / "runs" / run.id, folders.work / sweep / run.id
    if all((run_dir / name).is_file() for name in ("config.json", "outcome.json")):
        outcome = read_outcome(run_dir)
        evaluated: State = "done" if (run_dir / "eval.json").is_file() else "trained"
        return Progress(
            evaluated if outcome.finished else "diverged", outcome.steps_done, steps, note=outcome.reason or ""
        )
    if (work / FINISHED).is_dir():
        return Progress("staged", steps, steps)
    saved = max(checkpoint_files(work), default=0)
    rows, age = _last_rows(work / LOG / "metrics.jsonl")
    if _held(work, fresh=bool(rows) and age < FRESH):
        seconds = [row["seconds/step"] for row in rows[-RECENT:]]
        return Progress(
            "running",
            rows[-1]["step"] + 1 if rows else saved,
            steps,
            sum(seconds) / len(seconds) if len(seconds) > 1 else None,
            rows[-1]["reward_mean"] if rows else None,
        )
    if error := last_error(folders.logs / sweep / "train" / f"{run.id}.log"):
        return Progress("failed", saved, steps, note=error)
    return Progress("interrupted" if saved or rows else "to do", saved, steps)


def last_error(log: Path) -> str:
    """What the log of a job ends with, if that is an error; Snakemake removes the log when the job starts again."""
    lines = [line.strip() for line in _tail(log).text.splitlines() if line.strip()]
    begun = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if begun:
        return " ".join(lines[begun[-1] :]).removeprefix("error: ")
    return lines[-1] if lines and re.match(r"[\w.]*(Error|Exception)\b", lines[-1]) else ""


def _held(work: Path, fresh: bool) -> bool:
    """Whether the process that noted itself in the lock lives. One of another machine: whether it moves, `fresh`."""
    lock = work / ".lock"
    if not lock.is_file():
        return False
    pid, _, machine = lock.read_text(encoding="utf-8").partition(" on ")
    if machine != platform.node() or not pid.isdecimal():
        return fresh
    try:
        process = psutil.Process(int(pid))
        since = process.create_time()
        return process.status() != psutil.STATUS_ZOMBIE and since <= lock.stat().st_mtime + 1  # else the pid is reused
    except psutil.NoSuchProcess:
        return False


def _last_rows(path: Path) -> tuple[list[dict[str, Any]], float]:
    """The latest whole rows of a file that may be growing, and seconds since it grew; none where there is no file."""
    tail = _tail(path)
    lines = tail.text.split("\n")[:-1]  # what follows the last newline is being written
    return [json.loads(line) for line in lines[tail.cut :]], time.time() - tail.modified


class _Tail(NamedTuple):
    """cut  whether something precedes `text`, so that its first line may not be whole"""

    text: str
    cut: bool
    modified: float


def _tail(path: Path) -> _Tail:
    """The end of a file that may be growing. One that is not there, or goes now, is empty."""
    try:
        with open(path, "rb") as handle:
            status = os.fstat(handle.fileno())
            handle.seek(max(0, status.st_size - TAIL))
            text = handle.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return _Tail("", False, 0.0)
    return _Tail(text, status.st_size > TAIL, status.st_mtime)
