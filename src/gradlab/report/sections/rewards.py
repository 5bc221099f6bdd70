"""Rewards over training, one panel an objective."""

from __future__ import annotations

from collections.abc import Iterable

from gradlab.report.blocks import Block, section
from gradlab.report.curves import curves
from gradlab.report.load import Sweep


@section("rewards", "Rewards")
def rewards(sweep: Sweep) -> Iterable[Block]:
    frame = sweep.metrics[sweep.metrics["metric"] == "reward_mean"]
    yield curves(
        sweep,
        frame.dropna(subset=["objective"]).assign(panel=frame["objective"]),
        title="Reward by objective",
        caption="Mean raw reward of the completions sampled for training, before any weight or normalisation.",
        empty="No rewards: no objective applied to any completion.",
        y="mean raw reward",
        shared_y=False,
    )
