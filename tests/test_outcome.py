"""A run that diverged is failed, with its reason, and in no average; a folder that cannot be read is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fake_reports import blocks
from fake_runs import diverge, outcome, write_sweep

from gradlab.aggregate import aggregate
from gradlab.outcome import read_config, read_outcome
from gradlab.report import load, write_index, write_report
from gradlab.report.page import render
from gradlab.report.sections.summary import headline
from gradlab.store import read_json, read_jsonl, write_json

ROOT = Path(__file__).parents[1]
REASON = "step 12, rows 0 to 7: the loss is not finite. Lower optimizer.lr"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, list[str]]:
    """grpo seed 0 diverged at step 12 of 20, both seeds of reinforce at step 0; grpo seeds 1 and 2 finished."""
    results = tmp_path_factory.mktemp("results")
    runs = write_sweep(results, seeds=(0, 1, 2), steps=20, probe_every=4)
    diverge(results / "demo/runs" / runs[0], 12, REASON)
    for run in runs[3:]:
        diverge(results / "demo/runs" / run, 0)
    aggregate(results, "demo")
    return results / "demo", runs


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


def test_every_run_has_a_row_with_status_and_reason(sweep):
    folder, runs = sweep
    table = read(folder, "runs").set_index("run")
    assert set(table.index) == set(runs) and (table["steps"] == 20).all()
    assert table.loc[runs[0], ["status", "steps_done", "reason"]].tolist() == ["diverged", 12, REASON]
    assert table.loc[runs[1], ["status", "steps_done"]].tolist() == ["finished", 20]
    assert pd.isna(table.loc[runs[1], "reason"]) and table.loc[runs[0], "seconds/step"] == pytest.approx(0.7)
    last = read_jsonl(folder / "runs" / runs[1] / "metrics.jsonl")[-2:]  # a tenth of 20
    for key in ("reward_mean", "reward_mean/numeric"):
        assert table.loc[runs[1], key] == pytest.approx((last[0][key] + last[1][key]) / 2)
    assert table.loc[runs[1], "n_last_steps"] == 2
    assert table.loc[[runs[0], *runs[3:]], ["reward_mean", "reward_mean/brevity", "n_last_steps"]].isna().all().all()


def test_statistics_are_those_of_the_finished_runs(sweep, tmp_path):
    folder, runs = sweep
    write_sweep(tmp_path, seeds=(1, 2), steps=20, probe_every=4, algorithms=("grpo",))
    aggregate(tmp_path, "demo")
    for name in ("pairs", "conflict", "evals"):
        found, expected = (read(f, name).convert_dtypes() for f in (folder, tmp_path / "demo"))
        assert set(found["run"].dropna()) == {runs[1], runs[2]}
        pd.testing.assert_frame_equal(found[expected.columns.drop(["first_run"], errors="ignore")],
                                      expected.drop(columns=["first_run"], errors="ignore"))  # fmt: skip


def test_rows_up_to_the_failure_are_kept(sweep):
    folder, runs = sweep
    for name, steps in (("metrics", range(12)), ("cosines", range(0, 12, 4)), ("samples", (0, 10))):
        table = read(folder, name)
        assert set(table[table["run"] == runs[0]]["step"].dropna()) == set(steps), name
        assert runs[3] not in set(table["run"])
    metrics = read(folder, "metrics").query("run == @runs[0]")
    assert set(metrics[metrics["metric"] == "probe/advantage_covariance"]["step"]) == {0, 4, 8}


@pytest.mark.parametrize("all_diverged", [True, False])
def test_a_sweep_of_failures_has_typed_tables(tmp_path, all_diverged):
    runs = write_sweep(tmp_path, steps=4, probe_every=0 if not all_diverged else 2)
    for run in runs if all_diverged else runs[1:]:
        diverge(tmp_path / "demo/runs" / run, 0)
    aggregate(tmp_path, "demo")
    assert len(read(tmp_path / "demo", "runs")) == 4
    assert read(tmp_path / "demo", "pairs").empty


# Report


def test_the_report_lists_failed_runs_and_leaves_them_out(sweep):
    folder, runs = sweep
    found = load(folder.parent, "demo")
    assert found.runs["run"].tolist() == runs[1:3] and found.groups == ["grpo"]
    warning, table = blocks(found, "failed")
    assert (
        warning.warning and "4 of 6 runs diverged" in warning.text and "No run finished of: reinforce." in warning.text
    )
    assert [row[0][0].text for row in table.rows] == [runs[0], *runs[3:]]
    assert table.rows[0][1:5] == ["grpo", "0", "12 of 20", REASON]
    assert headline(found).startswith("4 of 6 runs diverged; largest held-out gain: ")
    rewards = pd.DataFrame(blocks(found, "rewards")[0].rows)
    assert set(rewards["group"]) == {"grpo"} and (rewards.query("kind == 'mean'")["n"].max()) == 2
    page = render(found, "make")
    assert page.count(" Without 4 runs that failed.</figcaption>") == page.count("<figcaption>") > 5
    assert REASON in page and f'href="runs/{runs[0]}/train.log"' in page


def test_a_failed_run_does_not_change_a_mean_of_seeds(sweep):
    """At every step the mean is over the same seeds: those of the run that failed are out before its failure, too."""
    found = load(sweep[0].parent, "demo")
    rows = pd.DataFrame(blocks(found, "rewards")[0].rows).query("kind == 'mean' and panel == 'brevity'")
    assert len(rows) == 20 and set(rows["n"]) == {2}
    metrics = read(sweep[0], "metrics").query(
        "metric == 'reward_mean' and objective == 'brevity' and run in @sweep[1][1:3]"
    )
    expected = metrics.groupby("step")["value"].mean()
    assert rows.set_index("step")["mean"].to_dict() == pytest.approx(expected.to_dict(), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"probe_every": 0}, {"alone": True, "algorithms": ("grpo",)}])
@pytest.mark.parametrize("kept", [0, 1])
def test_a_sweep_of_failures_has_a_page(tmp_path, options, kept):
    runs = write_sweep(tmp_path, steps=12, **options)
    for step, run in enumerate(runs[kept:]):
        diverge(tmp_path / "demo/runs" / run, step)
    aggregate(tmp_path, "demo")
    out = tmp_path / "demo/report.html"
    write_report(tmp_path, "demo", out, "make")
    text = out.read_text(encoding="utf-8")
    assert "the loss is not finite" in text and f"{len(runs) - kept} of {len(runs)} runs diverged" in text
    assert ("No run finished" in text) == (kept == 0 or "No run finished of" in text)
    assert write_index(tmp_path) == ["demo"]
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (f"No run finished: {len(runs)} runs diverged" in index) == (kept == 0)


# Folders of other versions


def one_run(results: Path) -> Path:
    return results / "demo/runs" / write_sweep(results, algorithms=("grpo",), seeds=(0,), steps=3)[0]


def refused(results: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        aggregate(results, "demo")
    assert "Make the run again" in str(error.value) and not (results / "demo/metrics.parquet").exists()


def test_a_run_without_outcome_is_named(tmp_path):
    run = one_run(tmp_path)
    (run / "outcome.json").unlink()
    refused(tmp_path, rf"run {run.name}: expected the file .*outcome\.json, which gradlab 0.* of an older version")
    with pytest.raises(ValueError, match=r"`snakemake --cores all --force -- .*outcome\.json`"):  # a call that works
        aggregate(tmp_path, "demo")


def test_a_key_that_this_version_does_not_know_is_named(tmp_path):
    run = one_run(tmp_path)
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"optimizer": config["optimizer"] | {"momentum": 0.9}})
    refused(tmp_path, rf"(?s)run {run.name}: .*config\.json: expected a file of gradlab .*optimizer\.momentum")


def test_keys_that_an_older_version_did_not_write_have_their_defaults(tmp_path):
    run = one_run(tmp_path)
    config = read_json(run / "config.json")
    del config["probe"]["space"]
    write_json(run / "config.json", config)
    aggregate(tmp_path, "demo")
    assert set(read(tmp_path / "demo", "runs")["probe.space"]) == {"gradient"}
    assert read_config(run).probe.space == "gradient"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (outcome("stopped", 1, 3, None), "status: expected 'finished' or 'diverged'; found 'stopped'"),
        (outcome("finished", 2, 3, None), "expected all steps of a finished run.*found finished at 2 of 3"),
        (outcome("diverged", 2, 3, None), "fewer and a reason; found diverged at 2 of 3 steps, reason None"),
        (outcome("finished", 4, 4, None), "expected the 3 steps of config.json in outcome.json; found 4"),
        ({"status": "finished"}, "steps: expected a value; found none"),
    ],
)
def test_an_outcome_that_cannot_be_is_named(tmp_path, found, message):
    run = one_run(tmp_path)
    write_json(run / "outcome.json", found)
    with pytest.raises(ValueError, match=f"(?s)run {run.name}: .*{message}"):
        aggregate(tmp_path, "demo")


def test_metrics_that_end_early_are_not_a_finished_run(tmp_path):
    run = one_run(tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))
    refused(tmp_path, "metrics.jsonl: expected a row for each of 3 steps; found 2")


def test_the_evaluation_of_a_run_that_failed_before_is_named(tmp_path):
    run = one_run(tmp_path)
    write_json(run / "eval.json", {"failed": "the loss is not finite"})
    with pytest.raises(ValueError, match=rf"run {run.name}: eval\.json: expected the evaluation of a finished run"):
        aggregate(tmp_path, "demo")


# Evaluation


def test_a_run_that_diverged_is_not_evaluated(tmp_path):
    run = one_run(tmp_path)
    diverge(run, 2, REASON)
    (run / "eval.json").unlink()
    command = [sys.executable, str(ROOT / "scripts/eval_run.py"), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert f"diverged after 2 steps: {REASON}" in done.stdout
    assert read_json(run / "eval.json") == {"failed": REASON} and (run / "eval_samples.jsonl").read_text() == ""
    assert read_outcome(run).steps_done == 2
    (run / "outcome.json").unlink()
    refusal = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert refusal.returncode == 1 and "outcome.json, which gradlab" in refusal.stderr
    assert "Traceback" not in refusal.stderr
