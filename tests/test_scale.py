"""What must not grow with the number of runs: memory of aggregation, points of a chart, work done twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_reports import blocks
from fake_runs import write_sweep

from gradlab import sweep as sweeps
from gradlab.report import load
from gradlab.report.blocks import SECTIONS, Figure, Table
from gradlab.report.load import MOST_GROUPS, MOST_SINGLE, Sweep
from gradlab.report.page import render
from gradlab.report.pareto import pareto
from gradlab.store import read_json, write_json
from gradlab.sweep_file import SweepConfig

SEEDS, STEPS, ROW_GROUP = 4, 40, 5000
PEAK = f"""
import resource, sys
from gradlab.aggregate import aggregate, tables
tables.ROW_GROUP = {ROW_GROUP}
aggregate(sys.argv[1], "crowd")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def crowd(results: Path, runs: int) -> float:
    """A sweep of copies of five runs, SEEDS of them a learning rate, aggregated; returns aggregation's peak MiB."""
    folder = results / "crowd"
    made = write_sweep(results, "crowd", algorithms=("grpo",), seeds=tuple(range(5)), steps=STEPS, probe_every=20)
    entries = []
    for number in range(runs):
        template, rate, seed = made[number % len(made)], 1e-4 * (1 + number // SEEDS), number % SEEDS
        run = f"grpo_lora_lr{number // SEEDS}_s{seed}-{number:08x}"
        shutil.copytree(folder / "runs" / template, folder / "runs" / run)
        config = read_json(folder / "runs" / run / "config.json")
        config |= {"seed": seed, "optimizer": config["optimizer"] | {"lr": rate}}
        write_json(folder / "runs" / run / "config.json", config)
        entries.append({"run": run, "varies": {"optimizer.lr": rate, "seed": seed}})
    write_json(folder / "sweep.json", read_json(folder / "sweep.json") | {"runs": entries})
    command = [sys.executable, "-c", PEAK, str(results)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> dict[int, float]:
    return {runs: crowd(tmp_path_factory.getbasetemp() / f"crowd{runs}", runs) for runs in (40, 160)}


@pytest.fixture(scope="module")
def many(peaks, tmp_path_factory) -> Sweep:
    return load(tmp_path_factory.getbasetemp() / "crowd160", "crowd")


def test_memory_of_aggregation_does_not_grow_with_the_runs(peaks):
    """Measured: 164 and 165 MiB; with all rows held until the end 203 and 325."""
    assert peaks[160] - peaks[40] < 40, peaks


def test_the_tables_are_complete(many):
    file = pq.ParquetFile(many.folder / "metrics.parquet")
    per_run = pq.read_table(many.folder / "metrics.parquet", columns=["run", "seed", "optimizer.lr"]).to_pandas()
    counts = per_run.groupby("run").size()
    assert len(counts) == 160 and counts.nunique() == 1
    assert (per_run["run"].str.extract(r"_s(\d)")[0].astype(int) == per_run["seed"]).all()
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert all(ROW_GROUP <= n < ROW_GROUP + counts.iloc[0] for n in groups[:-1]) and len(groups) > 10
    assert len(pd.read_parquet(many.folder / "pairs.parquet").query("level == 'group'")) == 40 * 3


def test_charts_hold_some_groups_and_runs_and_say_which(many):
    assert len(many.groups) == 40 and len(many.drawn) == MOST_GROUPS and len(many.single) == MOST_SINGLE
    means = many.runs.groupby("group")["reward_mean"].mean()
    assert means[many.drawn].agg(["min", "max"]).tolist() == means.agg(["min", "max"]).tolist()
    assert set(many.metrics.loc[~many.metrics["metric"].str.startswith("probe/adv"), "group"]) == set(many.drawn)
    for section in SECTIONS.values():
        for block in blocks(many, section.id):
            if not isinstance(block, Figure):
                continue
            assert len(block.rows) <= 15_000, block.title
            groups = {row["group"] for row in block.rows if "group" in row}
            assert len(groups) <= MOST_GROUPS or "all groups" in block.caption, block.title
            runs = {row.get("run", row.get("view")) for row in block.rows} & set(many.configs)
            assert len(runs) <= MOST_SINGLE, block.title
            assert "drawn" in block.caption.lower(), block.title
    (note,) = blocks(many, "thinned")
    assert "20 of 40 groups" in note.text and "evenly spaced in rank" in note.text


def test_the_page_is_small_and_lists_every_run(many):
    page = render(many, "make")
    assert len(page.encode()) < 10e6
    table = next(block for block in blocks(many, "runs") if isinstance(block, Table))
    assert len(table.rows) == 160


def test_a_group_that_is_not_drawn_can_be_on_the_front(many):
    """The ring is of all groups: a group beats others whether or not it is drawn in colour."""
    best = next(group for group in many.groups if group not in many.drawn)
    rows = (many.evals["group"] == best) & (many.evals["measure"] == "reward") & (many.evals["model"] == "policy")
    evals = many.evals.assign(mean=many.evals["mean"].where(~rows, 2.0))
    figure = pareto(replace(many, evals=evals))
    ringed = {row["group"] for row in figure.rows if row["front"]}
    assert ringed == {best}


def test_each_run_is_specified_once_and_its_base_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bases").mkdir()
    (tmp_path / "data.jsonl").write_text("{}\n")
    (tmp_path / "bases/small.yaml").write_text(json.dumps({"steps": 10, "corpus": ["data.jsonl"]}))
    calls = {"specification": 0, "load_base": 0, "validate": 0}

    def count(name):
        plain = getattr(sweeps, name)

        def counted(*arguments):
            calls[name] += 1
            return plain(*arguments)

        monkeypatch.setattr(sweeps, name, counted)

    for name in calls:
        count(name)
    config = SweepConfig(
        fixed={"model.id": "base/small", "algorithm.name": "grpo", "objectives.brevity": {},
               "data.train": ["data.jsonl"], "data.heldout": ["data.jsonl"]},
        grid={"seed": list(range(20)), "optimizer.lr": [1e-4 * (i + 1) for i in range(10)]},
    )  # fmt: skip
    runs = sweeps.expand(config, tmp_path / "bases")
    assert len(runs) == 200
    assert calls["specification"] == 200 and calls["load_base"] == 1 and calls["validate"] <= 201
