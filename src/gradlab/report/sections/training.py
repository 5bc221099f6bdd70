"""How training went: who owns the signal, the usual vital signs, and the time."""

from __future__ import annotations

from collections.abc import Iterable

import altair as alt
import pandas as pd

from gradlab.report.blocks import TABLE, Block, Figure, Note, records, section
from gradlab.report.curves import curves
from gradlab.report.load import Sweep
from gradlab.report.theme import GREY, PALETTE, WIDTH

VITAL = {
    "kl_nats_per_token": "KL to the reference, nats a token",
    "entropy_nats_per_token": "entropy, nats a token",
    "completion_tokens_mean": "completion length, tokens",
    "ended_fraction": "share ended by EOS",
    "grad_norm": "gradient norm",
    "clip_fraction": "clip fraction",
}
PHASES = ("sample", "score", "forward_backward", "probe")


@section("variance", "Who owns the signal")
def variance(sweep: Sweep) -> Iterable[Block]:
    if len(sweep.objectives) == 1:
        yield Note(f"There is one objective ({sweep.objectives[0]}): all variance of the advantages is its own.")
        return
    frame = sweep.metrics[sweep.metrics["metric"] == "advantage_variance_share"]
    yield curves(
        sweep,
        frame.assign(panel=frame["objective"]),
        title="Share of advantage variance",
        caption="Each objective's share of the variance of the combined advantage; the shares of a step sum to 1. "
        "Whatever its weight, an objective with a small share trains little. "
        f"Dashed: equal shares (1/{len(sweep.objectives)}).",
        empty="No shares: all advantages are 0 at every step.",
        y="share",
        domain=(0.0, 1.0),
        rule=1 / len(sweep.objectives),
    )
    weights = sweep.metrics[sweep.metrics["metric"] == "weight"]
    if (weights.groupby(["run", "objective"])["value"].nunique() > 1).any():
        yield curves(
            sweep,
            weights.assign(panel=weights["objective"]),
            title="Weights over training",
            caption="What multiplied each objective's advantages at each step. Weights that a Gram gives may "
            "differ from step to step.",
            empty="No weights at any step.",
            y="weight",
            rule=0.0,
        )


@section("training", "Training")
def training(sweep: Sweep) -> Iterable[Block]:
    frame = sweep.metrics[sweep.metrics["metric"].isin(VITAL)].assign(panel=lambda f: f["metric"].map(VITAL))
    order = {name: i for i, name in enumerate(VITAL.values())}
    absent = [name for name in VITAL.values() if frame.loc[frame["panel"] == name, "value"].notna().sum() == 0]
    yield curves(
        sweep,
        frame.sort_values("panel", key=lambda panel: panel.map(order), kind="stable"),
        title="Vital signs",
        caption="Policy entropy, KL to the reference model, completion length and the optimizer's view, at each step."
        + (f" Not measured in any run: {'; '.join(absent)}." if absent else ""),
        empty="No such metrics in any run.",
        y="",
        shared_y=False,
    )


@section("throughput", "Throughput")
def throughput(sweep: Sweep) -> Iterable[Block]:
    frame = sweep.metrics[sweep.metrics["metric"].str.startswith("seconds/")].dropna(subset=["value"])
    if frame.empty:
        yield Note("No times: the runs measured no seconds.")
        return
    # A phase that some steps skip (the probe) has 0 or no value there; its mean is over all steps.
    steps = sweep.metrics.groupby("run")["step"].nunique()
    frame = frame[frame["run"].isin(sweep.single)].astype({"metric": str})
    totals = frame.groupby(["run", "metric"], sort=False)["value"].sum().unstack().fillna(0.0)
    rows = []
    for run in sweep.runs[sweep.runs["run"].isin(sweep.single)].itertuples():
        if run.run not in totals.index:
            continue
        whole = totals.loc[run.run, "seconds/step"] / steps[run.run]
        parts = {p: totals.loc[run.run].get(f"seconds/{p}", 0.0) / steps[run.run] for p in PHASES}
        parts["other"] = max(0.0, whole - sum(parts.values()))
        label = f"{run.group}, seed {run.seed}"
        for i, (phase, seconds) in enumerate(parts.items()):
            rows.append({"label": label, "run": run.run, "phase": phase, "order": i, "seconds": seconds,
                         "share": seconds / whole, "rate": 1 / whole, "whole": whole})  # fmt: skip
    yield phases(sweep, pd.DataFrame(rows), int(steps.max()))


def phases(sweep: Sweep, frame: pd.DataFrame, steps: int) -> Figure:
    """Seconds a step by phase, one bar a run."""
    names = [*PHASES, "other"]
    pick = alt.selection_point(fields=["phase"], bind="legend")
    hue = alt.Color("phase:N", sort=names, legend=alt.Legend(orient="top", title=None),
                    scale=alt.Scale(domain=names, range=[*PALETTE[:4], GREY]))  # fmt: skip
    labels = list(dict.fromkeys(frame["label"]))
    y = alt.Y("label:N", sort=labels, title=None, axis=alt.Axis(labelLimit=260))
    bars = alt.Chart().mark_bar().encode(
        y=y, x=alt.X("seconds:Q", title="seconds a step"), color=hue, order="order:Q",
        opacity=alt.condition(pick, alt.value(1), alt.value(0.15)),
        tooltip=["run:N", "phase:N", alt.Tooltip("seconds:Q", format=".3f"), alt.Tooltip("share:Q", format=".0%")],
    ).add_params(pick)  # fmt: skip
    text = alt.Chart().transform_filter("datum.phase == 'other'").transform_calculate(
        says="format(datum.rate, '.2f') + ' steps/s'"
    ).mark_text(align="left", dx=6).encode(y=y, x="whole:Q", text="says:N")  # fmt: skip
    chart = (bars + text).properties(data=TABLE, width=WIDTH - 280, height=max(60, 26 * len(labels)))
    caption = (
        "Mean wall-clock seconds of a training step by phase, over all steps of a run (a phase that runs on some steps "
        f"is spread over all). Beside the bar: steps a second. n = up to {steps} steps a run. Runs that shared the "
        f"machine with others at the same time are slower than alone.{sweep.single_text()}"
    )
    return Figure("Seconds by phase", caption, chart, records(frame))
