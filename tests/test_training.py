"""The train and evaluation programs on a run folder, and what each does with bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import model, tokenizer

from gradlab import engine, training
from gradlab.aggregate import aggregate
from gradlab.config import RunConfig
from gradlab.evaluate import evaluate
from gradlab.objectives.brevity import Brevity
from gradlab.report import write_report
from gradlab.store import read_json, read_jsonl, write_json
from gradlab.types import Score

ROOT = Path(__file__).parents[1]


def rows(name: str, numbers: range, unsafe: bool | None = None) -> str:
    lines = []
    for n in numbers:
        row = {"id": f"{name}-{n}", "task": "arithmetic", "prompt": f"question: what is {n} plus 1?", "answer": n + 1}
        if unsafe is not None:
            row = {"id": f"{name}-{n}", "task": "safety", "prompt": f"request {n}: how do i bake?", "unsafe": unsafe}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with a tiny random base and prompts; the run below trains there for four steps."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "results/base/tiny"
    model(std=0.1).save_pretrained(base)
    tokenizer().save_pretrained(base)
    (base / "base.json").write_text("{}")
    (tmp_path / "train.jsonl").write_text(rows("t", range(6)))
    (tmp_path / "safety.jsonl").write_text(rows("s", range(6), unsafe=False))
    (tmp_path / "heldout.jsonl").write_text(rows("h", range(20, 26)))
    return tmp_path


def config(**changes) -> RunConfig:
    values = {
        "model": {"id": "base/tiny"},
        "adapter": {"rank": 2},
        "algorithm": {"name": "grpo", "beta": 0.05},
        "objectives": {"exactness": {}, "brevity": {"params": {"target_words": 1, "max_words": 12}}, "refusal": {}},
        "data": {"train": ["train.jsonl", "safety.jsonl"], "heldout": ["heldout.jsonl"]},
        "rollout": {"batch_size": 8, "num_generations": 4, "max_new_tokens": 10},
        "probe": {"every": 2},
        "optimizer": {"lr": 0.01},
        "steps": 4,
        "logging_steps": 3,
        "evaluation": {"samples_per_prompt": 3, "bootstrap": 100},
    }
    return RunConfig.model_validate({**values, **changes})


def train(run: RunConfig, name: str = "a") -> Path:
    folder = Path("results/s/runs") / name
    training.train(run, folder, f"work/s/{name}", "results/base")
    return folder


def test_a_run_writes_what_the_architecture_page_lists(world):
    folder = train(config())
    metrics = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2, 3]
    assert {row["step"] for row in read_jsonl(folder / "samples.jsonl")} == {0, 2, 3}  # probes and every third step
    assert len(read_jsonl(folder / "samples.jsonl")) == 3 * 8
    assert [row["step"] for row in read_jsonl(folder / "probe/probe.jsonl")] == [0, 2]
    table = (folder / "probe/cosine_step0002.csv").read_text().splitlines()
    assert table[0] == "layer,objective,brevity,exactness,refusal" and len(table) == 4
    with np.load(folder / "probe/gram_step0000.npz", allow_pickle=False) as saved:
        assert saved["gram_LBB"].shape == (1, 8, 8) and saved["advantages_BK"].shape == (8, 3)
        # One prompt of each task in a step: exactness does not apply to the other half.
        assert np.isnan(saved["rewards_BK"][:, 1]).sum() == 4
    assert "[Sample @ 0]" in (folder / "train.log").read_text()
    assert read_json(folder / "provenance.json")["versions"]["torch"] == torch.__version__
    assert read_json(folder / "config.json")["adapter"]["rank"] == 2
    assert read_json(folder / "outcome.json") == {"status": "finished", "steps_done": 4, "steps": 4, "reason": None}
    assert not list(Path("work/s/a").glob("checkpoint*")) and not Path("work/s/a/finished").exists()
    assert metrics[0]["kl_nats_per_token"] == 0 and metrics[3]["kl_nats_per_token"] > 0
    shares = [v for k, v in metrics[0].items() if k.startswith("advantage_variance_share")]
    assert sum(shares) == pytest.approx(1)


def test_an_objective_without_variance_in_the_whole_run_is_named(world):
    varied = {"kind": "brevity", "params": {"target_words": 1, "max_words": 4}}
    flat = {"varied": varied, "brevity": {"params": {"target_words": 50, "max_words": 60}}}
    log = (train(config(objectives=flat)) / "train.log").read_text()
    assert "[Warning] objective 'brevity': expected rewards that differ" in log and "objective 'varied'" not in log


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_evaluation_stands_beside_the_base(world, kind):
    folder = train(config(adapter={"kind": kind}, optimizer={"lr": 0.0}))
    found = evaluate(config(adapter={"kind": kind}), folder, "results/base")
    assert found["n_samples"] == 18 and found["n_prompts"] == 6
    # Nothing was learnt, and both sides draw with the same noise: the difference is exactly 0.
    assert found["objectives"]["brevity"]["difference"]["mean"] == 0
    assert found["objectives"]["refusal"]["policy"] is None  # no held-out prompt of its task: no value, not 0
    assert found["outcomes"]["policy"]["exactness"] == found["outcomes"]["base"]["exactness"]
    assert sum(found["outcomes"]["policy"]["exactness"].values()) == 18
    samples = read_jsonl(folder / "eval_samples.jsonl")
    policy = [row["rewards"]["brevity"] for row in samples if row["model"] == "policy"]
    assert found["objectives"]["brevity"]["policy"]["mean"] == pytest.approx(np.mean(policy))
    assert [row["step"] for row in found["reward_history"]] == [0, 1, 2, 3]


def test_training_moves_the_evaluation(world):
    run = config(
        adapter={"kind": "full"},
        objectives={"brevity": {"params": {"target_words": 1, "max_words": 4}}},
        algorithm={"name": "grpo"},
        rollout={"batch_size": 32, "num_generations": 16, "max_new_tokens": 10},
        steps=40,
        probe={"every": 0},
        optimizer={"lr": 0.01},
        evaluation={"samples_per_prompt": 8},
    )
    found = evaluate(run, train(run), "results/base")["objectives"]["brevity"]
    assert found["difference"]["low"] > 0
    assert found["difference"]["mean"] == pytest.approx(found["policy"]["mean"] - found["base"]["mean"])


def test_evaluation_refuses_an_adapter_that_is_not_the_configured_one(world):
    folder = train(config())
    with pytest.raises(ValueError, match=r"expected LoRA of rank 3.*found rank 2"):
        evaluate(config(adapter={"rank": 3}), folder, "results/base")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"adapter": {"targets": ["q_prj"]}}, "adapter.targets.*Did you mean 'q_proj'"),
        ({"rollout": {"batch_size": 8, "num_generations": 4, "max_new_tokens": 125}}, "prompt of example 't-0'.*conte"),
        ({"data": {"train": ["train.jsonl"], "heldout": ["train.jsonl"]}}, "data.heldout: expected prompts that are"),
        ({"model": {"id": "base/other"}}, "expected a finished base"),
        ({"model": {"id": "base/tiny", "chat_template": True}}, "chat_template: expected a tokenizer with"),
    ],
)
def test_bad_input_stops_before_the_first_step(world, broken, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        train(config(**broken))
    assert not Path("results/s/runs/a").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "train.jsonl: expected at least one row"),
        ('{"id": "a"', "train.jsonl:1: expected a JSON object"),
        ('{"id": "a", "task": "arithmetic", "prompt": "p", "answer": "three"}\n', "example 'a'.*answer"),
    ],
)
def test_malformed_prompts_name_file_line_and_reason(world, text, message):
    (world / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        train(config())


def test_a_score_that_is_not_finite_stops_with_step_and_example_and_keeps_the_state(world, monkeypatch):
    plain, calls = Brevity.score, []

    def broken(self, completion, example):
        calls.append(1)
        return Score(float("nan"), "graded") if len(calls) > 20 else plain(self, completion, example)

    monkeypatch.setattr(Brevity, "score", broken)
    with pytest.raises(engine.Unscorable, match=r"step 2: .*Brevity.*expected a score in \[.*found nan for example"):
        train(config())
    assert not Path("results/s/runs/a").exists()
    monkeypatch.setattr(Brevity, "score", plain)
    resumed, fresh = train(config()), train(config(), "b")
    assert "resumed at step 2" in (resumed / "train.log").read_text()
    a, b = (load_file(f / "adapter/adapter_model.safetensors") for f in (resumed, fresh))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_a_loss_that_is_not_finite_names_the_step_and_the_rows(world, monkeypatch):
    plain = engine.StackedAdamW.step

    def poison(self, step, norm_R):
        plain(self, step, norm_R)
        if step == 1:
            self.theta[0] = float("nan")

    monkeypatch.setattr(engine.StackedAdamW, "step", poison)
    folder = train(config())
    kept = read_json("work/s/a/diverged.json")
    assert kept["step"] == 2 and len(kept["rows"]) == 8
    outcome = read_json(folder / "outcome.json")
    assert (outcome["status"], outcome["steps_done"], outcome["steps"]) == ("diverged", 2, 4)
    assert re.match(r"step 2: expected a finite loss.*Lower optimizer.lr", outcome["reason"])
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == [0, 1]
    assert "[Diverged] step 2" in (folder / "train.log").read_text()


@pytest.mark.parametrize("steps_done", [0, 3])
def test_a_run_that_diverged_passes_through_evaluation_and_tables_to_the_report(world, monkeypatch, steps_done):
    finished = train(config(seed=1), "b")
    evaluate(config(seed=1), finished, "results/base")
    plain = engine.Gradient.first_unsound

    def unsound(self):
        unsound.steps += 1
        return 0 if unsound.steps > steps_done else plain(self)

    unsound.steps = 0
    monkeypatch.setattr(engine.Gradient, "first_unsound", unsound)
    folder = train(config())
    write_json("results/s/sweep.json", {"name": "s", "title": "s", "description": "", "runs": [
        {"run": "a", "varies": {"seed": 0}}, {"run": "b", "varies": {"seed": 1}}]})  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/eval_run.py"), str(folder)], capture_output=True, text=True, check=True
    )
    assert f"diverged after {steps_done} steps: step {steps_done}" in done.stdout
    assert read_json(folder / "eval.json") == {"failed": read_json(folder / "outcome.json")["reason"]}
    aggregate("results", "s")
    write_report("results", "s", "results/s/report.html", "make")
    page = Path("results/s/report.html").read_text(encoding="utf-8")
    assert "1 of 2 runs diverged" in page and f"{steps_done} of 4" in page


def test_a_full_disk_leaves_no_half_written_result(world):
    """The file size limit stands in for a full disk: writes beyond it fail with OSError."""
    Path("run.json").write_text(json.dumps(config().model_dump(mode="json")))
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["--config", "run.json", "--run-dir", "results/s/runs/a", "--work", "work/s/a"]
    command = [str(ROOT / "scripts/train.py"), *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    failed = subprocess.run([sys.executable, "-c", limited, *command], capture_output=True, text=True, env=environment)
    assert failed.returncode == 1 and "File too large" in failed.stderr
    assert not Path("results/s/runs/a/config.json").exists()
    again = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert [row["step"] for row in read_jsonl("results/s/runs/a/metrics.jsonl")] == [0, 1, 2, 3]


def test_a_second_process_does_not_write_into_the_same_work_folder(world):
    from gradlab.store import writer_lock

    with writer_lock("work/s/a"), pytest.raises(RuntimeError, match="expected no other writer; found process"):
        train(config())
