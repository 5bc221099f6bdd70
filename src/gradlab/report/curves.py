"""The one form of every chart over steps: mean over seeds, band from lowest to highest, runs faint behind."""

from __future__ import annotations

import altair as alt
import pandas as pd

from gradlab.report.blocks import TABLE, Figure, Note, records
from gradlab.report.load import Sweep, plural
from gradlab.report.theme import GREY, colour, facet_width

BUDGET, MOST_STEPS, MOST_RUNS_DRAWN = 9000, 150, 8


def curves(
    sweep: Sweep,
    frame: pd.DataFrame,
    title: str,
    caption: str,
    empty: str,
    y: str,
    domain: tuple[float, float] | None = None,
    symmetric: bool = False,
    rule: float | None = None,
    shared_y: bool = True,
) -> Figure | Note:
    """A panel for each value of `frame.panel`; `frame` has run, group, step, panel, value (NaN: no signal).

    `domain` fixes the y axis; `symmetric` makes it the least of +-0.25, 0.5, 1 that holds the data. `empty` is
    the sentence that takes the chart's place when no value is defined.
    """
    frame = frame[frame["group"].isin(sweep.drawn)].dropna(subset=["panel"])
    defined = frame["value"].notna()
    if not defined.any():
        return Note(empty)
    panels = [p for p in frame["panel"].unique() if defined[frame["panel"] == p].any()]
    frame = frame[frame["panel"].isin(panels)]
    n_steps = frame["step"].nunique()
    window = 2 * (n_steps // 25) + 1
    smooth = _smooth(frame, window)
    few = len(sweep.runs) <= MOST_RUNS_DRAWN
    smooth, every = _thin(smooth, len(panels) * frame["run" if few else "group"].nunique())
    rows = _over_seeds(smooth).assign(kind="mean")
    draw_runs = few and (window > 1 or bool(rows["n"].max() > 1))
    if draw_runs:
        raw = smooth[["run", "group", "panel", "step", "raw"]].rename(columns={"raw": "mean"})
        rows = pd.concat([rows, raw.assign(kind="run")], ignore_index=True)
    if symmetric:
        bound = rows[["mean", "low", "high"]].abs().max().max()
        domain = next(((-b, b) for b in (0.25, 0.5, 1.0) if bound <= b), (-1.0, 1.0))
    chart = _chart(sweep, panels, y, domain, rule, shared_y, draw_runs, sparse=n_steps <= 30)
    smoothed = f"centred mean over {window} logged steps" if window > 1 else ""
    one_seed = bool(rows["n"].max() <= 1)
    how = [
        f"Line: {smoothed or 'the run itself'} (one seed, so there is no band)."
        if one_seed
        else f"Line: mean over seeds{smoothed and ' of a ' + smoothed}. Band: lowest to highest seed.",
        "Faint lines: each run, unsmoothed." if draw_runs else "",
        f"Single runs are not drawn: {len(sweep.runs)} are too many." if not few else "",
        "A gap is a step with no signal." if not frame["value"].notna().all() else "",
        f"Drawn thinned: one of {every} steps; the mean is over all." if every > 1 else "",
        f"{sweep.seeds_text()}, {plural(n_steps, 'step')}.",
    ]
    return Figure(title, " ".join([caption, *filter(None, how)]), chart, records(rows))


def _smooth(frame: pd.DataFrame, window: int) -> pd.DataFrame:
    """Adds `raw`; `value` becomes the centred mean of the defined values around, where it is defined itself."""
    frame = frame.sort_values("step", kind="stable").assign(raw=frame["value"])
    rolled = frame.groupby(["run", "panel"], sort=False)["value"].transform(
        lambda values: values.rolling(window, center=True, min_periods=1).mean()
    )
    return frame.assign(value=rolled.where(frame["raw"].notna()))


def _thin(frame: pd.DataFrame, n_lines: int) -> tuple[pd.DataFrame, int]:
    """Every m-th step and the last, so that a chart holds about BUDGET points at most."""
    steps = sorted(frame["step"].unique())
    most = min(MOST_STEPS, max(20, BUDGET // n_lines))
    every = -(-len(steps) // most)
    return frame[frame["step"].isin({*steps[::every], steps[-1]})], every


def _over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    grouped = frame.groupby(["group", "panel", "step"], sort=False)["value"]
    return grouped.agg(mean="mean", low="min", high="max", n="count").reset_index()


def _chart(
    sweep: Sweep,
    panels: list[str],
    y: str,
    domain: tuple[float, float] | None,
    rule: float | None,
    shared_y: bool,
    draw_runs: bool,
    sparse: bool,
) -> alt.TopLevelMixin:
    columns, width = facet_width(len(panels), 55 if shared_y else 0, 20 if shared_y else 58)
    scale = alt.Scale(domain=domain) if domain else alt.Scale(zero=True)
    pick = alt.selection_point(name="pick", fields=["group"], bind="legend")
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=6))
    hue = colour("group", sweep.drawn)
    base = alt.Chart().transform_filter("datum.kind == 'mean'")
    band = base.mark_area().encode(
        x=x, y=alt.Y("low:Q", scale=scale, title=y), y2="high:Q", color=hue,
        opacity=alt.condition(pick, alt.value(0.16), alt.value(0.02)),
    )  # fmt: skip
    tooltip = [
        alt.Tooltip("group:N"), alt.Tooltip("panel:N", title="of"), alt.Tooltip("step:Q"),
        alt.Tooltip("mean:Q", format=".3f"), alt.Tooltip("low:Q", title="lowest seed", format=".3f"),
        alt.Tooltip("high:Q", title="highest seed", format=".3f"), alt.Tooltip("n:Q", title="seeds"),
    ]  # fmt: skip
    line = base.mark_line(strokeWidth=2).encode(
        x=x, y=alt.Y("mean:Q", scale=scale, title=y), color=hue,
        opacity=alt.condition(pick, alt.value(1), alt.value(0.08)),
    )  # fmt: skip
    # A lone defined step between two gaps has no line, so sparse curves show their points.
    dots = base.mark_circle(size=28 if sparse else 90).encode(
        x=x, y=alt.Y("mean:Q", scale=scale, title=y), color=hue, tooltip=tooltip,
        opacity=alt.condition(pick, alt.value(1 if sparse else 0), alt.value(0.08 if sparse else 0)),
    )  # fmt: skip
    layers: list[alt.Chart] = [band]
    if draw_runs:
        runs = alt.Chart().transform_filter("datum.kind == 'run'").mark_line(strokeWidth=1).encode(
            x=x, y=alt.Y("mean:Q", scale=scale, title=y), color=hue, detail="run:N",
            opacity=alt.condition(pick, alt.value(0.28), alt.value(0.02)),
        )  # fmt: skip
        layers.append(runs)
    if rule is not None:
        layers.insert(0, alt.Chart().mark_rule(color=GREY, strokeDash=[3, 3]).encode(y=alt.datum(rule, scale=scale)))
    layers += [line, dots.add_params(pick)]
    layered = alt.layer(*layers).properties(width=width, height=200 if len(panels) > 1 else 240)
    facet = alt.Facet("panel:N", sort=panels, title=None)
    # Own axes in every panel where rows are not full, and flush bounds, so that headers stand in line.
    spacing = {"column": 20 if shared_y else 58, "row": 72}
    chart = layered.facet(facet, columns=columns, data=TABLE, spacing=spacing, bounds="flush").resolve_axis(
        x="independent"
    )
    return chart if shared_y else chart.resolve_scale(y="independent")
