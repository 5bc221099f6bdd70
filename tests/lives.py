"""Lives of the training programs, each in a process forked from one that has imported torch, and how they end.

A process counts its own operations: each file it opens for writing, renames, cuts or removes, each sampling, backward
pass and update. `Kill(n)` is SIGKILL right before the n-th, so a test that fails can be repeated exactly.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}
COMPUTE = ("sample", "accumulate", "check_gate", "write_step")
PRELOADED = ["pytest", "gradlab.training", "transformers.models.llama.modeling_llama"]


@dataclass(frozen=True)
class Count:
    """Ends by itself; `operations` holds how many there were."""

    def __call__(self, folder: Path) -> None:
        count = [0]

        def note(name: str) -> None:
            count[0] += 1
            with open(folder / "operations", "w") as handle:
                handle.write(str(count[0]))

        at_each_operation(note)


@dataclass(frozen=True)
class Kill:
    """SIGKILL before operation `at`."""

    at: int

    def __call__(self, folder: Path) -> None:
        count = [0]

        def note(name: str) -> None:
            count[0] += 1
            if count[0] == self.at:
                os.kill(os.getpid(), signal.SIGKILL)

        at_each_operation(note)


@dataclass(frozen=True)
class Signal:
    """A signal that comes at the n-th sampling, which is step n - 1."""

    number: int
    sampling: int

    def __call__(self, folder: Path) -> None:
        count = [0]

        def note(name: str) -> None:
            count[0] += name == "sample"
            if name == "sample" and count[0] == self.sampling:
                os.kill(os.getpid(), self.number)

        at_each_operation(note)


@dataclass(frozen=True)
class Torn:
    """Half of the n-th checkpoint file reaches the disk, then SIGKILL."""

    file: int

    def __call__(self, folder: Path) -> None:
        def tear(write: Callable[[], None], path: Path) -> None:
            write()
            half = path.stat().st_size // 2
            shutil.copyfile(path, path.with_name(".tmp9zZ"))  # safetensors writes to such a file first
            os.truncate(path.with_name(".tmp9zZ"), half)
            os.truncate(path, half)
            os.kill(os.getpid(), signal.SIGKILL)

        at_checkpoint(self.file, tear)


@dataclass(frozen=True)
class FullDisk:
    """From the n-th checkpoint file on, no file may grow: its size limit stands in for a full disk."""

    file: int

    def __call__(self, folder: Path) -> None:
        def fill(write: Callable[[], None], path: Path) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            write()

        at_checkpoint(self.file, fill)


@dataclass(frozen=True)
class ClockAt:
    """The clock says another time."""

    seconds: float

    def __call__(self, folder: Path) -> None:
        time.time = lambda: self.seconds


@dataclass(frozen=True)
class NoRights:
    """The process may not write where the permissions say so, which root always may."""

    user = 65534

    def __call__(self, folder: Path) -> None:
        if os.geteuid() == 0:
            os.setuid(self.user)


@dataclass(frozen=True)
class Durable:
    """Ends with status 3 where a loss of power could leave less than there was.

    A file or folder must be on the disk before it is renamed to its name, and that name before anything it replaces is
    removed or cut.
    """

    def __call__(self, folder: Path) -> None:
        from gradlab.runlog import GROWING

        synced: dict[tuple[int, int], tuple[int, int]] = {}  # file to what it was when last it was on the disk
        renamed: set[tuple[int, int]] = set()  # folders with a new name that is not
        plain_sync, plain_replace = os.fsync, os.replace

        def fsync(handle: Any) -> None:
            plain_sync(handle)
            found = os.fstat(handle if isinstance(handle, int) else handle.fileno())
            synced[found.st_dev, found.st_ino] = found.st_mtime_ns, found.st_size
            renamed.discard((found.st_dev, found.st_ino))

        def lost(what: str, path: Path) -> None:
            print(f"a loss of power would lose {what}: {path}", flush=True)
            os._exit(3)

        def replace(source: Path, target: Path) -> None:
            needed = [source, *Path(source).rglob("*")] if "removed.tmp" not in str(target) else []
            if Path(target).name.startswith("checkpoint-"):
                needed += [Path(target).parent / "log" / name for name in GROWING]
            for path in needed:
                found = Path(path).stat()
                if synced.get((found.st_dev, found.st_ino)) != (found.st_mtime_ns, found.st_size):
                    lost("the content", path)
            plain_replace(source, target)
            found = Path(target).parent.stat()
            renamed.add((found.st_dev, found.st_ino))

        def note(name: str) -> None:
            if name in ("os.remove", "os.truncate", "os.rmdir") and renamed:
                lost("a name, before", Path(name))

        os.fsync, os.replace = fsync, replace  # type: ignore[assignment]
        at_each_operation(note)


def at_checkpoint(file: int, act: Callable[[Callable[[], None], Path], None]) -> None:
    """Have `act` write the n-th checkpoint file."""
    from gradlab import checkpoint

    plain, count = checkpoint.save_file, [0]

    def save_file(tensors: Any, path: Path, **rest: Any) -> None:
        count[0] += 1
        if count[0] == file:
            act(lambda: plain(tensors, path, **rest), path)
        else:
            plain(tensors, path, **rest)

    checkpoint.save_file = save_file  # type: ignore[assignment]


def at_each_operation(note: Callable[[str], None]) -> None:
    """Call `note` with the name of each operation of this process before it happens. For good: there is no way back."""
    from gradlab import engine

    busy = []  # what `note` does itself is not counted

    def operation(name: str) -> None:
        if not busy:
            busy.append(1)
            note(name)
            busy.clear()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILES or event == "open":
            path = arguments[0]
            here = isinstance(path, str | Path) and not str(path).startswith("/")
            if here and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                operation(event)

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            operation(name)
            return plain(*arguments)

        return call

    for name in COMPUTE:
        setattr(engine, name, counted(name, getattr(engine, name)))
    sys.addaudithook(audit)


def _live(folder: Path, programs: Sequence[Sequence[str]], fate: Callable[[Path], None] | None) -> None:
    os.chdir(folder)
    log = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if fate:
        fate(folder)
    for script, *arguments in programs:
        sys.argv = [script, *arguments]
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")


def live(folder: Path, programs: Sequence[Sequence[str]], fate: Callable[[Path], None] | None = None) -> int:
    """Exit status of a process that runs the programs one after another in `folder`; -9: killed.

    What it said is in `folder/output`.
    """
    context = multiprocessing.get_context("forkserver")  # a process of its own: torch must not fork after a backward
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_live, args=(folder, programs, fate))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the process did not end"
    return process.exitcode
