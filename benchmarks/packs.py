"""A pack of 8 runs in one process against 8 trainers one after another in one process.

    python benchmarks/packs.py [--rounds 6]

Two shapes: 32 rows of 160 tokens, where arithmetic counts, and 2 rows of 32, where overhead does. No row
ends early. The runs differ in seed and learning rate, as in a sweep.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import common

RUNS = 8


def compare(rows: int, generations: int, prompt_tokens: int, new_tokens: int, rounds: int) -> list[str]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = common.write_prompts(folder, tokens=prompt_tokens)
        shape = {"batch_size": rows, "num_generations": generations, "max_new_tokens": new_tokens}
        configs: list[Any] = [
            common.run_config(files, rollout=shape, seed=seed, optimizer={"lr": 1e-4 * (1 + seed)})
            for seed in range(RUNS)
        ]
        pack = common.stepper(common.trainer(configs, folder, common.policy(0.0)))
        alone = [common.stepper(common.trainer([c], folder, common.policy(0.0))) for c in configs]
        seconds = common.interleaved({"alone": lambda: sum(step() for step in alone), "pack": pack}, rounds)
    ratio = common.ratios(seconds["alone"], seconds["pack"])
    name = f"{rows} x {prompt_tokens + new_tokens}"
    return [name, f"{median(seconds['alone']):.3f}", f"{median(seconds['pack']):.3f}", common.spread(ratio)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="steps of all runs timed on each side")
    arguments = parser.parse_args()
    rows = [compare(32, 16, 32, 128, arguments.rounds), compare(2, 2, 8, 24, 4 * arguments.rounds)]
    print(common.table(["rows x tokens", f"{RUNS} alone s", f"pack of {RUNS} s", "alone / pack"], rows))
