"""Pairs of objectives with their intervals and verdicts, and the conflict fraction beside its null."""

from __future__ import annotations

import altair as alt
import pandas as pd

from gradlab.inference import CONFLICT, NEITHER, SYNERGY
from gradlab.report.blocks import TABLE, Figure, Note, number, records
from gradlab.report.load import Sweep, plural
from gradlab.report.pairs import keep_level
from gradlab.report.theme import GREY, INK, PALETTE, WIDTH

MOST_ROWS = 60
HUE = alt.Color(
    "verdict:N",
    scale=alt.Scale(domain=[CONFLICT, SYNERGY, NEITHER], range=["#b35806", "#2166ac", GREY]),
    legend=alt.Legend(orient="top", title=None, symbolType="circle"),
)
ZERO = alt.Chart().mark_rule(color=GREY, strokeDash=[3, 3]).encode(x=alt.datum(0))


def forest(sweep: Sweep) -> Figure | Note:
    """Every pair of every group: plain and unbiased cosine on the left, alignment with its interval on the right."""
    frame = keep_level(sweep.pairs, "group").dropna(subset=["p"])
    if frame.empty:
        return Note(
            "No pair can be tested: every probe has one prompt of few rows, or no two objectives with a gradient."
        )
    left_out = max(0, len(frame) - MOST_ROWS)
    frame = frame.sort_values("alignment", key=lambda a: a.abs(), ascending=False, kind="stable").head(MOST_ROWS)
    frame = frame.sort_index()
    alone = len(sweep.groups) == 1
    frame["label"] = frame["objective_i"] + " · " + frame["objective_j"] + ("" if alone else ", " + frame["group"])
    frame["says"] = [f"q {number(q, 3)}" for q in frame["q"]]
    labels = list(frame["label"])
    margin = min(300, 40 + 6 * max(map(len, labels)))
    width, height = (WIDTH - margin - 110) // 2, 22 * len(labels) + 10
    floats = ("cosine", "unbiased", "low", "high", "alignment", "alignment_low", "alignment_high", "p", "q")
    tooltip = [alt.Tooltip(name) for name in ("label:N", "verdict:N", "n_tested:Q", "n_runs:Q")]
    tooltip += [alt.Tooltip(f"{name}:Q", format=".3f") for name in floats]

    def y(shown: bool) -> alt.Y:
        axis = alt.Axis(labelLimit=300, grid=True) if shown else None
        return alt.Y("label:N", sort=labels, title=None, axis=axis)

    def panel(shown: bool) -> alt.Chart:
        return alt.Chart().encode(y=y(shown), color=HUE, tooltip=tooltip)

    reach = alt.Scale(domain=(-1, 1))
    cosines = alt.layer(
        ZERO,
        panel(True)
        .mark_tick(thickness=2, height=13, color=INK)
        .encode(x=alt.X("cosine:Q", scale=reach), color=alt.value(INK)),
        panel(True).mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", scale=reach, title="cosine"), x2="high:Q"),
        panel(True)
        .mark_point(filled=True, size=55, shape="diamond", opacity=1)
        .encode(x=alt.X("unbiased:Q", scale=reach)),
    ).properties(width=width, height=height, title="cosine: plain (tick), unbiased (diamond)")
    x = alt.X("alignment_low:Q", title="alignment")
    ends = alt.layer(
        ZERO,
        panel(False).mark_rule(strokeWidth=2).encode(x=x, x2="alignment_high:Q"),
        panel(False).mark_point(filled=True, size=55, opacity=1).encode(x="alignment:Q"),
        alt.Chart().mark_text(align="left", dx=5, color=INK).encode(y=y(False), x="alignment_high:Q", text="says:N"),
    ).properties(width=width, height=height, title="alignment (cross-fitted)")  # fmt: skip
    tested, seeds = frame["n_tested"], frame["n_runs"]
    n_runs = plural(seeds.max(), "seed") if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()} seeds"
    steps = f"{tested.min()} to {tested.max()}" if tested.min() < tested.max() else f"{tested.min()}"
    caption = (
        "Steps and seeds pooled. Tick: plain cosine, which noise shared by two rewards moves. Diamond: unbiased cosine "
        "from products of different completions, absent where a gradient's norm is not surely above 0. Right: the same "
        "inner product over the plain norms, smaller the noisier the gradients. Bars: 95 % bootstrap intervals over "
        "steps, of these runs. q: p-value of permutations within prompts and of sign flips over steps, adjusted for "
        f"the pairs of a group; coloured below 0.05. n = {steps} probed steps a pair, {n_runs} pooled."
        + (f" Of all groups, the {left_out} pairs nearest 0 are not drawn." if left_out else "")
    )
    chart = alt.hconcat(cosines, ends, data=TABLE, spacing=20).resolve_scale(color="shared")
    columns = ["label", "verdict", *floats, "n_tested", "n_runs", "says"]
    return Figure("Pairs with intervals", caption, chart, records(frame[columns]))


def conflict_null(sweep: Sweep) -> Figure | Note:
    """The conflict fraction of each group and run against objectives shuffled by themselves."""
    frame = pd.concat([keep_level(sweep.conflict, level) for level in ("group", "run")]).dropna(
        subset=["conflict_fraction"]
    )
    if frame.empty:
        return Note("The conflict fraction is undefined at every probe.")
    frame = frame[frame["group"].isin(sweep.drawn) & (frame["run"].isin(sweep.single) | frame["run"].isna())]
    seeds = sweep.runs.set_index("run")["seed"]
    frame["label"] = [r.group if r.level == "group" else f"{r.group}, seed {seeds[r.run]}" for r in frame.itertuples()]
    frame = frame[(frame["level"] == "group") | (frame["group"].map(sweep.runs["group"].value_counts()) > 1)]
    frame["outside"] = (frame["conflict_fraction"] < frame["null_low"]) | (
        frame["conflict_fraction"] > frame["null_high"]
    )
    order = frame.sort_values("group", key=lambda g: g.map(sweep.drawn.index), kind="stable")["label"].tolist()
    base = alt.Chart().encode(y=alt.Y("label:N", sort=order, title=None, axis=alt.Axis(labelLimit=300)))
    x = alt.X("null_low:Q", title="share of pairs in conflict", scale=alt.Scale(domain=(0, 1)))
    names = ("conflict_fraction", "null", "null_low", "null_high", "p")
    tooltip = ["label:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in names), "n_steps:Q"]
    hue = alt.condition("datum.outside", alt.value(PALETTE[1]), alt.value(INK))
    chart = alt.layer(
        base.mark_rule(strokeWidth=9, color="#dfe3e8").encode(x=x, x2="null_high:Q"),
        base.mark_tick(color=GREY, height=14).encode(x="null:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(x="conflict_fraction:Q", color=hue, tooltip=tooltip),
    ).properties(data=TABLE, width=WIDTH - 300, height=max(60, 22 * len(frame)))
    taus = ", ".join(f"{tau:g}" for tau in sorted(frame["tau"].unique()))
    caption = (
        f"Share of the defined pairs whose plain cosine is below minus τ (τ = {taus}), mean over steps. Grey: 95 % of "
        "what the same steps give when every objective's advantages are shuffled by itself within prompts, tick: "
        "their mean. A point outside (orange) is conflict or synergy beyond chance, reward correlation included. "
        f"n = {plural(int(frame['n_steps'].max()), 'step')} at most a row{sweep.drawn_text()}." + sweep.single_text()
    )
    columns = ["label", *names, "n_steps", "outside"]
    return Figure("Conflict fraction against its null", caption, chart, records(frame[columns]))
