"""Charts of the report are honest about holes, gaps and what is not distinguishable from 0."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from fake_reports import blocks

from gradlab.report import load
from gradlab.report.blocks import Note
from gradlab.report.curves import curves
from gradlab.report.forest import conflict_null, forest
from gradlab.report.matrices import layer_map, mean_map, step_map
from gradlab.report.pairs import keep_main_layer, layer_order
from gradlab.report.pareto import non_dominated


def test_undefined_cells_are_null_and_say_so(demo):
    figure = step_map(demo)
    cells = {(r["row"], r["column"]): r for r in figure.rows if r["view"].endswith("grpo") and r["step"] == 10}
    assert len(cells) == 9
    for (row, column), cell in cells.items():
        hole = "refusal" in (row, column)
        assert (cell["cosine"] is None) == hole and (cell["label"] == "undefined") == hole
    assert cells["numeric", "brevity"]["cosine"] == cells["brevity", "numeric"]["cosine"]
    assert cells["brevity", "brevity"]["cosine"] == 1.0


def test_an_objective_that_never_has_a_gradient_has_no_diagonal(demo):
    never = demo.cosines.assign(norm_j=demo.cosines["norm_j"].where(demo.cosines["objective_j"] != "refusal", 0.0))
    never["cosine"] = never["cosine"].where(never["norm_j"] > 0)
    sweep = replace(demo, cosines=never)
    for figure in (mean_map(sweep), step_map(sweep)):
        cells = [r for r in figure.rows if "refusal" in (r["row"], r["column"])]
        assert cells and {cell["label"] for cell in cells} == {"undefined"}, figure.title
        assert any(r["label"] == "+1.00" for r in figure.rows)


def test_mirrored_cells_swap_norms(demo):
    cells = {
        (r["row"], r["column"]): r
        for r in step_map(demo).rows
        if r["view"] == next(iter(demo.configs)) and not r["step"]
    }
    first, second = cells["brevity", "numeric"], cells["numeric", "brevity"]
    assert (first["norm_row"], first["norm_column"]) == (second["norm_column"], second["norm_row"])
    assert first["norm_row"] != first["norm_column"]
    assert cells["brevity", "brevity"]["norm_row"] == first["norm_row"]


def test_cells_that_are_not_distinguishable_from_0_are_marked(demo):
    """The planted pairs are clear over all steps; at a single step hardly any is, and its cells say so."""
    verdicts = {(r["group"], r["row"], r["column"]): r["verdict"] for r in mean_map(demo).rows}
    assert verdicts["grpo", "refusal", "numeric"] == verdicts["grpo", "numeric", "refusal"] == "conflict"
    assert verdicts["reinforce", "brevity", "refusal"] == "synergy" and verdicts["grpo", "brevity", "brevity"] is None
    at_step = [r["verdict"] for r in step_map(demo).rows if r["row"] != r["column"] and r["cosine"] is not None]
    assert at_step.count("not distinguishable from 0") > len(at_step) / 4
    assert "not distinguishable from 0" in json.dumps(mean_map(demo).spec()["spec"])


def test_the_forest_has_each_pair_with_interval_and_q(results, demo):
    figure = forest(demo)
    table = pd.read_parquet(results / "demo" / "pairs.parquet").query("level == 'group'")
    assert len(figure.rows) == len(table) == 6
    row = next(r for r in figure.rows if r["label"] == "numeric · refusal, grpo")
    truth = table[(table["algorithm.name"] == "grpo") & (table["objective_i"] == "numeric")].iloc[0]
    assert row["alignment"] == pytest.approx(truth["alignment"], rel=1e-4) and row["verdict"] == "conflict"
    assert row["alignment_low"] < row["alignment"] < row["alignment_high"] < 0 and row["says"] == f"q {truth['q']:.3f}"
    untested = replace(demo, pairs=demo.pairs.assign(p=float("nan")))
    assert isinstance(forest(untested), Note)


def test_the_conflict_fraction_stands_beside_its_null(demo):
    rows = {r["label"]: r for r in conflict_null(demo).rows}
    assert set(rows) == {"grpo", "reinforce", *(f"{g}, seed {s}" for g in ("grpo", "reinforce") for s in (0, 1))}
    assert all(r["null_low"] <= r["null"] <= r["null_high"] for r in rows.values())


def test_weights_are_drawn_where_they_move(demo):
    assert len(blocks(demo, "variance")) == 1
    weights = demo.metrics[demo.metrics["metric"] == "advantage_variance_share"].assign(metric="weight")
    moving = replace(demo, metrics=pd.concat([demo.metrics, weights]))
    assert [block.title for block in blocks(moving, "variance")][1] == "Weights over training"
    constant = replace(demo, metrics=pd.concat([demo.metrics, weights.assign(value=0.5)]))
    assert len(blocks(constant, "variance")) == 1


def test_the_front_holds_the_groups_that_none_beats():
    means = pd.DataFrame({"x": [0.0, 1, 0.5, 0.4, 1], "y": [1.0, 0, 0.5, 0.5, 0]}, index=list("abcde"))
    assert non_dominated(means) == {"a", "b", "c", "e"}  # d is as good as c in y and worse in x


def test_cosine_colour_is_centred_at_0_and_fixed(results):
    layers = load(results, "layers")
    for figure in (step_map(layers), mean_map(layers), layer_map(layers)):
        scales = re.findall(r'"scale": ({[^}]*})', json.dumps(figure.spec() | {"datasets": {}}))
        assert any(json.loads(scale).get("domain") == [-1, 0, 1] for scale in scales), figure.title


def test_curves_keep_gaps_and_average_over_seeds(demo):
    frame = demo.metrics[(demo.metrics["metric"] == "reward_mean") & demo.metrics["objective"].notna()]
    figure = curves(demo, frame.assign(panel=frame["objective"]), "t", "c.", "none", "y")
    rows = pd.DataFrame(figure.rows)
    holes = rows[(rows["kind"] == "mean") & (rows["panel"] == "refusal") & (rows["step"] == 10)]
    assert len(holes) == 2 and holes["mean"].isna().all() and (holes["n"] == 0).all()
    assert "A gap is a step with no signal." in figure.caption
    grpo = rows[(rows["panel"] == "brevity") & (rows["group"] == "grpo")]
    window = grpo[(grpo["kind"] == "run") & grpo["step"].between(28, 32)]  # centred on 30, both seeds
    at_30 = grpo[(grpo["kind"] == "mean") & (grpo["step"] == 30)]
    assert at_30["mean"].item() == pytest.approx(window["mean"].mean(), rel=1e-4) and at_30["n"].item() == 2
    by_run = window.groupby("run")["mean"].mean()
    assert at_30["low"].item() == pytest.approx(by_run.min(), rel=1e-4)
    assert at_30["high"].item() == pytest.approx(by_run.max(), rel=1e-4)


def test_long_runs_are_thinned_and_the_caption_says_so(demo):
    run = next(iter(demo.configs))
    frame = pd.DataFrame({"run": run, "group": "grpo", "panel": "x", "step": range(2000), "value": 1.0})
    figure = curves(demo, frame, "t", "c.", "none", "y")
    assert len({row["step"] for row in figure.rows}) <= 151 and figure.rows[-1]["step"] == 1999
    assert "Drawn thinned: one of 14 steps" in figure.caption


def test_no_value_at_all_is_a_sentence(demo):
    frame = pd.DataFrame({"run": "r", "group": "grpo", "panel": "x", "step": [0, 1], "value": [None, float("nan")]})
    assert curves(demo, frame.astype({"value": float}), "t", "c.", "Nothing here.", "y") == Note("Nothing here.")


def test_layers_are_in_numeric_order_and_one_is_the_main():
    assert layer_order(["10", "2", "all", "0"]) == ["0", "2", "10", "all"]
    modules = ["10.mlp", "2.mlp", "10.attention", "2.attention"]
    assert layer_order(modules) == ["2.attention", "2.mlp", "10.attention", "10.mlp"]
    frame = pd.DataFrame({"run": ["a", "a", "b", "b"], "layer": ["2", "10", "3", "all"]})
    assert keep_main_layer(frame)["layer"].tolist() == ["10", "all"]


def test_throughput_phases_sum_to_the_step(demo):
    figure = blocks(demo, "throughput")[0]
    rows = pd.DataFrame(figure.rows)
    assert (rows.groupby("run")["seconds"].sum() - 0.7).abs().max() < 1e-3
    assert rows["rate"].tolist() == pytest.approx([1 / 0.7] * len(rows), rel=1e-3)
    probe = rows[rows["phase"] == "probe"]["seconds"]
    assert (probe < 0.02).all()  # 0.05 s on one step of five, spread over all
