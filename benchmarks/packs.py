"""Throughput against pack size: R runs in one process, over the same runs one after another in one process.

    python benchmarks/packs.py [--rounds 8]

Shapes from 2 rows of 32 tokens, where overhead counts, to 32 rows of 160, where arithmetic does. No row ends early.
The runs differ in seed and learning rate, as in a sweep. Start-up is left out; `startup` in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import common

SHAPES = [(2, 2, 8, 24), (4, 4, 8, 24), (8, 8, 8, 24), (16, 8, 8, 24), (8, 8, 32, 128), (32, 16, 32, 128)]
"""Rows, generations, prompt tokens, new tokens."""


def curve(shape: tuple[int, int, int, int], sizes: Sequence[int], rounds: int) -> list[str]:
    rows, generations, prompt_tokens, new_tokens = shape
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = common.write_prompts(folder, tokens=prompt_tokens)
        rollout = {"batch_size": rows, "num_generations": generations, "max_new_tokens": new_tokens}
        configs: list[Any] = [
            common.run_config(files, rollout=rollout, seed=seed, optimizer={"lr": 1e-4 * (1 + seed)})
            for seed in range(max(sizes))
        ]
        packs = {str(n): common.stepper(common.trainer(configs[:n], folder, common.policy(0.0))) for n in [1, *sizes]}
        seconds = common.interleaved(packs, rounds)
    found = [common.spread([n * r for r in common.ratios(seconds["1"], seconds[str(n)])]) for n in sizes]
    return [f"{rows} x {prompt_tokens + new_tokens}", f"{1e3 * median(seconds['1']):.0f}", *found]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="steps timed of each pack")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4, 8, 16], help="pack sizes")
    arguments = parser.parse_args()
    rows = [curve(shape, arguments.sizes, arguments.rounds) for shape in SHAPES]
    print(common.table(["rows x tokens", "alone ms", *(f"pack of {n}" for n in arguments.sizes)], rows))
