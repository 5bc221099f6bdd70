"""The same runs alone and in one pack: first-step log-probs, the first token that differs, and the learning curves.

    python benchmarks/pack_certificate.py [--base results/base/toy] [--runs 8] [--steps 60]

The runs differ in seed, rank, learning rate and algorithm. Sums of float32 are taken in another order in a pack, so
log-probs agree to rounding, and after some steps a token is sampled differently: from there on the two are different
draws of the same experiment.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from learning_curves import configuration

from gradlab import engine, models
from gradlab.config import RunConfig

ALGORITHMS = ("grpo", "rloo", "reinforce")


def pack(base: str, runs: int, steps: int) -> list[RunConfig]:
    shared = configuration(base, steps, 0)
    changes: list[dict[str, Any]] = [
        {
            "seed": seed,
            "adapter": shared.adapter.model_copy(update={"rank": (4, 8, 16)[seed % 3]}),
            "optimizer": shared.optimizer.model_copy(update={"lr": 1e-3 * (1 + seed % 2)}),
            "algorithm": {"name": ALGORITHMS[seed % 3], "beta": 0.04},
            "rollout": shared.rollout.model_copy(update={"batch_size": 16}),
            "logging_steps": 1,
        }
        for seed in range(runs)
    ]
    return [RunConfig.model_validate(shared.model_dump() | change) for change in changes]


def train(configs: Sequence[RunConfig], folder: Path) -> tuple[list[np.ndarray], list[list[list[str]]], np.ndarray]:
    """Of each run the mean reward and the completions of every step; and the first step's log-probs (N, C)."""
    seen: list[np.ndarray] = []
    plain = engine.sample

    def recording(*arguments: Any) -> Any:
        rollout = plain(*arguments)
        seen.append(rollout.logp_NC.cpu().numpy()) if not seen else None
        return rollout

    engine.sample = recording
    try:
        work = [folder / str(c.seed) for c in configs]
        trainer = engine.Trainer(configs, [""] * len(configs), work, models.load(configs[0].model))
        trainer.train()
    finally:
        engine.sample = plain
    curves, texts = [], []
    for log in trainer.logs:
        rows = [json.loads(line) for line in (log.folder / "metrics.jsonl").read_text().splitlines()]
        curves.append(np.array([row["reward_mean"] for row in rows]))
        samples = [json.loads(line) for line in (log.folder / "samples.jsonl").read_text().splitlines()]
        texts.append([[s["completion"] for s in samples if s["step"] == step] for step in range(len(rows))])
    return curves, texts, seen[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="results/base/toy", help="folder of the toy base")
    parser.add_argument("--runs", type=int, default=8, help="runs of the pack")
    parser.add_argument("--steps", type=int, default=60, help="steps of each run")
    parser.add_argument("--plain-allocator", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    configs = pack(str(Path(arguments.base).resolve()), arguments.runs, arguments.steps)
    with tempfile.TemporaryDirectory() as temporary:
        together, texts, logp = train(configs, Path(temporary) / "pack")
        rows, thirds = [], np.array_split(np.arange(arguments.steps), 3)
        for r, config in enumerate(configs):
            (alone,), (own,), first = train([config], Path(temporary) / "alone")
            size = config.rollout.batch_size
            width = min(first.shape[1], logp.shape[1])
            gap = np.abs(first[:, :width] - logp[r * size : (r + 1) * size, :width]).max()
            same = next((s for s, (a, b) in enumerate(zip(own, texts[r], strict=True)) if a != b), arguments.steps)
            rows.append((gap, same, [(together[r] - alone)[third].mean() for third in thirds]))
            print(
                f"run {r}: first-step log-probs differ by {gap:.1e}; completions are equal for {same} steps", flush=True
            )
    differences = np.array([d for _, _, d in rows])
    error = differences.std(0, ddof=1) / np.sqrt(len(rows))
    cells = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(differences.mean(0), error, strict=True)]
    print(
        common.table(
            ["largest log-prob gap", "first step that differs", "third 1", "third 2", "third 3"],
            [
                [
                    f"{max(g for g, _, _ in rows):.1e}",
                    f"{min(s for _, s, _ in rows)} to {max(s for _, s, _ in rows)}",
                    *cells,
                ]
            ],
        )
    )
