"""A folder with a tiny random base and prompts, and runs that train there in a second."""

from __future__ import annotations

import json
from pathlib import Path

import tiny

from gradlab.config import RunConfig

STEPS = 6


def config(**changes) -> RunConfig:
    values = {
        "model": {"id": "base/tiny"},
        "algorithm": {"name": "grpo", "beta": 0.05, "inner_epochs": 2},
        "objectives": {"exactness": {}, "brevity": {"params": {"target_words": 1, "max_words": 12}}},
        "data": {"train": ["train.jsonl"], "heldout": ["heldout.jsonl"]},
        "rollout": {"batch_size": 8, "num_generations": 4, "max_new_tokens": 8},
        "probe": {"every": 2},
        "optimizer": {"lr": 0.01, "schedule": "linear"},
        "steps": STEPS,
        "logging_steps": 3,
        "evaluation": {"samples_per_prompt": 1, "bootstrap": 100},
    }
    return RunConfig.model_validate({**values, **changes})


def make_world(folder: Path) -> Path:
    base = folder / "results/base/tiny"
    tiny.model(std=0.1).save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    (base / "base.json").write_text("{}")
    for name, numbers in (("train", range(9)), ("heldout", range(20, 23))):
        rows = [
            {"id": f"{name}{n}", "task": "arithmetic", "prompt": f"what is {n} plus 1?", "answer": n + 1}
            for n in numbers
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
