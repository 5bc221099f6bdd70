"""Watch a sweep at work, whoever started it: runs done, running and failed, their steps, the time left.

python scripts/watch.py demo            # until all runs have ended; Ctrl-C leaves and stops nothing
python scripts/watch.py demo | cat      # not on a terminal: once
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.live import Live

from gradlab.command_line import run
from gradlab.explain import validate
from gradlab.launch.progress import ENDED, Folders, progress
from gradlab.launch.screen import console, live
from gradlab.sweep import load
from gradlab.sweep_file import WorkflowConfig, read_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="name of a file in config/sweeps, without .yaml")
    parser.add_argument("--results", help="folder of all results (default: as config/config.yaml says)")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two looks")
    arguments = parser.parse_args()
    if arguments.every <= 0:
        parser.error(f"--every: expected more than 0; found {arguments.every:g}")
    elsewhere = {"results": arguments.results} if arguments.results else {}
    workflow = validate(WorkflowConfig, read_yaml("config/config.yaml") | elsewhere)
    sweep = load(arguments.sweep, workflow.fixed, workflow.grid)
    folders, screen = Folders(results=Path(workflow.results)), console()
    now = progress(sweep, folders)
    if not screen.is_terminal:
        screen.print(live(sweep, now, len(now) + 4))
        return
    with Live(live(sweep, now, screen.height), console=screen, auto_refresh=False) as view:
        try:
            while any(one.state not in ENDED for one in now.values()):
                time.sleep(arguments.every)
                now = progress(sweep, folders, now)
                view.update(live(sweep, now, screen.height), refresh=True)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    run(main)
