"""Fake run folders as docs/ARCHITECTURE.md describes them: rewards that rise, a pair in conflict, holes.

`python tests/fake_runs.py FOLDER` writes the sweep `demo` there, to look at a report without training.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.config import RunConfig
from gradlab.store import digest, read_jsonl, write_json, write_jsonl, write_text

NASTY = "<script>alert(1)</script> «naïve» 日本語 🙂 </script><!-- {{ 7*7 }}"
OBJECTIVES = ("brevity", "numeric", "refusal")


def write_sweep(
    results: Path,
    name: str = "demo",
    algorithms: tuple[str, ...] = ("grpo", "reinforce"),
    seeds: tuple[int, ...] = (0, 1),
    steps: int = 60,
    objectives: tuple[str, ...] = OBJECTIVES,
    probe_every: int = 5,
    scope: str = "last_block",
    difference: bool = True,
    alone: bool = False,
) -> list[str]:
    """Write `results/<name>/`; returns the run ids. `alone`: a variant for each objective, the others' weights 0."""
    runs = []
    for algorithm in algorithms:
        for seed, trained in product(seeds, objectives if alone else (None,)):
            weights = {k: float(trained in (None, k)) for k in objectives}
            config = RunConfig.model_validate({
                "model": {"id": "base/tiny"},
                "algorithm": {"name": algorithm},
                "objectives": {k: {"weight": weights[k]} for k in objectives},
                "data": {"train": ["toy_data/train.jsonl"], "heldout": ["toy_data/heldout.jsonl"]},
                "probe": {"every": probe_every, "scope": scope},
                "steps": steps,
                "seed": seed,
            }).model_dump(mode="json")  # fmt: skip
            run = f"{algorithm}_lora_s{seed}-{digest(config)}"
            write_run(results / name / "runs" / run, config, difference)
            varies = {"algorithm.name": algorithm, "seed": seed}
            if alone:
                varies |= {"variant": trained} | {f"objectives.{k}.weight": w for k, w in weights.items()}
            runs.append({"run": run, "varies": varies})
    write_json(
        results / name / "sweep.json",
        {"name": name, "title": f"Fake sweep {name}", "description": "Numbers made up by a test.", "runs": runs},
    )
    return [run["run"] for run in runs]


def write_run(folder: Path, config: dict[str, Any], difference: bool = True) -> None:
    labels = sorted(config["objectives"])
    rng = np.random.default_rng([config["seed"], len(config["algorithm"]["name"])])
    write_json(folder / "config.json", config)
    write_json(folder / "provenance.json", {
        "versions": {"python": "3.12.3", "torch": "2.13.0", "gradlab": "0.1.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567", "git_dirty": False,
        "code_digest": "1a2b3c4d", "config_digest": digest(config), "seed": config["seed"], "device": "cpu",
        "started": "2026-01-02T03:04:05+00:00", "seconds": 71.5,
    })  # fmt: skip
    metrics = [_metrics_row(step, config, labels, rng) for step in range(config["steps"])]
    write_jsonl(folder / "metrics.jsonl", metrics)
    steps = sorted({*range(0, config["steps"], config["logging_steps"]), config["steps"] - 1})
    samples = [_sample(row, labels, rng) | {"step": s, "group": row // 8, "advantages": dict.fromkeys(labels, 0.5)}
               for s in steps for row in range(config["rollout"]["batch_size"])]  # fmt: skip
    write_jsonl(folder / "samples.jsonl", samples)
    if every := config["probe"]["every"]:
        layers = {"last_block": ["last"], "adapter": ["all"], "per_layer": ["0", "1", "2", "10"]}[
            config["probe"]["scope"]
        ]
        rows = [row for s in range(0, config["steps"], every) for row in _probe(folder, s, layers, config, labels, rng)]
        write_jsonl(folder / "probe" / "probe.jsonl", rows)
    write_json(folder / "eval.json", _evaluation(labels, rng, metrics, difference))
    heldout = [_sample(row, labels, rng) | {"model": model} for model in ("policy", "base") for row in range(100)]
    write_jsonl(folder / "eval_samples.jsonl", heldout)
    write_json(folder / "outcome.json", outcome("finished", config["steps"], config["steps"], None))


def outcome(status: str, steps_done: int, steps: int, reason: str | None) -> dict[str, Any]:
    return {"status": status, "steps_done": steps_done, "steps": steps, "reason": reason}


def diverge(folder: Path, step: int, reason: str = "the loss is not finite") -> None:
    """Make a fake run's folder what training and evaluation leave when step `step` diverges."""
    steps = len(read_jsonl(folder / "metrics.jsonl"))
    for file in ("metrics.jsonl", "samples.jsonl", "probe/probe.jsonl"):
        if (folder / file).exists():
            write_jsonl(folder / file, [row for row in read_jsonl(folder / file) if row["step"] < step])
    for gram in folder.glob("probe/gram_step*.npz"):
        if int(gram.stem.removeprefix("gram_step")) >= step:
            gram.unlink()
    write_json(folder / "eval.json", {"failed": reason})
    write_text(folder / "eval_samples.jsonl", "")
    write_json(folder / "outcome.json", outcome("diverged", step, steps, reason))


def undefined_at(step: int) -> bool:
    """Steps at which the last objective has no signal."""
    return step % 20 == 10


def _metrics_row(step: int, config: dict[str, Any], labels: list[str], rng: np.random.Generator) -> dict[str, Any]:
    done = step / config["steps"]
    means = {
        k: float(0.2 + 0.1 * i + (0.4 + 0.1 * config["seed"]) * done + rng.normal(0, 0.05))
        for i, k in enumerate(labels)
    }
    share = rng.dirichlet(np.full(len(labels), 5.0))
    row: dict[str, Any] = {"step": step, "reward_mean": float(sum(means.values()))}
    for k, part in zip(labels, share, strict=True):
        hole = undefined_at(step) and k == labels[-1]
        row |= {
            f"reward_mean/{k}": None if hole else means[k], f"reward_std/{k}": None if hole else 0.3,
            f"reward_n/{k}": 0 if hole else 32,
            f"outcome/{k}/right": 0 if hole else 20, f"outcome/{k}/wrong": 0 if hole else 8,
            f"outcome/{k}/unparseable": 0 if hole else 4, f"outcome/{k}/graded": 0,
            f"advantage_variance_share/{k}": None if step == 10 else float(part),
        }  # fmt: skip
    phases = {"sample": 0.3, "score": 0.01, "forward_backward": 0.25, "probe": 0.05 if step % 5 == 0 else 0.0}
    return row | {
        "zero_variance_group_fraction": 0.25, "kl_nats_per_token": None, "entropy_nats_per_token": 2.0 - done,
        "clip_fraction": 0.0, "ratio_mean": 1.0, "loss": float(rng.normal(0, 0.01)),
        "grad_norm": float(rng.uniform(0.5, 1)), "lr": 1e-3,
        "completion_tokens_mean": 20.0 - 5 * done, "ended_fraction": 0.9, "epoch": 0,
        **{f"seconds/{k}": v * float(rng.uniform(0.9, 1.1)) for k, v in phases.items()}, "seconds/step": 0.7,
    }  # fmt: skip


def _probe(
    folder: Path, step: int, layers: list[str], config: dict[str, Any], labels: list[str], rng: np.random.Generator
) -> list[dict]:
    """The Gram file of one step and its rows; the first objective pulls with the last, the second against it."""
    k, rows = len(labels), config["rollout"]["batch_size"]
    group_B = np.arange(rows) // config["rollout"]["num_generations"]
    scores_LBP = rng.normal(size=(len(layers), rows, 40))
    direction_KP = rng.normal(0, 0.3, (k, 40))
    direction_KP[0] += direction_KP[-1] if k > 1 else 0
    if k > 2:
        direction_KP[1] -= 1.5 * direction_KP[-1]
    rewards_BK = scores_LBP.mean(axis=0) @ direction_KP.T + rng.normal(0, 0.5, (rows, k))
    if undefined_at(step):
        rewards_BK[:, -1] = 0.5
    means_GK = rewards_BK.reshape(-1, config["rollout"]["num_generations"], k).mean(axis=1)
    advantages_BK = rewards_BK - means_GK[group_B]
    gram_LBB = (scores_LBP @ scores_LBP.transpose(0, 2, 1)).astype(np.float32)
    (folder / "probe").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "probe" / f"gram_step{step:04d}.npz", gram_LBB=gram_LBB, layers=np.array(layers),
                        objectives=np.array(labels), advantages_BK=advantages_BK, rewards_BK=rewards_BK,
                        group_B=group_B)  # fmt: skip
    return [
        _probe_row(step, layer, config, labels, advantages_BK.T @ gram_BB.astype(float) @ advantages_BK)
        for layer, gram_BB in zip(layers, gram_LBB, strict=True)
    ]


def _probe_row(step: int, layer: str, config: dict[str, Any], labels: list[str], gram: np.ndarray) -> dict:
    k = len(labels)
    norm = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore"):
        cosine = gram / np.outer(norm, norm)
    pairs = cosine[np.triu_indices(k, 1)]
    defined = pairs[np.isfinite(pairs)]
    others = np.where(np.eye(k, dtype=bool), np.nan, cosine)
    synergy = [float(row[np.isfinite(row)].mean()) if np.isfinite(row).any() else None for row in others]
    return {
        "step": step, "scope": config["probe"]["scope"], "layer": layer, "space": "factors", "n_rows": 32,
        "objectives": labels, "cosine": [[float(c) if np.isfinite(c) else None for c in row] for row in cosine],
        "norm": dict(zip(labels, norm.tolist(), strict=True)), "net_synergy": dict(zip(labels, synergy, strict=True)),
        "conflict_fraction": float((defined < 0).mean()) if len(defined) else None,
        "n_undefined_pairs": len(pairs) - len(defined), "tau": 0.0,
    }  # fmt: skip


def _evaluation(labels: list[str], rng: np.random.Generator, metrics: list[dict], difference: bool) -> dict[str, Any]:
    def estimate(mean: float, n: int = 200) -> dict[str, Any]:
        return {"mean": mean, "low": mean - 0.06, "high": mean + 0.06, "n": n}

    gain = {k: float(rng.normal(0.3, 0.03)) for k in labels}
    outcomes = {k: {"right": 120, "wrong": 60, "unparseable": 20, "graded": 0} for k in labels}
    diversity = {"n": 200, "unique_fraction": 0.8, "jaccard_mean": 0.2, "distinct_1": 0.1, "distinct_2": 0.3,
                 "compression_ratio": 3.0, "degenerate": False, "reasons": []}  # fmt: skip
    collapsed = diversity | {"degenerate": True, "reasons": ["unique_fraction 0.1 < 0.2"]}
    keys = ["step", "reward_mean", *(f"reward_mean/{k}" for k in labels)]
    return {
        "n_prompts": 50, "samples_per_prompt": 4, "n_samples": 200, "seed": 1234,
        "objectives": {k: {"policy": estimate(0.3 + g), "base": estimate(0.3),
                           "difference": estimate(g) if difference else None} for k, g in gain.items()},
        "outcomes": {"policy": outcomes, "base": outcomes},
        "diversity": {"policy": collapsed, "base": diversity},
        "completion_tokens_mean": {"policy": 15.0, "base": 20.0},
        "ended_fraction": {"policy": 0.9, "base": 0.8},
        "reward_history": [{key: row[key] for key in keys} for row in metrics],
    }  # fmt: skip


def _sample(row: int, labels: list[str], rng: np.random.Generator) -> dict[str, Any]:
    text = NASTY if row == 0 else f"Once upon a time number {int(rng.integers(1000))} was happy."
    return {
        "row": row, "example": f"story-{row:03d}", "task": "story", "prompt": "Tell <b>a</b> story:",
        "completion": text, "ended": True, "completion_tokens": 20,
        "rewards": {k: None if k == labels[-1] and row % 4 == 1 else float(rng.random()) for k in labels},
        "outcomes": {k: None if k == labels[-1] and row % 4 == 1 else "right" for k in labels},
    }  # fmt: skip


if __name__ == "__main__":
    write_sweep(Path(sys.argv[1]), steps=int(sys.argv[2]) if len(sys.argv) > 2 else 60)
