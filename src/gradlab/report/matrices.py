"""Cosine matrices as heat maps: by step, by group, by layer.

Grey cells are undefined, never 0; pale ones with a dashed edge are not distinguishable from 0.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd

import altair as alt
import pandas as pd

from gradlab.inference import NEITHER
from gradlab.report.blocks import TABLE, Figure, records
from gradlab.report.load import Sweep, plural
from gradlab.report.pairs import keep_level, layer_order, layers_text, main_layer, pair_means
from gradlab.report.theme import GREY, INK, UNDEFINED, WIDTH

CELLS = 15000
MOST_GROUPS = 12
PAIR = ["objective_i", "objective_j"]
MARKED = "Pale with a dashed edge: not distinguishable from 0"


def step_map(sweep: Sweep) -> Figure:
    """Cosine matrix at one step, of one run or the mean over a group's seeds; a slider moves the step."""
    tested = sweep.pairs[sweep.pairs["level"] == "step"][["run", "step", "layer", *PAIR, "verdict"]]
    frame = sweep.cosines[sweep.cosines["group"].isin(sweep.drawn)]
    frame = frame.merge(tested, on=["run", "step", "layer", *PAIR], how="left")
    steps = sorted(frame["step"].unique().tolist())
    groups = _mean_of_seeds(frame)
    views = [*groups["view"].unique(), *sweep.single]
    frame = frame[frame["run"].isin(sweep.single)]
    frame = pd.concat([groups, frame.assign(view=frame["run"], seeds=1)], ignore_index=True)
    every = -(-len(frame) * 2 // CELLS)
    shown = sorted({*steps[::every], steps[-1]})
    frame = frame[frame["step"].isin(shown)]
    until = dict(zip(shown, [*shown[1:], shown[-1] + 1], strict=True))
    frame = frame[["view", "layer", "step", "objective_i", "objective_j", "cosine", "norm_i", "norm_j", "seeds",
                   "verdict"]]  # fmt: skip
    rows = _whole_matrix(frame.assign(until=frame["step"].map(until)))

    stride = gcd(*(b - a for a, b in pairwise(shown))) or 1
    slider = alt.binding_range(min=shown[0], max=shown[-1], step=stride, name="step ")
    at = alt.param(name="at_step", value=shown[-1], bind=slider)
    view = alt.param(name="view", value=views[0], bind=alt.binding_select(options=views, name="show "))
    layers = layer_order(list(frame["layer"].unique()))
    layer = alt.param(name="layer", value=layers[-1], bind=alt.binding_select(options=layers, name="layer "))
    chosen = "datum.view == view && datum.layer == layer && datum.step <= at_step && at_step < datum.until"
    tooltip = [
        alt.Tooltip("row:N"), alt.Tooltip("column:N"), alt.Tooltip("label:N", title="cosine"),
        alt.Tooltip("verdict:N"), alt.Tooltip("step:Q"),
        alt.Tooltip("norm_row:Q", title="norm of row", format=".3g"),
        alt.Tooltip("norm_column:Q", title="norm of column", format=".3g"), alt.Tooltip("seeds:Q", title="seeds"),
    ]  # fmt: skip
    size = min(560, max(220, 110 * len(sweep.objectives)))
    chart = (
        _matrix(sweep.objectives, tooltip)
        .transform_filter(chosen)
        .properties(data=TABLE, width=size, height=size * 0.72)
        .add_params(view, *([layer] if len(layers) > 1 else []), at)
    )
    if len(layers) == 1:
        chart = chart.add_params(alt.param(name="layer", value=layers[0]))
    caption = (
        "Cosine between the policy gradients of each two objectives at the chosen step; orange: conflict, blue: "
        "synergy. Grey, “undefined”: one of the two has no gradient there, which is not a cosine of 0. "
        f"“Mean over seeds” averages the runs whose cosine is defined. {MARKED} at this step alone (q over all steps "
        f"and pairs of the run; of a mean: unless all its runs say the same); the next figure adds up the steps. "
        f"{plural(len(steps), 'probed step')}, "
        f"{plural(int(sweep.cosines['n_rows'].max()), 'completion')} a probe, {sweep.seeds_text()}. "
        f"Probed: {layers_text(sweep.cosines)}.{sweep.single_text()}"
    )
    caption += f" Thinned: {len(shown)} of {len(steps)} probed steps can be chosen." if every > 1 else ""
    return Figure("Cosine matrix by step", caption, chart, records(rows))


def mean_map(sweep: Sweep) -> Figure:
    """Mean cosine matrix of each group."""
    frame = main_layer(sweep)
    tested = keep_level(sweep.pairs, "group")[["group", *PAIR, "verdict", "alignment", "q"]]
    means = pair_means(frame).rename(columns={"mean": "cosine"}).merge(tested, on=["group", *PAIR], how="left")
    groups = sweep.drawn[:MOST_GROUPS]
    means = means[means["group"].isin(groups)]
    rows = _whole_matrix(
        means[
            [
                "group",
                "objective_i",
                "objective_j",
                "cosine",
                "low",
                "high",
                "n",
                "norm_i",
                "norm_j",
                "verdict",
                "alignment",
                "q",
            ]
        ]
    )
    tooltip = [
        alt.Tooltip("group:N"), alt.Tooltip("row:N"), alt.Tooltip("column:N"),
        alt.Tooltip("label:N", title="mean cosine"),
        alt.Tooltip("low:Q", format=".3f"), alt.Tooltip("high:Q", format=".3f"), alt.Tooltip("n:Q", title="probes"),
        alt.Tooltip("verdict:N"), alt.Tooltip("alignment:Q", format=".3f"), alt.Tooltip("q:Q", format=".3f"),
    ]  # fmt: skip
    columns = min(len(groups), 3)
    width = min(90 * len(sweep.objectives), WIDTH // columns - 90)
    chart = (
        _matrix(sweep.objectives, tooltip, small=len(sweep.objectives) > 4)
        .properties(width=width, height=width * 0.65)
        .facet(alt.Facet("group:N", sort=groups, title=None), columns=columns, data=TABLE, spacing=24)
    )
    more = f" The first {MOST_GROUPS} of {len(sweep.drawn)} groups." if len(sweep.drawn) > MOST_GROUPS else ""
    caption = (
        "Mean over all probed steps and seeds of the defined cosines; hover for the interval (1.96 standard errors "
        f"over probes) and n. {MARKED}, by products of different completions (false discovery rate 5 % a group): a "
        "large pale cosine is that of these completions, on which the two rewards may merely vary together. "
        f"{sweep.seeds_text()}. Probed: {layers_text(frame)}.{more}"
    )
    return Figure("Mean cosine matrix by group", caption, chart, records(rows))


def layer_map(sweep: Sweep) -> Figure:
    """Mean cosine by layer and pair."""
    frame = sweep.pairs[sweep.pairs["level"] == "group"]
    frame = frame.assign(pair=frame["objective_i"] + " · " + frame["objective_j"], n=frame["n_steps"])
    groups = sweep.drawn[:MOST_GROUPS]
    table = frame[frame["group"].isin(groups)][["group", "layer", "pair", "cosine", "n", "alignment", "q", "verdict"]]
    table = table.assign(label=[_label(c) for c in table["cosine"]])
    pairs, layers = list(dict.fromkeys(frame["pair"])), layer_order(list(frame["layer"].unique()))
    tooltip = [alt.Tooltip(field) for field in ("group:N", "layer:N", "pair:N", "label:N", "verdict:N", "n:Q")]
    tooltip += [alt.Tooltip(f"{field}:Q", format=".3f") for field in ("alignment", "q")]
    columns = min(len(groups), 2)
    angle = -90 if any("." in layer for layer in layers) else 0
    x = alt.X("layer:N", sort=layers, title="layer", axis=alt.Axis(labelAngle=angle))
    base = alt.Chart().encode(x=x, y=alt.Y("pair:N", sort=pairs, title=None), tooltip=tooltip)
    chart = (
        alt.layer(*_cells(base))
        .properties(width=WIDTH // columns - 180, height=26 * len(pairs))
        .facet(alt.Facet("group:N", sort=groups, title=None), columns=columns, data=TABLE)
    )
    caption = (
        "Mean over probed steps and seeds of the defined cosines, by layer or module; hover for n. "
        f"{MARKED} (false discovery rate 5 % over the pairs and layers of a group). "
        "Layers differ in size and in "
        f"the norm of their gradients, which a cosine does not show. {sweep.seeds_text()}."
    )
    return Figure("Mean cosine by layer", caption, chart, records(table))


def _mean_of_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    keys = ["group", "layer", "step", "objective_i", "objective_j"]
    means = frame.groupby(keys, sort=False).agg(
        cosine=("cosine", "mean"), norm_i=("norm_i", "mean"), norm_j=("norm_j", "mean"), seeds=("cosine", "count"),
        verdict=("verdict", _agreed),
    )  # fmt: skip
    return means.reset_index().assign(view=lambda f: "mean over seeds: " + f["group"])


def _agreed(verdicts: pd.Series) -> str | None:
    """What all tested runs say; else not distinguishable from 0."""
    said = verdicts.dropna().unique()
    return None if not len(said) else said[0] if len(said) == 1 else NEITHER


def _whole_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Pairs i < j to all cells: mirrored, with 1 on the diagonal where the objective has a gradient."""
    names = {"objective_i": "row", "objective_j": "column", "norm_i": "norm_row", "norm_j": "norm_column"}
    mirror = {"objective_j": "row", "objective_i": "column", "norm_j": "norm_row", "norm_i": "norm_column"}
    both = pd.concat([frame.rename(columns=names), frame.rename(columns=mirror)], ignore_index=True)
    place = [key for key in ("view", "group", "layer", "step", "until") if key in both]
    diagonal = both.drop_duplicates([*place, "row"]).drop(columns=["low", "high"], errors="ignore")
    own = {"column": diagonal["row"], "norm_column": diagonal["norm_row"]}
    diagonal = diagonal.assign(
        **own, verdict=None, cosine=diagonal["norm_row"].gt(0).map({True: 1.0, False: float("nan")})
    )
    whole = pd.concat([both, diagonal], ignore_index=True)
    return whole.assign(label=[_label(c) for c in whole["cosine"]])


def _label(cosine: float) -> str:
    return "undefined" if pd.isna(cosine) else f"{cosine:+.2f}".replace("-", "\N{MINUS SIGN}")


def _cells(base: alt.Chart) -> list[alt.Chart]:
    """Coloured cells and, as a layer of their own, the undefined ones: a scale gives null the colour of 0."""
    scale = alt.Scale(domain=[-1, 0, 1], range=["#b35806", "#f7f7f7", "#2166ac"])
    legend = alt.Legend(title="cosine", orient="right", gradientLength=120, values=[-1, -0.5, 0, 0.5, 1], format=".1f")
    undefined = base.transform_filter("!isValid(datum.cosine)").mark_rect(
        color=UNDEFINED, stroke="white", strokeWidth=2
    )
    hue = alt.Color("cosine:Q", scale=scale, legend=legend)
    defined = base.transform_filter("isValid(datum.cosine)").mark_rect(stroke="white", strokeWidth=2)
    unsure = base.transform_filter(f"isValid(datum.cosine) && datum.verdict == '{NEITHER}'")
    veil = unsure.mark_rect(fill="white", fillOpacity=0.65, stroke=GREY, strokeDash=[3, 3], strokeWidth=1.2)
    return [undefined, defined.encode(color=hue), veil]


def _matrix(objectives: list[str], tooltip: list[alt.Tooltip], small: bool = False) -> alt.LayerChart | alt.FacetChart:
    base = alt.Chart().encode(
        x=alt.X("column:N", sort=objectives, title=None, axis=alt.Axis(labelAngle=0, domain=False, ticks=False)),
        y=alt.Y("row:N", sort=objectives, title=None, axis=alt.Axis(domain=False, ticks=False)),
        tooltip=tooltip,
    )
    dark = f"isValid(datum.cosine) && abs(datum.cosine) > 0.6 && datum.verdict != '{NEITHER}'"
    ink = alt.condition(dark, alt.value("white"), alt.value(INK))
    return alt.layer(*_cells(base), base.mark_text(fontSize=9 if small else 12).encode(text="label:N", color=ink))
