"""Expand a sweep: list its runs, or write the table that aggregation and the report read.

python scripts/sweep_table.py demo --grid '{"seed": [1, 2, 3]}'
"""

from __future__ import annotations

import argparse

from gradlab.command_line import run
from gradlab.explain import validate
from gradlab.store import write_json
from gradlab.sweep import load
from gradlab.sweep_file import WorkflowConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="name of a file in config/sweeps, without .yaml")
    parser.add_argument("--fixed", default="{}", help="JSON or YAML mapping that replaces fixed values")
    parser.add_argument("--grid", default="{}", help="JSON or YAML mapping that replaces or adds axes")
    parser.add_argument("--out", help="write the table of runs as JSON here (default: print the run ids)")
    arguments = parser.parse_args()
    chosen = validate(WorkflowConfig, {"sweeps": [arguments.sweep], "fixed": arguments.fixed, "grid": arguments.grid})
    sweep = load(arguments.sweep, chosen.fixed, chosen.grid)
    if arguments.out:
        write_json(arguments.out, sweep.table())
    else:
        print("\n".join(sweep.runs))


if __name__ == "__main__":
    run(main)
