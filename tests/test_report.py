"""The report: every section on every kind of sweep, and its numbers are those of the files."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd
import pytest
from fake_reports import COMMAND, VARIANTS, blocks
from fake_runs import OBJECTIVES, undefined_at, write_sweep

from gradlab.aggregate import aggregate
from gradlab.report import load
from gradlab.report.blocks import SECTIONS, Figure, Note, Table, number, records
from gradlab.report.load import group_label
from gradlab.report.page import render
from gradlab.report.pairs import pair_means
from gradlab.report.sections.summary import headline
from gradlab.store import read_json, read_jsonl, write_json


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_section_builds_and_every_chart_validates(results, variant):
    sweep = load(results, variant)
    for section in SECTIONS.values():
        found = blocks(sweep, section.id)
        assert bool(found) == (section.id not in {"failed", "thinned", *([] if variant == "alone" else ["transfer"])})
        for block in found:
            if isinstance(block, Figure):
                spec = block.spec()  # Altair validates
                assert spec["$schema"].endswith(f"{alt.SCHEMA_VERSION}.json") and block.rows
                assert re.search(r"\bn = \d|n = up to", block.caption), block.title
                json.dumps(spec, allow_nan=False)
            if isinstance(block, Note):
                assert block.text.endswith((".", ")."))
            if isinstance(block, Table):
                assert all(len(row) == len(block.columns) for row in block.rows) and block.caption


def test_a_sweep_without_cosines_says_why(results):
    for variant, reason in (("single", "there is one objective (numeric)"), ("unprobed", "probe.every is 0")):
        notes = blocks(load(results, variant), "cosines")
        assert len(notes) == 1 and isinstance(notes[0], Note) and reason in notes[0].text


def test_a_sweep_without_difference_or_kl_or_several_seeds_says_so(results):
    evaluation = blocks(load(results, "unprobed"), "evaluation")
    assert any(isinstance(block, Note) and "compares with no base model" in block.text for block in evaluation)
    single = load(results, "single")
    assert "Not measured in any run: KL" in blocks(single, "training")[0].caption
    assert "one seed, so there is no band" in blocks(single, "rewards")[0].caption
    assert "all variance" in blocks(single, "variance")[0].text


def test_summary_holds_the_numbers_of_the_run_files(results, demo):
    table = next(b for b in blocks(demo, "summary") if isinstance(b, Table))
    runs = [run for run in demo.configs if run.startswith("grpo")]
    found = [read_json(results / "demo" / "runs" / run / "eval.json")["objectives"]["numeric"] for run in runs]
    mean = sum(f["difference"]["mean"] for f in found) / 2
    low, high = min(f["difference"]["low"] for f in found), max(f["difference"]["high"] for f in found)
    row = next(row for row in table.rows if row[:2] == ["grpo", "numeric"])
    assert row[4] == f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" and row[5:] == ["2", "200"]


def test_a_sweep_in_which_no_pair_can_be_tested_has_a_page(demo):
    untested = replace(demo, pairs=demo.pairs.assign(verdict=np.nan))  # as Parquet gives a column of nulls back
    assert "distinguishable" not in headline(untested)
    assert "—" in render(untested, COMMAND, ".")


def test_pair_means_are_those_of_the_defined_probes(results, demo):
    means = pair_means(demo.cosines).set_index(["group", "objective_i", "objective_j"])
    values = []
    for run in demo.configs:
        if run.startswith("reinforce"):
            rows = read_jsonl(results / "demo" / "runs" / run / "probe" / "probe.jsonl")
            values += [row["cosine"][0][2] for row in rows if row["cosine"][0][2] is not None]
    series, found = pd.Series(values), means.loc["reinforce", "brevity", "refusal"]
    assert found["mean"] == pytest.approx(series.mean()) and found["n"] == len(values)
    assert found["high"] - found["mean"] == pytest.approx(1.96 * series.std() / len(values) ** 0.5)
    assert found["undefined"] == 2 * sum(undefined_at(step) for step in range(0, 60, 5)) > 0
    assert found["below"] == pytest.approx((series < 0).mean())
    assert "lowest mean cosine" in headline(demo)


def test_numbers_show_no_signed_zero():
    assert number(-0.001, sign=True) == number(0.0, sign=True) == "0.00"
    assert number(-0.5) == "\N{MINUS SIGN}0.50" and number(0.5, sign=True) == "+0.50"
    assert number(float("nan")) == number(None) == "—"


def test_group_labels_are_short_and_unambiguous():
    assert group_label({"algorithm.name": "grpo", "optimizer.lr": 0.001}) == "grpo, lr=0.001"
    labels = group_label({"objectives.a.weight": 1.0, "objectives.b.weight": 0.5})
    assert labels == "objectives.a.weight=1, objectives.b.weight=0.5"


def test_records_turn_nan_to_null():
    assert records(pd.DataFrame({"a": [float("nan"), 0.123456789]})) == [{"a": None}, {"a": 0.12346}]


def test_mixtures_are_warned_of(tmp_path):
    runs = write_sweep(tmp_path, steps=3)
    aggregate(tmp_path, "demo")
    assert not [b for b in blocks(load(tmp_path, "demo"), "provenance") if isinstance(b, Note)]
    path = tmp_path / "demo" / "runs" / runs[1] / "provenance.json"
    record = read_json(path)
    record |= {
        "code_digest": "ffffffff",
        "git_commit": "abc-dirty",
        "versions": record["versions"] | {"torch": "2.9.0"},
    }
    write_json(path, record)
    warnings = [b.text for b in blocks(load(tmp_path, "demo"), "provenance") if isinstance(b, Note) and b.warning]
    assert len(warnings) == 4
    for key in ("code_digest", "versions.torch: 2.13.0 (3 runs), 2.9.0 (1 run)", "git_commit", "uncommitted"):
        assert any(key in warning for warning in warnings), key


def test_objectives_are_those_of_the_fake_sweep(demo):
    assert demo.objectives == sorted(OBJECTIVES) and demo.groups == ["grpo", "reinforce"]
