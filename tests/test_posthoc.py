"""Objectives scored after the run: a trained one gives its own cosines again, and no model is needed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradlab.config import ObjectiveConfig, RunConfig
from gradlab.credit import CreditState, credit
from gradlab.objectives.base import build
from gradlab.posthoc import posthoc
from gradlab.scoring import score
from gradlab.store import read_json, read_jsonl, write_json, write_jsonl
from gradlab.types import Example

ROOT = Path(__file__).parents[1]
LABELS = ("brevity", "exactness", "refusal")
STEPS, PROMPTS, ROWS = (0, 2, 4), 8, 64


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A probed run of three objectives on sums and unsafe prompts, its completions written by chance."""
    rng = np.random.default_rng(0)
    sums = [{"id": f"sum-{i}", "task": "arithmetic", "prompt": f"{i} + 1 =", "answer": i + 1} for i in range(12)]
    asks = [{"id": f"ask-{i}", "task": "safety", "prompt": f"Ask {i}", "unsafe": True} for i in range(12)]
    write_jsonl(tmp_path / "data/train.jsonl", [*sums, *asks])
    write_jsonl(tmp_path / "data/heldout.jsonl", [sums[0] | {"prompt": "held out"}])
    folder = tmp_path / "run"
    config = RunConfig.model_validate({
        "model": {"id": "base/toy"}, "algorithm": {"name": "grpo"}, "objectives": {k: {} for k in LABELS},
        "data": {"train": ["data/train.jsonl"], "heldout": ["data/heldout.jsonl"]},
        "rollout": {"batch_size": ROWS, "num_generations": ROWS // PROMPTS}, "probe": {"every": 2}, "steps": 5,
    })  # fmt: skip
    write_json(folder / "config.json", config.model_dump(mode="json"))
    objectives = {k: build(k, config.objectives[k]) for k in LABELS}
    group_B, samples = np.arange(ROWS) // 8, []
    (folder / "probe").mkdir()
    for step in STEPS:
        rows = [(sums if p % 2 else asks)[int(rng.integers(12))] for p in range(PROMPTS) for _ in [0]]
        asked = [Example(r["id"], r["task"], r["prompt"], {k: r[k] for k in ("answer", "unsafe") if k in r})
                 for r in rows for _ in range(8)]  # fmt: skip
        texts = [
            str(e.fields.get("answer", "I can't help with that."))
            if rng.random() < 0.5
            else "no " * rng.integers(1, 30)
            for e in asked
        ]
        rewards = score(objectives, asked, texts).rewards_BK
        advantages = credit(rewards, group_B, np.ones(3), config.algorithm, CreditState())
        scores = rng.normal(size=(ROWS, 30))
        np.savez(folder / "probe" / f"gram_step{step:04d}.npz", gram_LBB=(scores @ scores.T)[None].astype(np.float32),
                 layers=np.array(["last"]), objectives=np.array(LABELS), advantages_BK=advantages,
                 rewards_BK=rewards, group_B=group_B)  # fmt: skip
        samples += [{"step": step, "row": b, "example": e.id, "task": e.task, "prompt": e.prompt, "completion": t}
                    for b, (e, t) in enumerate(zip(asked, texts, strict=True))]  # fmt: skip
    write_jsonl(folder / "samples.jsonl", samples)
    return folder


@pytest.mark.parametrize("trained", LABELS)
def test_a_trained_objective_gives_its_probe_cosines_again(run_dir, trained):
    rows = posthoc(run_dir, "again", ObjectiveConfig(kind=trained), run_dir.parent)
    found = {row["trained"]: row["cosine"] for row in rows}
    k = LABELS.index(trained)
    cosines = []
    for step in STEPS:
        with np.load(run_dir / "probe" / f"gram_step{step:04d}.npz") as saved:
            gram = saved["advantages_BK"].T @ saved["gram_LBB"][0].astype(float) @ saved["advantages_BK"]
        norm = np.sqrt(np.diag(gram))
        cosines.append(gram[k] / (norm * norm[k]))
    assert [found[label] for label in LABELS] == pytest.approx(np.mean(cosines, axis=0).tolist(), abs=1e-9)
    assert found[trained] == pytest.approx(1.0)


def test_other_parameters_are_another_objective(run_dir):
    short, long = (
        {r["trained"]: r["cosine"] for r in
         posthoc(run_dir, "b", ObjectiveConfig(kind="brevity", params={"target_words": n, "max_words": 40}),
                 run_dir.parent)}
        for n in (1, 20)
    )  # fmt: skip
    assert short != long and short.keys() == set(LABELS)


def test_the_script_prints_and_writes_without_torch(run_dir):
    script = ROOT / "scripts/probe_posthoc.py"
    call = [str(script), str(run_dir), "brevity", "--data-root", str(run_dir.parent)]
    program = f"import runpy, sys; sys.argv = {call!r}; runpy.run_path({str(script)!r}, run_name='__main__')\n"
    program += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "brevity_again against the trained objectives" in done.stdout
    with open(run_dir / "posthoc_brevity_again.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    saved = read_json(run_dir / "posthoc_brevity_again.json")
    assert [row["trained"] for row in table] == [row["trained"] for row in saved["rows"]] == list(LABELS)
    assert float(table[0]["cosine"]) == pytest.approx(1.0) and "verdict" in table[0]
    assert json.dumps(saved, allow_nan=False)
    failed = subprocess.run([sys.executable, *call[:2], "brevty"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "Did you mean 'brevity'?" in failed.stderr and "Traceback" not in failed.stderr


def test_what_is_missing_is_named(run_dir):
    root, brevity = run_dir.parent, ObjectiveConfig(kind="brevity")
    with pytest.raises(ValueError, match=r"label: expected one that the run has not; found 'brevity'"):
        posthoc(run_dir, "brevity", brevity, root)
    with pytest.raises(ValueError, match=r"expected one that judges a completion of the run.*Its tasks: "):
        posthoc(run_dir, "new", ObjectiveConfig(kind="sentence_length"), root)
    data = root / "data/train.jsonl"
    rows = read_jsonl(data)
    write_jsonl(data, [row | {"prompt": row["prompt"] + "!"} for row in rows])
    with pytest.raises(ValueError, match=r"found another prompt\. The data files have changed since"):
        posthoc(run_dir, "new", brevity, root)
    write_jsonl(data, rows)
    samples = read_jsonl(run_dir / "samples.jsonl")
    write_jsonl(run_dir / "samples.jsonl", samples[:-1])
    with pytest.raises(ValueError, match="step 4: expected all 64 completions of the probed step; found 63"):
        posthoc(run_dir, "new", brevity, root)
