"""Tables for people: what a sweep will do, does and did. On a terminal as wide as it is, elsewhere as plain text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gradlab.launch.final import Final
from gradlab.launch.forecast import Forecast
from gradlab.launch.progress import Progress, State
from gradlab.sweep import Run, Sweep

STYLE = {
    "done": "green",
    "failed": "red",
    "diverged": "red",
    "running": "cyan",
    "interrupted": "yellow",
    "to do": "dim",
}
PLAIN_WIDTH = 400  # columns of a file or a pipe: rows are never cut


def console() -> Console:
    """Standard output; no colour and no cut rows where it is not a terminal."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH, no_color=True, highlight=False)


def duration(seconds: float) -> str:
    """Two units at most: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{max(1, math.ceil(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    days, rest = divmod(hours, 24)
    return f"{days} d {rest} h" if days > 1 else f"{hours} h {minutes} min"


def plan_table(sweep: Sweep, forecast: Forecast) -> Table:
    """The planned runs: what varies, where each stands, what its process takes."""
    varies = _varying([planned.run for planned in forecast.runs])
    table = _table([*_short(varies), "run", "state", "slots", "pack", "time"], right=("slots", "pack", "time"))
    for planned in forecast.runs:
        time = "" if planned.pack is None else "unknown" if planned.seconds is None else duration(planned.seconds)
        table.add_row(
            *_values(planned.run, varies),
            planned.run.id,
            _state(planned.progress),
            str(planned.slots),
            "" if planned.pack is None else str(planned.pack),
            time,
        )
    return table


def plan_lines(forecast: Forecast, cores: int, slots: int | None) -> str:
    """The total under the table."""
    counts = Counter(planned.progress.state for planned in forecast.runs)
    left = [planned for planned in forecast.runs if planned.pack is not None]
    lines = [f"{len(forecast.runs)} runs: " + ", ".join(f"{n} {state}" for state, n in counts.items())]
    where = f"{cores} cores" + (f" and {slots} GPU slots" if slots is not None else "")
    if left and forecast.unknown == len(left):
        lines.append(f"estimated time on {where}: unknown; no earlier run of this shape is in the results")
    elif forecast.seconds:
        but = f", and unknown for {forecast.unknown} runs" if forecast.unknown else ""
        evaluated = "" if forecast.evaluated else "; the evaluations are not in it"
        lines.append(f"estimated time on {where}: about {duration(forecast.seconds)}{but}{evaluated}")
    return "\n".join(lines)


def live(sweep: Sweep, now: dict[str, Progress], height: int, note: str = "") -> RenderableType:
    """Runs done, running, failed and to do, the running ones with their steps, and the time left.

    height  lines of the screen
    note    what else the first line says
    """
    counts = Counter(progress.state for progress in now.values())
    line = Text(f"{sweep.name}: ", style="bold")
    shown: tuple[State, ...] = ("done", "diverged", "failed", "running", "trained", "staged", "interrupted", "to do")
    counted = [(state, counts[state]) for state in shown if counts[state] or state in ("done", "running", "failed")]
    for place, (state, n) in enumerate(counted):
        line.append(", " if place else "").append(f"{n} {state}", STYLE.get(state, "") if n else "dim")
    line.append(f" of {len(now)}", "bold")
    if (seconds := time_left(now)) is not None:
        line.append(f"; training: about {duration(seconds)} left")
    if note:
        line.append(f"; {note}")
    active = [run for run in sweep.runs.values() if now[run.id].state in ("running", "failed", "trained", "staged")]
    active.sort(key=lambda run: ("running", "failed", "trained", "staged").index(now[run.id].state))
    room = max(1, height - 4)
    table = _table(["run", "state", "", "step", "s/step", "left", "reward"], right=("step", "s/step", "left", "reward"))
    for run in active[:room]:
        table.add_row(*_live_row(run, now[run.id]))
    rest = [Text(f"and {len(active) - room} more", style="dim")] if len(active) > room else []
    return Group(line, *([table] if active else []), *rest)


def time_left(now: dict[str, Progress]) -> float | None:
    """Seconds until the last step, if the runs to come go as fast together as those that run now. None: unknown.

    Steps left of all runs over the steps a second of all running ones; never less than the slowest has left.
    """
    running = [progress for progress in now.values() if progress.state == "running"]
    if not running or any(progress.step_seconds is None for progress in running):
        return None
    speed = sum(1 / progress.step_seconds for progress in running if progress.step_seconds)
    steps = sum(p.steps - p.step for p in now.values() if p.state in ("running", "to do", "interrupted"))
    return max(steps / speed, *(progress.seconds_left or 0.0 for progress in running))


def final_table(finals: Sequence[Final]) -> Table:
    """Final rewards, while training and on held-out prompts."""
    varies = _varying([final.run for final in finals])
    labels = sorted({label for final in finals for label in final.rewards})
    heldout = any(final.heldout for final in finals)
    columns = [
        *_short(varies),
        "status",
        "steps",
        "reward",
        *labels,
        *(f"held-out {label}" for label in labels if heldout),
    ]
    table = _table(columns, right=columns[len(varies) + 1 :])
    for final in finals:
        progress = final.progress
        table.add_row(
            *_values(final.run, varies),
            _state(progress),
            f"{progress.step}/{progress.steps}",
            _number(final.reward),
            *(_number(final.rewards.get(label)) for label in labels),
            *(_number(final.heldout.get(label)) for label in labels if heldout),
        )
    return table


def notes(finals: Iterable[Final], failed: dict[str, str], report: Path, ok: bool) -> str:
    """What the table has no room for: why runs diverged, which jobs failed, where the report is."""
    lines = [f"diverged: {f.run.id}: {f.progress.note}" for f in finals if f.progress.state == "diverged"]
    lines += [f"failed: {log}" + (f": {error}" if error else "") for log, error in failed.items()]
    if ok and report.is_file():
        lines.append(f"report: {report}")
    elif report.is_file():
        lines.append(f"report: not made by this call; {report} shows an earlier state")
    else:
        lines.append("report: not made, nor are the tables; the numbers above are those of the runs' own files")
    return "\n".join(lines)


def _live_row(run: Run, progress: Progress) -> list[RenderableType]:
    row: list[RenderableType] = [run.id, _state(progress)]
    if progress.state == "failed":
        return [*row, Text(progress.note, style="red", overflow="ellipsis", no_wrap=True)]
    seconds, left = progress.step_seconds, progress.seconds_left
    return [
        *row,
        ProgressBar(total=progress.steps, completed=progress.step, width=20),
        f"{progress.step}/{progress.steps}",
        "" if seconds is None else f"{seconds:.2g}",
        "" if left is None or not left else duration(left),
        _number(progress.reward_mean),
    ]


def _table(columns: Sequence[str], right: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name in ("run", "state", "status"))
    return table


def _varying(runs: Sequence[Run]) -> list[str]:
    """Keys whose values differ among the runs; a variant's name stands for the values that make it."""
    variants: dict[Any, list[Run]] = {}
    for run in runs:
        variants.setdefault(run.varies.get("variant"), []).append(run)
    keys = dict.fromkeys(key for run in runs for key in run.varies if key != "variant")
    differing = [k for k in keys if any(len({str(r.varies.get(k)) for r in alike}) > 1 for alike in variants.values())]
    return ["variant", *differing] if len(variants) > 1 else differing


def _short(keys: Sequence[str]) -> list[str]:
    """`lr` of `optimizer.lr`, `algorithm` of `algorithm.name`; the whole keys where short ones would be the same."""
    ends = [key.removesuffix(".name").removesuffix(".kind").removesuffix(".id").rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def _values(run: Run, keys: Sequence[str]) -> list[str]:
    return [_plain(run.varies.get(key)) for key in keys]


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _state(progress: Progress) -> Text:
    at = f" at step {progress.step}" if progress.state in ("interrupted", "diverged") else ""
    return Text(progress.state + at, style=STYLE.get(progress.state, ""))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
