"""A browser of completions: what the numbers above look like as text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from gradlab.report.blocks import Block, Browser, section
from gradlab.report.load import Sweep

COLUMNS = ["run", "source", "step", "example", "prompt", "completion", "ended"]
SOURCES = {"train": "training", "policy": "held out, policy", "base": "held out, base"}


@section("samples", "Samples", without_runs=True)
def samples(sweep: Sweep) -> Iterable[Block]:
    frame = sweep.samples
    objectives = [k for k in sweep.objectives if f"reward/{k}" in frame]
    frame = frame.assign(source=frame["source"].map(SOURCES))
    scores = [f"reward/{k}" for k in objectives] + [f"outcome/{k}" for k in objectives]
    rows = [[_plain(value) for value in row] for row in frame[[*COLUMNS, *scores]].itertuples(index=False)]
    thinned = f" Thinned: {len(rows)} of {sweep.n_samples}, evenly spaced." if sweep.n_samples > len(rows) else ""
    caption = (
        f"{len(rows)} completions, an even and fixed choice from samples.jsonl and eval_samples.jsonl.{thinned} An "
        "empty score: the objective does not apply to this prompt. Search reads prompt, completion and example."
    )
    yield Browser("Completions", caption, COLUMNS, objectives, rows)


def _plain(value: object) -> object:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float | np.floating):
        return int(value) if float(value).is_integer() else float(f"{value:.4g}")
    return value.item() if isinstance(value, np.generic) else value
