"""Write the HTML report of one sweep from its Parquet files, or with --index the page that lists all sweeps.

python scripts/report.py --sweep demo
python scripts/report.py --index
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from gradlab.command_line import run
from gradlab.report import write_index, write_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", default="results", help="folder of all sweeps")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sweep", help="name of the sweep, a folder in --results")
    what.add_argument("--index", action="store_true", help="list every sweep that has a report")
    parser.add_argument("--out", help="the page (default: <results>/<sweep>/report.html or <results>/index.html)")
    parser.add_argument("--command", help="command that re-makes the page, shown on it (default: this call)")
    arguments = parser.parse_args()
    if arguments.index:
        out = arguments.out or str(Path(arguments.results) / "index.html")
        write_index(arguments.results, out)
    else:
        out = arguments.out or str(Path(arguments.results) / arguments.sweep / "report.html")
        write_report(arguments.results, arguments.sweep, out, arguments.command or shlex.join(["python", *sys.argv]))
    print(out)


if __name__ == "__main__":
    run(main)
