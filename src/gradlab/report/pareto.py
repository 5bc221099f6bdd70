"""Objectives against each other over the groups of a sweep: which groups no other beats in both."""

from __future__ import annotations

from itertools import combinations

import altair as alt
import pandas as pd

from gradlab.report.blocks import TABLE, Figure, records
from gradlab.report.load import Sweep
from gradlab.report.theme import GREY, INK, WIDTH, colour

MOST_PANELS = 6


def pareto(sweep: Sweep) -> Figure | None:
    """A panel for each two objectives; None with fewer than two of either objectives or groups."""
    rewards = sweep.evals[(sweep.evals["measure"] == "reward") & (sweep.evals["model"] == "policy")]
    wide = rewards.dropna(subset=["mean"]).pivot_table(index=["group", "run"], columns="objective", values="mean")
    objectives = [k for k in sweep.objectives if k in wide]
    if len(objectives) < 2 or wide.index.get_level_values("group").nunique() < 2:
        return None
    pairs = list(combinations(objectives, 2))
    rows, panels = [], []
    for i, (first, second) in enumerate(pairs[:MOST_PANELS]):
        points = wide[[first, second]].dropna().rename(columns={first: "x", second: "y"})
        means = points.groupby("group", sort=False).mean()
        front = non_dominated(means)
        drawn, seeds = means.index.isin(sweep.drawn), points.index.get_level_values("group").isin(sweep.drawn)
        rows += _rows(means[drawn], i, "mean", front) + _rows(means[~drawn], i, "other", front)
        rows += _rows(points[seeds].droplevel("run"), i, "seed", set())
        panels.append(_panel(sweep, i, first, second))
    columns = min(3, len(panels))
    chart = alt.concat(*panels, columns=columns, data=TABLE, spacing=36).resolve_scale(color="shared")
    more = f" The first {MOST_PANELS} of {len(pairs)} pairs." if len(pairs) > MOST_PANELS else ""
    grey = " Means of all groups, those not drawn in colour in grey." if sweep.drawn_text() else ""
    caption = (
        "Mean raw reward on held-out prompts after training. Large: mean over seeds, ringed where no other group is at "
        "least as good in both and better in one; small: each seed. The ring is of the means alone: groups whose seeds "
        f"overlap are not told apart. {sweep.seeds_text()}.{grey}{more}"
    )
    return Figure("Objectives against each other", caption, chart, records(pd.DataFrame(rows)))


def non_dominated(means: pd.DataFrame) -> set[str]:
    """Groups of the (x, y) means that no other equals or beats in both and beats in one."""
    point_GX = means.to_numpy()
    no_less_GG = (point_GX[:, None] >= point_GX).all(axis=2)
    beats_GG = no_less_GG & (point_GX[:, None] > point_GX).any(axis=2)
    return {str(group) for group, beaten in zip(means.index, beats_GG.any(axis=0), strict=True) if not beaten}


def _rows(points: pd.DataFrame, panel: int, kind: str, front: set[str]) -> list[dict]:
    return [
        {"panel": panel, "kind": kind, "group": group, "x": x, "y": y, "front": group in front}
        for group, x, y in points.itertuples(name=None)
    ]


def _panel(sweep: Sweep, panel: int, first: str, second: str) -> alt.LayerChart | alt.FacetChart:
    base = alt.Chart().transform_filter(f"datum.panel == {panel}")
    scale = alt.Scale(zero=False, padding=12)
    x, y = alt.X("x:Q", title=first, scale=scale), alt.Y("y:Q", title=second, scale=scale)
    hue = colour("group", sweep.drawn, symbol="circle")
    tooltip = ["group:N", "kind:N", alt.Tooltip("x:Q", title=first, format=".3f"),
               alt.Tooltip("y:Q", title=second, format=".3f"), "front:N"]  # fmt: skip
    mean = base.transform_filter("datum.kind == 'mean'")
    seeds = base.transform_filter("datum.kind == 'seed'").mark_point(filled=True, size=22, opacity=0.5)
    others = base.transform_filter("datum.kind == 'other'").mark_point(filled=True, size=18, opacity=0.6, color=GREY)
    ringed = base.transform_filter("datum.front")
    rings = ringed.mark_point(size=210, color=INK, strokeWidth=1.4, opacity=0.8)
    front = ringed.mark_line(color=GREY, strokeDash=[2, 3], strokeWidth=1)
    layers = [
        front.encode(x=x, y=y),
        seeds.encode(x=x, y=y, color=hue, tooltip=tooltip),
        rings.encode(x=x, y=y),
        mean.mark_point(filled=True, size=100, opacity=1).encode(x=x, y=y, color=hue, tooltip=tooltip),
    ]
    if sweep.drawn_text():  # a layer without rows is a warning in the browser's console
        layers.insert(0, others.encode(x=x, y=y, tooltip=tooltip))
    return alt.layer(*layers).properties(width=WIDTH // 3 - 75, height=220)
