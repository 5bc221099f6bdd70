"""Held-out prompts, before against after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import altair as alt
import pandas as pd

from gradlab.report.blocks import TABLE, Block, Figure, Link, Note, Table, number, records, section
from gradlab.report.load import Sweep
from gradlab.report.pareto import pareto
from gradlab.report.theme import GREY, PALETTE, facet_width

ENDS = ("mean", "low", "high")
OUTCOMES = ("right", "wrong", "unparseable", "graded")
ABOUT = "Bars: 95 % bootstrap interval over prompts."


@section("evaluation", "Evaluation on held-out prompts")
def evaluation(sweep: Sweep) -> Iterable[Block]:
    rewards = sweep.evals[sweep.evals["measure"] == "reward"].dropna(subset=["mean"])
    rewards = rewards.assign(label=rewards["group"] + ", seed " + rewards["seed"].astype(str))
    rewards = rewards[rewards["run"].isin(sweep.single)]
    both = rewards[rewards["model"].isin(["base", "policy"])]
    if both.empty:
        yield Note("No held-out rewards: the evaluation has no estimate for any objective.")
    else:
        yield before_after(sweep, both)
    differences = rewards[rewards["model"] == "difference"]
    if differences.empty:
        yield Note("No differences: the evaluation compares with no base model.")
    else:
        yield difference(sweep, differences)
    if figure := pareto(sweep):
        yield figure
    yield _text_table(sweep)


def before_after(sweep: Sweep, frame: pd.DataFrame) -> Figure:
    pick = alt.selection_point(fields=["model"], bind="legend")
    scale = alt.Scale(domain=["base", "policy"], range=[GREY, PALETTE[0]])
    hue = alt.Color("model:N", scale=scale, legend=alt.Legend(orient="top", title=None))
    chart = _intervals(sweep, frame, hue, "mean raw reward", pick, offset=True)
    caption = f"Mean raw reward of each run's policy and of the base model it started from. {ABOUT} {_n(frame)}"
    caption += sweep.single_text()
    return Figure("Before and after", caption, chart, records(_columns(frame)))


def difference(sweep: Sweep, frame: pd.DataFrame) -> Figure:
    pick = alt.selection_point(fields=["model"])
    chart = _intervals(sweep, frame, alt.value(PALETTE[0]), "policy minus base", pick, offset=False)
    caption = (
        f"Policy minus base on the same prompts. {ABOUT} An interval that excludes the line at 0 is a change beyond "
        f"the noise of sampling these prompts; differences between seeds come on top. {_n(frame)}"
        f"{sweep.single_text()}"
    )
    return Figure("Change against the base model", caption, chart, records(_columns(frame)))


def _n(frame: pd.DataFrame) -> str:
    counts = frame["n"].dropna()
    low, high = int(counts.min()), int(counts.max())
    return f"n = {low if low == high else f'{low} to {high}'} completions a point."


def _columns(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[
        ["label", "run", "objective", "model", "mean", "low", "high", "n", "right", "wrong", "unparseable", "graded"]
    ]


def _intervals(
    sweep: Sweep, frame: pd.DataFrame, hue: Any, title: str, pick: alt.Parameter, offset: bool
) -> alt.TopLevelMixin:
    objectives = [k for k in sweep.objectives if k in set(frame["objective"])]
    labels = list(dict.fromkeys(frame["label"]))
    columns, width = facet_width(len(objectives), min(220, 7 * max(map(len, labels))), 24)
    base = alt.Chart().encode(
        y=alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelLimit=220, grid=False)),
        color=hue,
        opacity=alt.condition(pick, alt.value(1), alt.value(0.1)),
    )
    if offset:
        base = base.encode(yOffset=alt.YOffset("model:N", sort=["base", "policy"]))
    x = alt.X("low:Q", title=title, scale=alt.Scale(zero=not offset), axis=alt.Axis(tickCount=6))
    bars = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q")
    tooltip = ["run:N", "objective:N", "model:N", *(alt.Tooltip(f"{end}:Q", format=".3f") for end in ENDS), "n:Q"]
    if offset:
        tooltip += [f"{outcome}:Q" for outcome in OUTCOMES]
    points = base.mark_point(filled=True, size=60, opacity=1).encode(x="mean:Q", tooltip=tooltip)
    layers = [bars, points.add_params(pick)]
    if not offset:
        layers.insert(0, alt.Chart().mark_rule(color=GREY, strokeDash=[3, 3]).encode(x=alt.datum(0)))
    layered = alt.layer(*layers).properties(width=width, height=max(60, (30 if offset else 22) * len(labels)))
    facet = alt.Facet("objective:N", sort=objectives, title=None)
    return layered.facet(facet, columns=columns, data=TABLE, spacing=24).resolve_scale(x="independent")


MEASURES = {
    "completion_tokens_mean": ("tokens", 1),
    "ended_fraction": ("ended", 2),
    "unique_fraction": ("unique", 2),
    "jaccard_mean": ("Jaccard", 2),
    "distinct_1": ("distinct-1", 2),
    "distinct_2": ("distinct-2", 2),
    "compression_ratio": ("compression", 2),
}


def _text_table(sweep: Sweep) -> Block:
    frame = sweep.evals[sweep.evals["measure"] != "reward"]
    if frame.empty:
        return Note("No measures of the text.")
    means = frame.groupby(["group", "measure", "model"], sort=False)["mean"].mean()
    rows: list[list[str | list[Link]]] = []
    for group in sweep.drawn:
        cells = []
        for measure, (_, digits) in MEASURES.items():
            before, after = (means.get((group, measure, model), float("nan")) for model in ("base", "policy"))
            cells.append(f"{number(before, digits)} → {number(after, digits)}")
        verdicts = frame[(frame["group"] == group) & (frame["measure"] == "degenerate") & (frame["model"] == "policy")]
        verdict = f"{int(verdicts['mean'].sum())} of {len(verdicts)}"
        reasons = "; ".join(sorted({note for note in verdicts["note"].dropna() if note}))
        rows.append([group, *cells, f"{verdict}: {reasons}" if reasons else verdict])
    caption = (
        "Of held-out completions, base → policy, mean over seeds. Unique: share of different texts; Jaccard: mean "
        "overlap of the words of two texts; distinct-1, -2: different words and word pairs in all; compression: size "
        "over size compressed, high when texts repeat; degenerate: runs whose policy collapsed, and why. "
        f"{sweep.seeds_text()}."
    )
    columns = ["group", *(title for title, _ in MEASURES.values()), "degenerate"]
    return Table("Length and diversity of the text", caption, columns, rows, numeric=frozenset(range(1, 8)))
