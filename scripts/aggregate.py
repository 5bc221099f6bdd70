"""Collect the runs of one sweep into metrics, cosines, evals and samples.parquet."""

from __future__ import annotations

import argparse
import sys

from gradlab.aggregate import aggregate, documentation


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
    try:
        paths = aggregate(arguments.results, arguments.sweep, arguments.runs)
    except (ValueError, OSError) as error:
        sys.exit(f"aggregate: {error}")
    for path in paths.values():
        print(path)


if __name__ == "__main__":
    main()
