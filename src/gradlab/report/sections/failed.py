"""Runs that did not finish, and how the page was thinned: what its averages and charts leave out."""

from __future__ import annotations

from collections.abc import Iterable

from gradlab.report.blocks import Block, Link, Note, Table, section
from gradlab.report.load import MOST_GROUPS, Sweep, plural

MOST_ROWS = 50


@section("failed", "Failed runs", without_runs=True)
def failed(sweep: Sweep) -> Iterable[Block]:
    lost = sweep.failed
    if lost.empty:
        return
    n = len(lost) + len(sweep.runs)
    text = f"{len(lost)} of {plural(n, 'run')} diverged. They are in no average, statistic or chart of this page."
    if empty := [group for group in lost["group"].unique() if group not in sweep.groups]:
        more = f" and {len(empty) - 6} more" if len(empty) > 6 else ""
        text += f" No run finished of: {'; '.join(empty[:6])}{more}."
    yield Note(text, warning=True)
    rows: list[list[str | list[Link]]] = [
        [[Link(run.run, f"runs/{run.run}/")], run.group, str(run.seed), f"{run.steps_done} of {run.steps}", run.reason,
         [Link("log", f"runs/{run.run}/train.log")]]
        for run in lost.head(MOST_ROWS).itertuples()
    ]  # fmt: skip
    caption = (
        "Steps: taken before the loss or the gradient was not finite. The rows up to there are in metrics.parquet; all "
        "runs with their status in runs.parquet."
    ) + (f" The first {MOST_ROWS} of {len(lost)}." if len(lost) > MOST_ROWS else "")
    yield Table("Runs that diverged", caption, ["run", "group", "seed", "steps", "reason", "file"], rows)


@section("thinned", "What is drawn", without_runs=True)
def thinned(sweep: Sweep) -> Iterable[Block]:
    if sweep.drawn_text():
        yield Note(
            f"Charts and tables of groups show {len(sweep.drawn)} of {len(sweep.groups)} groups (at most "
            f"{MOST_GROUPS}): those evenly spaced in rank of the weighted reward in the last tenth of training, the "
            "highest and the lowest among them. The summary's sentence, the pairs with intervals, the transfer and the "
            "list of runs are of all; so are the Parquet files."
        )
