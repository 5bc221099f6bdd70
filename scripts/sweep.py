"""Make a sweep from the command line: write its file, show the planned runs, call Snakemake, show the final rewards.

python scripts/sweep.py --base synergy --grid seed=1,2 lr=1e-4,3e-4 --fixed max_steps=50 --per-gpu 12 --dry-run

Keys are dotted (optimizer.lr), or any ending of one key alone (num_generations), or as TRL calls them (max_steps).
What follows `--` goes to Snakemake: python scripts/sweep.py --base demo -- --keep-incomplete
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rich.live import Live

from gradlab.command_line import run
from gradlab.explain import validate
from gradlab.gpu.devices import gpus
from gradlab.gpu.slots import Capacity
from gradlab.launch.call import call, check_profile, command, failed_jobs, follow, jobs_done
from gradlab.launch.derive import derive, expanded, write
from gradlab.launch.estimate import read_history
from gradlab.launch.final import finals
from gradlab.launch.forecast import forecast
from gradlab.launch.progress import Folders, progress
from gradlab.launch.screen import console, final_table, live, notes, plan_lines, plan_table
from gradlab.store import writer_lock
from gradlab.sweep import Sweep
from gradlab.sweep_file import WorkflowConfig, override, read_yaml


def main() -> None:
    own, extra = _split(sys.argv[1:])
    arguments = _parser().parse_args(own)
    _check(arguments, extra)
    workflow = validate(WorkflowConfig, read_yaml("config/config.yaml"))
    written = derive(
        arguments.base, arguments.grid, arguments.fixed, arguments.variants, arguments.name, arguments.pack
    )
    # What config.yaml replaces in every sweep, Snakemake replaces in this one.
    sweep = expanded(written.name, override(written.config, workflow.fixed, workflow.grid))
    pack = sweep.config.pack if workflow.pack is None or arguments.pack is not None else workflow.pack
    folders = Folders(results=Path(workflow.results))
    cores = arguments.cores or len(os.sched_getaffinity(0))
    found = [] if arguments.profile else gpus()
    slots = _slots(arguments.per_gpu, len(found))
    capacity = Capacity(slots if found else None, found, bool(arguments.profile), workflow.gpu_slot_gib)
    history = read_history(folders.results, folders.logs, gpu=bool(found))
    now = progress(sweep, folders)
    planned = forecast(sweep, pack, now, history, capacity, cores, folders)
    screen = console()
    screen.print(plan_table(sweep, planned))
    screen.print(plan_lines(planned, cores, slots if found else None))
    if arguments.per_gpu is not None and not found:
        screen.print("--per-gpu: no GPU of this machine's is used, so it changes nothing; cores bound the jobs")
    if arguments.dry_run:
        return
    screen.print(f"sweep {sweep.name}: {write(written, _words(arguments))}")
    log = folders.logs / sweep.name / "snakemake.log"
    given = command(sweep.name, arguments.pack, slots if found else None, arguments.cores, arguments.profile, extra)
    with writer_lock(folders.work / sweep.name):  # two calls would write one log, and read each other's failures
        if screen.is_terminal and not arguments.plain:
            with Live(console=screen, auto_refresh=False, transient=True) as view:

                def show(stopping: bool) -> None:
                    nonlocal now
                    now = progress(sweep, folders, now)
                    jobs = f"jobs: {done} done" if (done := jobs_done(log)) else ""
                    note = "stopping, the running steps end first" if stopping else jobs
                    view.update(live(sweep, now, screen.height, note), refresh=True)

                status = call(given, log, show)
        else:
            status = call(given, log, follow(log))
    _summary(sweep, folders, log, status, shown=not screen.is_terminal or arguments.plain)
    sys.exit(status)


def _summary(sweep: Sweep, folders: Folders, log: Path, status: int, shown: bool) -> None:
    screen, failed = console(), failed_jobs(log)
    if status and not failed and not shown:  # it did not come to any job
        screen.print(log.read_text(encoding="utf-8").strip()[-3000:], markup=False)
    found = finals(sweep, progress(sweep, folders), folders.results)
    screen.print(final_table(found))
    report = folders.results / sweep.name / "report.html"
    screen.print(notes(found, failed, report, ok=not status), markup=False)
    screen.print(f"Snakemake's output: {log}", markup=False)


def _slots(per_gpu: int | None, count: int) -> int | None:
    """GPU slots of the call: those of `--per-gpu`, else the limit of the default profile."""
    if per_gpu is not None:
        return per_gpu * count
    limit = read_yaml("profiles/default/profile.yaml").get("resources", {}).get("gpu_slots")
    return None if limit is None else int(limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="sweep to start from: a file in config/sweeps, without .yaml")
    several = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument("--grid", metavar="KEY=V1,V2", help="axes, which replace or join the base's", **several)
    parser.add_argument("--fixed", metavar="KEY=VALUE", help="values of all runs", **several)
    parser.add_argument(
        "--variants", metavar="NAME", help="those of the base's variants to keep (default: all)", **several
    )
    parser.add_argument("--name", help="of the new sweep (default: the base's and a digest of the changes)")
    parser.add_argument("--pack", help="most runs that train in one process, or auto (default: as the base says)")
    parser.add_argument("--per-gpu", type=int, help="GPU slots of each GPU (default: the limit of profiles/default)")
    parser.add_argument("--cores", type=int, help="CPU cores used (default: all; with --profile as that says)")
    parser.add_argument("--profile", help="folder of a workflow profile, such as profiles/slurm")
    parser.add_argument("--plain", action="store_true", help="Snakemake's own output instead of the live view")
    parser.add_argument("--dry-run", action="store_true", help="show the planned runs, write and start nothing")
    return parser


def _check(arguments: argparse.Namespace, extra: list[str]) -> None:
    for name in ("per_gpu", "cores"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(
                f"--{name.replace('_', '-')}: expected at least 1; found {value}. Leave it out or raise it."
            )
    if arguments.profile is not None:
        check_profile(arguments.profile)
    for word in extra:
        if word.partition("=")[0] in ("--config", "-C", "--cores", "-c", "--resources", "--workflow-profile"):
            raise ValueError(f"after --: expected no {word}, which this program sets itself; use its own options.")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _words(arguments: argparse.Namespace) -> list[str]:
    """The command that makes the same file, for its first line."""
    words = ["python", "scripts/sweep.py", "--base", arguments.base]
    for option in ("grid", "fixed", "variants"):
        values = getattr(arguments, option)
        words += [f"--{option}", *values] if values else []
    for option in ("name", "pack"):
        value = getattr(arguments, option)
        words += [f"--{option}", value] if value is not None else []
    return words


if __name__ == "__main__":
    run(main)
