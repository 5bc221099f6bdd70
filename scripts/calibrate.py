"""Measure the shapes of a sweep in packs of several sizes here, and write which size `pack: auto` takes.

python scripts/calibrate.py mine --results results
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gradlab.command_line import run
from gradlab.explain import validate
from gradlab.gpu.devices import gpus
from gradlab.packs.planner import alike, shape_name
from gradlab.packs.size import machine, suggest
from gradlab.store import write_json
from gradlab.sweep import load
from gradlab.sweep_file import WorkflowConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="name of a file in config/sweeps, without .yaml")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of all results")
    parser.add_argument("--fixed", default="{}", help="JSON or YAML mapping that replaces fixed values")
    parser.add_argument("--grid", default="{}", help="JSON or YAML mapping that replaces or adds axes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="pack sizes")
    parser.add_argument("--rounds", type=int, default=2, help="times that all sizes are measured in turn")
    parser.add_argument("--steps", type=int, default=3, help="steps measured of each size in a round")
    arguments = parser.parse_args()
    chosen = validate(WorkflowConfig, {"sweeps": [arguments.sweep], "fixed": arguments.fixed, "grid": arguments.grid})
    sweep = load(arguments.sweep, chosen.fixed, chosen.grid)
    sizes = sorted({1, *arguments.sizes})

    from gradlab.calibrate import calibrate  # torch

    shapes = []
    for group in alike(point for point in sweep.runs.values() if point.config.adapter.kind != "full"):
        rows = calibrate(
            [point.config for point in group], arguments.results / "base", sizes, arguments.rounds, arguments.steps
        )
        pack = suggest({int(row["pack"]): row["runs_per_second"] for row in rows})
        shapes.append({"shape": shape_name(group[0].config), "like": group[0].id, "pack": pack, "measured": rows})
        print(f"{len(group)} runs like {group[0].id}: {f'packs of {pack}' if pack > 1 else 'alone'}")
        for row in rows:
            gain = row["runs_per_second"] / rows[0]["runs_per_second"]
            print(
                f"  {row['pack']:>3.0f} together: {row['runs_per_second']:8.2f} steps/s, {gain:5.2f} times, "
                f"{row['memory_gib']:.2f} GiB"
            )
    write_json(arguments.results / arguments.sweep / "calibration.json", {"machine": machine(gpus()), "shapes": shapes})


if __name__ == "__main__":
    run(main)
