"""Run folders to Parquet: every number arrives once, typed, with its run's parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_runs import NASTY, OBJECTIVES, undefined_at, write_sweep

from gradlab.aggregate import COLUMNS, aggregate, documentation
from gradlab.aggregate.columns import HELDOUT_ROWS, SAMPLE_ROWS, SAMPLE_STEPS
from gradlab.aggregate.rows import thin
from gradlab.aggregate.tables import flatten
from gradlab.inference import q_values
from gradlab.store import read_json, read_jsonl, write_json, write_jsonl

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, list[str]]:
    results = tmp_path_factory.mktemp("results")
    runs = write_sweep(results)
    (results / "demo" / "runs" / "stale_run-00000000").mkdir()  # left from an older grid: must not be read
    aggregate(results, "demo")
    return results / "demo", runs


def read(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(folder / f"{name}.parquet")


def test_schema_is_the_documented_one(sweep):
    for name, columns in COLUMNS.items():
        schema = pq.read_schema(sweep[0] / f"{name}.parquet")
        assert [(schema.field(i).name, schema.field(i).type) for i in range(len(columns))] == [c[:2] for c in columns]
        assert schema.field(0).metadata[b"doc"].decode() == columns[0].doc
        assert schema.field("seed").type == "int64" and schema.field("optimizer.lr").type == "double"
        assert schema.field("objectives.numeric.weight").type == "double"


def test_docs_equal_the_code():
    found = (ROOT / "docs/DATA.md").read_text(encoding="utf-8")
    assert found == documentation(), "run: python scripts/aggregate.py --docs > docs/DATA.md"


def test_every_metric_arrives_and_null_stays_null(sweep):
    folder, runs = sweep
    table = read(folder, "metrics")
    assert set(table["run"]) == set(runs)
    raw = read_jsonl(folder / "runs" / runs[0] / "metrics.jsonl")
    mine = table[(table["run"] == runs[0]) & ~table["metric"].str.startswith("probe/")]
    assert len(mine) == sum(len(row) - 1 for row in raw)
    rewards = mine[(mine["metric"] == "reward_mean") & (mine["objective"] == "refusal")].set_index("step")["value"]
    for row in raw:
        expected = row["reward_mean/refusal"]
        assert pd.isna(rewards[row["step"]]) if expected is None else rewards[row["step"]] == expected, row["step"]
    assert rewards.isna().sum() == sum(undefined_at(step) for step in range(60)) == 3
    assert mine[mine["metric"] == "outcome/right"]["objective"].nunique() == len(OBJECTIVES)
    assert mine[mine["metric"] == "seconds/sample"]["objective"].isna().all()
    assert (table["algorithm.name"] == table["run"].str.split("_").str[0]).all()


def test_cosines_have_each_pair_once_with_norms(sweep):
    folder, runs = sweep
    table = read(folder, "cosines")
    assert (table["objective_i"] < table["objective_j"]).all()
    raw = read_jsonl(folder / "runs" / runs[0] / "probe" / "probe.jsonl")
    mine = table[table["run"] == runs[0]]
    assert len(mine) == 3 * len(raw)
    pair = mine[(mine["objective_i"] == "brevity") & (mine["objective_j"] == "refusal")].set_index("step")
    for row in raw:
        expected = row["cosine"][0][2]
        assert (
            pd.isna(pair.loc[row["step"], "cosine"])
            if expected is None
            else pair.loc[row["step"], "cosine"] == expected
        )
        assert pair.loc[row["step"], "norm_j"] == row["norm"]["refusal"]
    metrics = read(folder, "metrics")
    norms = metrics[(metrics["run"] == runs[0]) & (metrics["metric"] == "probe/norm")]
    assert len(norms) == 3 * len(raw) and (norms["layer"] == "last").all()


def test_evals_hold_estimates_outcomes_and_diversity(sweep):
    folder, runs = sweep
    table = read(folder, "evals")
    mine = table[(table["run"] == runs[0]) & (table["measure"] == "reward")]
    assert len(mine) == 3 * len(OBJECTIVES)
    policy = mine[(mine["model"] == "policy") & (mine["objective"] == "numeric")].iloc[0]
    expected = read_json(folder / "runs" / runs[0] / "eval.json")["objectives"]["numeric"]["policy"]
    assert {key: policy[key] for key in expected} == expected and policy["right"] == 120
    verdict = table[(table["measure"] == "degenerate") & (table["model"] == "policy")].iloc[0]
    assert verdict["mean"] == 1.0 and "unique_fraction" in verdict["note"]


def test_samples_are_thinned_without_randomness(sweep):
    folder, runs = sweep
    table = read(folder, "samples")
    mine = table[table["run"] == runs[0]]
    train = mine[mine["source"] == "train"]
    assert train.groupby("step").size().max() == SAMPLE_ROWS and train["step"].nunique() <= SAMPLE_STEPS
    assert {0, 59} <= set(train["step"]) and {0, 31} <= set(train["row"])
    assert (mine[mine["source"] == "base"].shape[0]) == HELDOUT_ROWS
    assert NASTY in set(mine["completion"])
    assert mine["reward/refusal"].isna().any() and mine["reward/brevity"].notna().all()
    before = (folder / "samples.parquet").read_bytes()
    aggregate(folder.parent, "demo", runs)
    assert (folder / "samples.parquet").read_bytes() == before


def test_thin_keeps_first_and_last():
    rows = [{"i": i} for i in range(10)]
    assert [row["i"] for row in thin(rows, 4)] == [0, 3, 6, 9] and thin(rows, 10) == rows


def test_parameters_of_different_algorithms_are_null_where_absent(tmp_path):
    write_sweep(tmp_path, seeds=(0,), steps=3)
    aggregate(tmp_path, "demo")
    table = read(tmp_path / "demo", "evals").set_index("algorithm.name")
    assert (table.loc["reinforce", "algorithm.baseline"] == "ema").all()
    assert table.loc["grpo", "algorithm.baseline"].isna().all()


def test_flatten_keeps_scalars_only():
    assert flatten({"a": {"b": 1, "c": [1]}, "d": None, "e": {}}) == {"a.b": 1, "d": None}


def test_one_objective_or_no_probe_gives_an_empty_typed_table(tmp_path):
    write_sweep(tmp_path, "single", objectives=("numeric",), steps=6)
    write_sweep(tmp_path, "unprobed", probe_every=0, steps=6)
    for name in ("single", "unprobed"):
        aggregate(tmp_path, name)
        assert len(read(tmp_path / name, "cosines")) == 0
        assert pq.read_schema(tmp_path / name / "cosines.parquet").field("cosine").type == "double"


@pytest.mark.parametrize("file", ["config.json", "metrics.jsonl", "probe/probe.jsonl", "eval.json", "samples.jsonl"])
def test_a_missing_file_names_run_and_file(tmp_path, file):
    run = write_sweep(tmp_path, algorithms=("grpo",), seeds=(0,), steps=3)[0]
    (tmp_path / "demo" / "runs" / run / file).unlink()
    with pytest.raises(ValueError, match=f"run {run}: expected the file .*{file}; found none"):
        aggregate(tmp_path, "demo", [run])


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("metrics.jsonl", {"loss": "nan"}, "loss: expected a number or null; found 'nan'"),
        ("metrics.jsonl", {"step": 2}, "expected steps that rise; found 2 after 2"),
        ("probe/probe.jsonl", {"n_rows": "many"}, "expected files as docs/ARCHITECTURE.md"),
    ],
)
def test_a_malformed_file_names_the_run(tmp_path, file, change, message):
    run = write_sweep(tmp_path, algorithms=("grpo",), seeds=(0,), steps=4, probe_every=1)[0]
    path = tmp_path / "demo" / "runs" / run / file
    rows = read_jsonl(path)
    write_jsonl(path, [*rows[:-1], rows[-1] | change])
    with pytest.raises(ValueError, match=message):
        aggregate(tmp_path, "demo", [run])


def test_a_missing_key_names_run_and_key(tmp_path):
    run = write_sweep(tmp_path, algorithms=("grpo",), seeds=(0,), steps=4)[0]
    path = tmp_path / "demo" / "runs" / run / "eval.json"
    found = read_json(path)
    del found["outcomes"]
    write_json(path, found)
    with pytest.raises(ValueError, match=f"run {run}: .*no key 'outcomes'"):
        aggregate(tmp_path, "demo", [run])


def test_command_line_without_torch(tmp_path):
    runs = write_sweep(tmp_path, seeds=(0,), steps=3)
    program = f"import runpy, sys; sys.argv = {['aggregate', '--results', str(tmp_path), '--sweep', 'demo']!r}\n"
    program += f"runpy.run_path({str(ROOT / 'scripts/aggregate.py')!r}, run_name='__main__')\n"
    program += "import json; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) is False
    (tmp_path / "demo" / "runs" / runs[0] / "eval.json").unlink()
    script = [sys.executable, str(ROOT / "scripts/aggregate.py"), "--results", str(tmp_path), "--sweep", "demo"]
    failed = subprocess.run(script, capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and f"run {runs[0]}" in failed.stderr and "Traceback" not in failed.stderr


def test_pairs_of_steps_runs_and_groups(sweep):
    folder, runs = sweep
    pairs, cosines = read(folder, "pairs"), read(folder, "cosines")
    keys = ["objective_i", "objective_j"]
    at_run = pairs[pairs["level"] == "run"].set_index(["run", *keys])
    assert len(at_run) == 3 * len(runs) and (pairs["n_runs"] == 1)[pairs["level"] != "group"].all()
    # The mean of the steps' plain cosines, recomputed from the saved Grams, is that of the probe's own rows.
    expected = cosines.groupby(["run", *keys])["cosine"].agg(["mean", "count"])
    assert at_run["cosine"].to_dict() == pytest.approx(expected["mean"].to_dict(), abs=1e-5)
    assert (at_run["n_steps"] == expected["count"].reindex(at_run.index)).all()
    steps = pairs[pairs["level"] == "step"].set_index(["run", "step", *keys])["cosine"].dropna()
    assert steps.to_dict() == pytest.approx(
        cosines.set_index(["run", "step", *keys])["cosine"].dropna().to_dict(), abs=1e-5
    )
    groups = pairs[pairs["level"] == "group"]
    assert groups["run"].isna().all() and groups["seed"].isna().all() and (groups["n_runs"] == 2).all()
    assert (groups["first_run"].str.split("_").str[0] == groups["algorithm.name"]).all()
    total = at_run.groupby(["first_run", *keys])["n_steps"].sum()
    assert (groups.set_index(["first_run", *keys])["n_steps"] == total.reindex(total.index)).all()


def test_planted_pairs_get_their_verdict(sweep):
    """brevity pulls with refusal, numeric strongly against it; q is Benjamini-Hochberg of the group's p."""
    pairs = read(sweep[0], "pairs")
    groups = pairs[pairs["level"] == "group"].set_index(["algorithm.name", "objective_i", "objective_j"])
    for algorithm in ("grpo", "reinforce"):
        assert groups.loc[(algorithm, "brevity", "refusal"), "verdict"] == "synergy"
        assert groups.loc[(algorithm, "numeric", "refusal"), "verdict"] == "conflict"
        mine = groups.loc[algorithm]
        assert mine["q"].tolist() == pytest.approx(q_values(mine["p"].to_numpy()).tolist())
        assert (mine["low"] <= mine["unbiased"]).all() and (mine["unbiased"] <= mine["high"]).all()
    holes = pairs[(pairs["level"] == "step") & (pairs["step"] == 10) & (pairs["objective_j"] == "refusal")]
    assert len(holes) == 8 and holes[["cosine", "p", "q", "alignment"]].isna().all().all()
    assert holes["verdict"].isna().all() and (holes["n_tested"] == 0).all()


def test_conflict_fraction_stands_beside_its_null(sweep):
    folder, _ = sweep
    table, metrics = read(folder, "conflict"), read(folder, "metrics")
    assert table["level"].value_counts().to_dict() == {"run": 4, "group": 2}
    raw = metrics[metrics["metric"] == "probe/conflict_fraction"].groupby("run")["value"].mean()
    found = table[table["level"] == "run"].set_index("run")["conflict_fraction"]
    assert found.to_dict() == pytest.approx(raw.to_dict())
    assert ((table["null_low"] <= table["null"]) & (table["null"] <= table["null_high"])).all()


def test_rewards_covary_with_the_advantage_that_trains(sweep):
    folder, runs = sweep
    metrics = read(folder, "metrics")
    mine = metrics[(metrics["run"] == runs[0]) & (metrics["step"] == 5)].set_index(["metric", "objective"])["value"]
    with np.load(folder / "runs" / runs[0] / "probe" / "gram_step0005.npz") as saved:
        reward, advantage = saved["rewards_BK"][:, 1].reshape(-1, 8), saved["advantages_BK"].sum(axis=1).reshape(-1, 8)
    expected = np.mean([np.cov(r, a)[0, 1] for r, a in zip(reward, advantage, strict=True)])
    assert mine["probe/advantage_covariance", "numeric"] == pytest.approx(expected)
    assert abs(mine["probe/advantage_correlation", "numeric"]) <= 1


def test_weights_of_the_step_make_the_advantage(tmp_path):
    run = write_sweep(tmp_path, algorithms=("grpo",), seeds=(0,), steps=6)[0]
    path = tmp_path / "demo" / "runs" / run / "metrics.jsonl"
    off = {f"weight/{k}": 0.0 for k in OBJECTIVES} | {"weight/numeric": 2.0}
    write_jsonl(path, [row | off for row in read_jsonl(path)])
    aggregate(tmp_path, "demo", [run])
    metrics = read(tmp_path / "demo", "metrics")
    found = metrics[(metrics["metric"] == "probe/advantage_correlation") & (metrics["objective"] == "numeric")]
    assert found["value"].to_numpy() == pytest.approx(np.ones(2))  # its own advantage, centred


def test_grams_of_other_objectives_are_refused(tmp_path):
    run = write_sweep(tmp_path, algorithms=("grpo",), seeds=(0,), steps=2)[0]
    path = tmp_path / "demo" / "runs" / run / "probe" / "gram_step0000.npz"
    with np.load(path) as saved:
        arrays = dict(saved)
    np.savez(path, **(arrays | {"objectives": np.array(["a", "b", "c"])}))
    with pytest.raises(
        ValueError, match=r"gram_step0000.npz: expected objectives \['brevity'.*found \['a', 'b', 'c'\]"
    ):
        aggregate(tmp_path, "demo", [run])
    path.unlink()
    with pytest.raises(ValueError, match=r"expected probe/gram_stepXXXX\.npz; found none"):
        aggregate(tmp_path, "demo", [run])
