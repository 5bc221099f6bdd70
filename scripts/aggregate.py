"""Collect the runs of one sweep into its Parquet tables (docs/DATA.md)."""

from __future__ import annotations

import argparse

from gradlab.aggregate import aggregate, documentation
from gradlab.command_line import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", default="results", help="folder of all sweeps")
    parser.add_argument("--sweep", help="name of the sweep, a folder in --results")
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="ids of its runs (default: those of sweep.json)")
    parser.add_argument("--docs", action="store_true", help="print docs/DATA.md instead")
    arguments = parser.parse_args()
    if arguments.docs:
        print(documentation(), end="")
        return
    if arguments.sweep is None:
        parser.error("--sweep: expected the name of a sweep; found none")
    for path in aggregate(arguments.results, arguments.sweep, arguments.runs).values():
        print(path)


if __name__ == "__main__":
    run(main)
