"""A call of Snakemake for one sweep: its words, its run with a view of it, and what failed in it. No torch."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import psutil

from gradlab.launch.progress import last_error
from gradlab.stopping import Stopped
from gradlab.sweep_file import Pack, read_yaml


def command(
    sweep: str, pack: Pack | None, slots: int | None, cores: int | None, profile: str | None, extra: Sequence[str]
) -> list[str]:
    """The call of Snakemake. Options that take several values swallow what follows, so what the user adds is first."""
    return [
        *(sys.executable, "-m", "snakemake", *extra),
        *(["--workflow-profile", profile] if profile else []),
        *(["--cores", str(cores or "all")] if cores or not profile else []),
        *(["--resources", f"gpu_slots={slots}"] if slots is not None else []),
        *("--config", f"sweeps={sweep}", *([f"pack={pack}"] if pack is not None else [])),
    ]


def check_profile(folder: str) -> None:
    """Raises ValueError for a profile that Snakemake would pass over in silence, or whose executor is not installed."""
    found = [path for name in ("profile.yaml", "config.yaml") if (path := Path(folder) / name).is_file()]
    if not found:
        raise ValueError(f"--profile: expected a folder with a file profile.yaml; found none in {folder!r}.")
    executor = read_yaml(found[0]).get("executor", "local")
    plugin = f"snakemake-executor-plugin-{executor}"
    if executor != "local" and importlib.util.find_spec(plugin.replace("-", "_")) is None:
        raise ValueError(
            f"--profile {folder}: expected the package {plugin}, since executor is {executor}; found it not "
            "installed. For slurm: pip install -c constraints.txt -e '.[slurm]'"
        )


def call(command: Sequence[str], log: Path, watch: Callable[[bool], None], every: float = 1.0) -> int:
    """Run Snakemake to its end with its output in `log`; returns its exit status.

    watch  called meanwhile, with whether the call was asked to stop

    Ctrl-C reaches Snakemake and its jobs by the terminal; SIGTERM, which reaches only this process, is passed on to
    them. Either raises Stopped when they have saved and ended; what `watch` raises stops them, too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    stopped = False
    with open(log, "w", encoding="utf-8") as output, _sigterm_raises():
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.returncode is None:
                try:
                    watch(stopped)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(every)
                except _Terminated:
                    stopped = True
                    _interrupt(process.pid)
                except KeyboardInterrupt:
                    stopped = True
            watch(stopped)
        finally:
            if process.returncode is None:  # `watch` failed, and nobody would see what the jobs do
                _interrupt(process.pid)
                process.wait()
    if stopped:
        raise Stopped("stopped. The same command continues: finished runs are kept, interrupted ones resume.")
    return process.returncode


def follow(log: Path) -> Callable[[bool], None]:
    """Each call prints what was added to the log since the last."""
    at = 0

    def show(stopping: bool) -> None:
        nonlocal at
        with open(log, encoding="utf-8", errors="replace") as handle:
            handle.seek(at)
            print(handle.read(), end="", flush=True)
            at = handle.tell()

    return show


def jobs_done(log: Path) -> str:
    """`9 of 14`, the latest that Snakemake said of its jobs; empty before the first has ended."""
    found = re.findall(r"^(\d+ of \d+) steps \(", log.read_text(encoding="utf-8", errors="replace"), re.M)
    return found[-1] if found else ""


def failed_jobs(log: Path) -> dict[str, str]:
    """The log file of each job that failed in a call, and its last error (empty where it has none)."""
    found = re.findall(
        r"^Error in rule \w+:\n(?:    .*\n)*?    log: (\S+)", log.read_text(encoding="utf-8", errors="replace"), re.M
    )
    return {path: last_error(Path(path)) for path in found}


class _Terminated(BaseException):
    """SIGTERM, which reaches this process alone."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(pid: int) -> None:
    """What Ctrl-C does: the process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for each in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGINT)
