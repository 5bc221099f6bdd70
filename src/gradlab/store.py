"""Files: canonical JSON, JSON lines, whole-or-nothing writes, one writer a folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def canonical(obj: Any) -> str:
    """One string for one meaning: sorted keys, no spaces, no NaN."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(obj: Any) -> str:
    """8 hex digits of the SHA-256 of the canonical JSON of `obj`."""
    return hashlib.sha256(canonical(obj).encode()).hexdigest()[:8]


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` only if the block succeeds.

    A full disk, a kill or a loss of power leaves the old file, or none, never half of a new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like `atomic` for a folder: yields an empty one, which replaces `path` only on success."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for inside in (temporary, *temporary.rglob("*")):
            _sync(inside)
        if path.exists():
            remove_folder(path)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """Raises ValueError when this process can not write in `folder`, or where it would be made."""
    there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"{folder}: expected a folder that can be written; found {there.resolve()} read-only for user "
            f"{os.getuid()}. Make it writable; results can be elsewhere: --config results=FOLDER"
        )


def remove_folder(path: Path) -> None:
    """All of it or nothing: a kill never leaves a folder that lacks some of its files."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.removed.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    _sync(path.parent)
    shutil.rmtree(doomed)


def remove_files(paths: Iterable[Path]) -> None:
    """When it returns, not even a loss of power brings them back."""
    folders = set()
    for path in paths:
        path.unlink()
        folders.add(path.parent)
    for folder in folders:
        _sync(folder)


def clear_temporaries(folder: Path) -> None:
    """Remove what killed writers left in `folder`; only for the one process that may write there.

    `.tmp*` is what safetensors writes to first.
    """
    for path in {*folder.glob(".*.tmp"), *folder.glob(".tmp*")}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, obj: Any) -> None:
    write_text(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON; found {error.msg} at line {error.lineno}") from error


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Every row of a JSON-lines file. Raises ValueError naming file, line and reason."""
    rows = []
    with open(path, "rb") as handle:
        for number, raw in enumerate(handle, start=1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: expected UTF-8; found {error.reason}. Convert the file.") from error
            if not line.strip():
                raise ValueError(f"{path}:{number}: expected a JSON object; found an empty line. Delete it.")
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: expected a JSON object; found {error.msg}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: expected a JSON object; found {type(row).__name__}")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path}: expected at least one row; found an empty file")
    return rows


@contextlib.contextmanager
def writer_lock(folder: str | Path) -> Iterator[None]:
    """Hold `folder` for this process; the kernel lets go on any death.

    Raises RuntimeError if another process holds it (a second Snakemake call, an orphan trainer), and where a lock
    would not keep others out: a file system without locks, or inside a Slurm job one that keeps them to its node.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mend = "Put the folder `work` on a file system with cluster-wide locks (docs/scaling.md)."
    if "SLURM_JOB_ID" in os.environ and (option := node_local_locks(folder, Path("/proc/self/mountinfo").read_text())):
        raise RuntimeError(f"{folder}: expected locks that all nodes see; found it mounted with {option}. {mend}")
    with open(folder / ".lock", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise RuntimeError(
                f"{folder}: expected no other writer; found process {handle.read().strip()}. "
                "Wait for it to end or stop it, then run the same command again."
            ) from None
        except OSError as error:  # no lock service (ENOLCK), no locks at all (ENOSYS)
            raise RuntimeError(f"{folder}: expected a file system with locks; found: {error}. {mend}") from error
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {platform.node()}")
        handle.flush()
        yield


def node_local_locks(path: Path, mounts: str) -> str | None:
    """The mount option that keeps flock on `path` to one node, of NFS or Lustre; None: no such option.

    `mounts` is the text of /proc/self/mountinfo. What says nothing there is not known to be shared.
    """
    found, options = "", ""
    for line in mounts.splitlines():
        before, after = line.split(" - ")
        point = before.split()[4].replace("\\040", " ")
        if path.resolve().is_relative_to(point) and len(point) >= len(found):  # of two on one point the later is seen
            found, options = point, ",".join((before.split()[5], after.split()[-1]))
    local = {"local_lock=all", "local_lock=flock", "localflock"}
    return next((option for option in options.split(",") if option in local), None)
