"""What each objective's gradient does to the others."""

from __future__ import annotations

from collections.abc import Iterable

from gradlab.report.blocks import Block, Note, section
from gradlab.report.curves import curves
from gradlab.report.forest import conflict_null, forest
from gradlab.report.load import Sweep
from gradlab.report.matrices import layer_map, mean_map, step_map
from gradlab.report.pairs import keep_main_layer, layers_text, main_layer
from gradlab.report.sections.summary import no_cosines


@section("cosines", "Gradient cosines")
def cosines(sweep: Sweep) -> Iterable[Block]:
    if sweep.cosines.empty:
        yield Note(no_cosines(sweep))
        return
    yield step_map(sweep)
    yield mean_map(sweep)
    yield forest(sweep)
    if sweep.cosines["layer"].nunique() > 1:
        yield layer_map(sweep)
    frame = main_layer(sweep)
    probed = f"Probed: {layers_text(frame)}."
    yield curves(
        sweep,
        frame.assign(panel=frame["objective_i"] + " · " + frame["objective_j"], value=frame["cosine"]),
        title="Cosine by pair over training",
        caption=f"Cosine between the policy gradients of two objectives on the same completions. {probed}",
        empty="Every cosine is undefined: in no probe did two objectives both have a gradient.",
        y="cosine",
        symmetric=True,
        rule=0.0,
    )
    metrics = keep_main_layer(sweep.metrics.dropna(subset=["layer"]))
    taus = ", ".join(f"{tau:g}" for tau in sorted(sweep.cosines["probe.tau"].unique()))
    yield curves(
        sweep,
        metrics[metrics["metric"] == "probe/conflict_fraction"].assign(panel="all pairs"),
        title="Conflict fraction",
        caption=f"Share of the defined pairs whose cosine is below minus τ (τ = {taus}). {probed}",
        empty="The conflict fraction is undefined at every probe.",
        y="share of pairs",
        domain=(0.0, 1.0),
    )
    yield conflict_null(sweep)
    synergy = metrics[metrics["metric"] == "probe/net_synergy"]
    yield curves(
        sweep,
        synergy.assign(panel=synergy["objective"]),
        title="Net synergy by objective",
        caption=f"An objective's mean cosine to the others: above 0 it helps them, below 0 it hurts. {probed}",
        empty="Net synergy is undefined at every probe.",
        y="mean cosine to the others",
        symmetric=True,
        rule=0.0,
    )
