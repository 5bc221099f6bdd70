"""What measuring gradients costs: a step that is probed over the same step that is not.

    python benchmarks/probe_cost.py [--steps 8]

Two trainers of the same run take the same steps in turn, one probing each of them. Writing the Gram,
cosines and completions to disk is part of the probed step.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

import common


def compare(count: int, scope: str, steps: int) -> list[str]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = common.write_prompts(folder)
        changes = {"objectives": common.objectives(count)}
        configs = {
            "plain": common.run_config(files, **changes),
            "probed": common.run_config(files, **changes, probe={"every": 1, "scope": scope}),
        }
        sides = {
            name: common.stepper(common.trainer([config], folder, common.policy(0.0)))
            for name, config in configs.items()
        }
        seconds = common.interleaved(sides, steps)
    plain, probed = seconds["plain"], seconds["probed"]
    excess = [100 * (r - 1) for r in common.ratios(probed, plain)]
    return [f"K={count}", scope, f"{median(plain):.3f}", f"{median(probed):.3f}", common.spread(excess, 1)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="steps timed on each side, after one of warm-up")
    arguments = parser.parse_args()
    rows = [
        compare(count, scope, arguments.steps)
        for scope in ("last_block", "per_layer", "adapter")
        for count in ((3, 8) if scope == "last_block" else (3,))
    ]
    print(common.table(["objectives", "scope", "plain s", "probed s", "excess %"], rows))
