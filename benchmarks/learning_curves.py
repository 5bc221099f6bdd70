"""Learning curves of TRL's GRPOTrainer and of the engine on the toy base: equal within noise over seeds.

    python benchmarks/learning_curves.py [--base results/base/toy] [--steps 42] [--seeds 3]

Arithmetic prompts, rewards exactness plus brevity, GRPO with KL to the reference. The two sides share
every setting and the prompts of every step, but not their random numbers: curves agree on average.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
from datasets import Dataset
from engine_vs_trl import grpo_config, lora_config
from transformers import TrainerCallback
from trl import GRPOTrainer

from gradlab import data, engine, models
from gradlab.config import RunConfig
from gradlab.objectives.base import build

DATA = Path(__file__).parent.parent / "toy_data"


def configuration(base: str, steps: int, seed: int) -> RunConfig:
    files = {split: [str(DATA / f"arithmetic_{split}.jsonl")] for split in ("train", "heldout")}
    return RunConfig.model_validate(
        {
            "model": {"id": base},
            "algorithm": {"name": "grpo", "beta": 0.04},
            "objectives": {"exactness": {}, "brevity": {}},
            "data": files,
            "rollout": {"batch_size": 64, "num_generations": 8, "max_new_tokens": 24},
            "optimizer": {"lr": 1e-3},
            "probe": {"every": 0},
            "steps": steps,
            "seed": seed,
        }
    )


def ours(config: RunConfig, folder: Path) -> list[float]:
    """Mean reward of every step."""
    trainer = engine.Trainer([config], ["benchmark"], [folder], models.load(config.model))
    trainer.train()
    rows = (folder / "log" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["reward_mean"] for row in rows]


class Rewards(TrainerCallback):
    def __init__(self) -> None:
        self.curve: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "reward" in logs:
            self.curve.append(float(logs["reward"]))


def trl(config: RunConfig, folder: Path) -> list[float]:
    """Mean reward of every step."""
    lm = models.load(config.model)
    files, prompts = data.load_split(config.data.train), config.rollout.batch_size // config.rollout.num_generations
    examples = [e for step in range(config.steps) for e in data.prompts_at(files, step, prompts, config.seed)[0]]

    def reward(name: str) -> Any:
        objective = build(name, config.objectives[name])

        def function(prompts: list[str], completions: list[str], index: list[int], **_: Any) -> list[float]:
            return [objective(c, examples[i]).value for c, i in zip(completions, index, strict=True)]

        return function

    rewards = Rewards()
    arguments = grpo_config(config, folder / "trl", config.steps)
    arguments.logging_steps, arguments.shuffle_dataset = 1, False
    GRPOTrainer(
        model=lm.model,
        args=arguments,
        reward_funcs=[reward(name) for name in config.objectives],
        train_dataset=Dataset.from_list([{"prompt": e.prompt, "index": i} for i, e in enumerate(examples)]),
        processing_class=lm.tokenizer,
        peft_config=lora_config(config),
        callbacks=[rewards],
    ).train()
    return rewards.curve


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="results/base/toy", help="folder of the base model")
    parser.add_argument("--steps", type=int, default=42)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    base = str(Path(arguments.base).resolve())
    curves: dict[str, list[list[float]]] = {"TRL": [], "gradlab": []}
    for seed in range(arguments.seeds):
        for name, side in (("TRL", trl), ("gradlab", ours)):
            with tempfile.TemporaryDirectory() as temporary:
                curves[name].append(side(configuration(base, arguments.steps, seed), Path(temporary)))
    thirds = {
        name: np.array([[part.mean() for part in np.array_split(curve, 3)] for curve in runs])
        for name, runs in curves.items()
    }
    rows = [
        [name, *(f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(x.mean(0), x.std(0, ddof=1), strict=True))]
        for name, x in thirds.items()
    ]
    gap = thirds["gradlab"] - thirds["TRL"]  # by seed: the same prompts
    error = gap.std(0, ddof=1) / np.sqrt(len(gap))
    rows.append(
        ["difference (± standard error)", *(f"{d:+.3f} ± {e:.3f}" for d, e in zip(gap.mean(0), error, strict=True))]
    )
    print(common.table(["mean reward (± sd over seeds)", *(f"third {i}" for i in (1, 2, 3))], rows))
