"""What training one objective did to the others, and what predicted it. Absent without runs that train one alone."""

from __future__ import annotations

from collections.abc import Iterable

import altair as alt
import pandas as pd

from gradlab.report.blocks import TABLE, Block, Figure, Note, Table, interval, number, records, section
from gradlab.report.load import Sweep, plural
from gradlab.report.theme import GREY, INK, PALETTE, WIDTH
from gradlab.report.transfer import PREDICTORS, RankCorrelation, cells, judgement, rank_correlations, trained_alone

ENDS = ("mean", "low", "high")
SHOWN = {"change": "change on held-out prompts", "cosine": "mean cosine", "covariance": "covariance with the advantage"}


@section("transfer", "Transfer: does the cosine predict?")
def transfer(sweep: Sweep) -> Iterable[Block]:
    if not trained_alone(sweep):
        return
    frame = cells(sweep)
    if frame["change"].notna().sum() == 0:
        yield Note("No transfer matrix: the evaluation compares with no base model.")
        return
    found = rank_correlations(frame)
    yield Note(judgement(found))
    yield matrices(sweep, frame)
    yield scatter(frame, found)
    yield _table(frame, found)


def _over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a cell and matrix shown: mean over seeds, lowest and highest seed."""
    keys = ["trained", "measured"]
    long = frame.melt(id_vars=[*keys, "run"], value_vars=list(SHOWN), var_name="matrix")
    grouped = long.groupby(["matrix", *keys], sort=False)["value"]
    return grouped.agg(mean="mean", low="min", high="max", n="count").reset_index()


def matrices(sweep: Sweep, frame: pd.DataFrame) -> Figure:
    """Trained by measured: the change, the cosine, the covariance."""
    rows = _over_seeds(frame)
    digits = rows["matrix"].map({"covariance": 3}).fillna(2).astype(int)
    rows["label"] = [number(mean, d, sign=True) for mean, d in zip(rows["mean"], digits, strict=True)]
    ends = zip(rows["low"], rows["high"], digits, strict=True)
    rows["ends"] = [interval(low, high, d, sign=True).strip() for low, high, d in ends]
    bound = rows.groupby("matrix")["mean"].agg(lambda v: v.abs().max()).replace(0, 1)
    rows["shade"] = rows["mean"] / rows["matrix"].map(bound)
    size = min(250, WIDTH // 3 - 60)
    panels = []
    for i, (matrix, title) in enumerate(SHOWN.items()):
        axis = alt.Axis(domain=False, ticks=False) if i == 0 else None
        across = alt.Axis(labelAngle=0, domain=False)
        base = (
            alt.Chart()
            .transform_filter(f"datum.matrix == '{matrix}'")
            .encode(
                x=alt.X("measured:N", title="measured", sort=sweep.objectives, axis=across),
                y=alt.Y("trained:N", title="trained" if i == 0 else None, sort=sweep.objectives, axis=axis),
                tooltip=["trained:N", "measured:N", *(alt.Tooltip(f"{end}:Q", format=".3f") for end in ENDS), "n:Q"],
            )
        )  # fmt: skip
        hue = alt.Color(
            "shade:Q", scale=alt.Scale(domain=[-1, 0, 1], range=["#b35806", "#f7f7f7", "#2166ac"]), legend=None
        )
        ink = alt.condition("isValid(datum.shade) && abs(datum.shade) > 0.6", alt.value("white"), alt.value(INK))
        panels.append(
            alt.layer(
                base.mark_rect(stroke="white", strokeWidth=2).encode(color=hue),
                base.mark_text(fontSize=12, dy=-6).encode(text="label:N", color=ink),
                base.mark_text(fontSize=8.5, dy=9).encode(text="ends:N", color=ink),
            ).properties(width=size, height=size * 0.72, title=title)
        )
    caption = (
        "Row: the one objective that trained; column: what was measured, on its own scale of reward. Left: policy "
        "minus base on held-out prompts. Middle: plain cosine of the two gradients; right: covariance of the measured "
        "reward with the advantage that trained, within prompts (0 where no prompt has both); both are means over the "
        "run's probed steps. Mean over seeds, in brackets the lowest and highest seed. Colours span each matrix by "
        "itself, the diagonal included. "
        f"n = {plural(int(rows['n'].max()), 'seed')} a row, up to {int(frame['n'].max())} held-out completions a run."
    )
    return Figure(
        "Transfer beside cosine and covariance", caption, alt.hconcat(*panels, data=TABLE, spacing=24), records(rows)
    )


def scatter(frame: pd.DataFrame, found: list[RankCorrelation]) -> Figure:
    """Change against each predictor, one point a run and pair off the diagonal."""
    off = frame[frame["trained"] != frame["measured"]]
    off = off.assign(pair=off["trained"] + " → " + off["measured"])
    rows = off.melt(id_vars=["pair", "change", "seed"], value_vars=["cosine", "covariance"], var_name="predictor")
    pairs = list(dict.fromkeys(off["pair"]))
    palette = [PALETTE[i % len(PALETTE)] for i in range(len(pairs))]
    hue = alt.Color("pair:N", sort=pairs, scale=alt.Scale(domain=pairs, range=palette),
                    legend=alt.Legend(orient="right", title="trained → measured", symbolType="circle"))  # fmt: skip
    panels = [
        alt.layer(
            alt.Chart().mark_rule(color=GREY, strokeDash=[3, 3]).encode(x=alt.datum(0)),
            alt.Chart().mark_rule(color=GREY, strokeDash=[3, 3]).encode(y=alt.datum(0)),
            alt.Chart()
            .transform_filter(f"datum.predictor == '{name}'")
            .mark_point(filled=True, size=60, opacity=0.85)
            .encode(
                x=alt.X("value:Q", title=PREDICTORS[name]),
                y=alt.Y("change:Q", title="change on held-out prompts" if i == 0 else None),
                color=hue,
                tooltip=[
                    "pair:N",
                    "seed:Q",
                    alt.Tooltip("value:Q", format=".3f"),
                    alt.Tooltip("change:Q", format=".3f"),
                ],
            ),
        ).properties(width=(WIDTH - 260) // 2, height=230)
        for i, name in enumerate(("cosine", "covariance"))
    ]
    caption = (
        "One point a run and objective that it did not train. A predictor that works has points from lower left to "
        f"upper right. n = {off['run'].nunique()} runs, {found[0].cells} ordered pairs."
    )
    return Figure("Change against what predicted it", caption, alt.hconcat(*panels, data=TABLE), records(rows))


def _table(frame: pd.DataFrame, found: list[RankCorrelation]) -> Table:
    rows: list[list] = [
        [
            PREDICTORS[r.predictor],
            number(r.rho, sign=True) + interval(r.low, r.high, sign=True),
            number(r.p, 3),
            str(r.cells),
        ]
        for r in found
    ]
    caption = (
        "Spearman's rank correlation with the change, over the ordered pairs off the diagonal (means over seeds), in "
        "brackets 95 % of a bootstrap that draws the seeds of each trained objective: it speaks of new seeds. p: of "
        "pairs matched by chance, which few pairs can hardly exclude. Rewards have different scales. The covariance is "
        "the first-order predictor of arXiv 2602.06869 and needs no gradient."
    )
    return Table("Rank correlation with the change", caption, ["predictor", "rank correlation", "p", "pairs"],
                 rows, numeric=frozenset((1, 2, 3)))  # fmt: skip
