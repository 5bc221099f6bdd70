"""Which GPU a job runs on: a lock file for each slot, held by the process that uses it. No torch.

Snakemake counts slots but knows no devices. The kernel lets go of a lock on any death of its holder, so a killed job
frees its slots; no process that the holder starts inherits them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradlab.config import PlacementConfig


@dataclass(frozen=True)
class Gpu:
    """`uuid` as CUDA_VISIBLE_DEVICES takes it; memory in MiB, None where it is not told (a MIG instance)."""

    uuid: str
    memory_mib: int | None


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves to this process, in its order; all where it is not set.

    Empty where there is no nvidia-smi. One that fails (driver mismatch, no device in the container) is said in one
    line and counts as no GPU: torch finds none either, and `placement.device: cuda` then stops with an error.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except FileNotFoundError:
        return []
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, PermissionError) as error:
        output = getattr(error, "stdout", "") or getattr(error, "stderr", "") or str(error)
        print(f"no GPU is used: nvidia-smi fails: {' '.join(str(output).split())}", file=sys.stderr)
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in found.splitlines() if line.strip()]
    by_index = {index: Gpu(uuid, int(mib) if mib.isdigit() else None) for index, uuid, mib in rows}
    return visible(by_index, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(by_index: dict[str, Gpu], chosen: str | None) -> list[Gpu]:
    """What the text of CUDA_VISIBLE_DEVICES selects: indices as nvidia-smi counts, UUIDs or their beginnings.

    Raises ValueError for one that does not exist; CUDA would silently leave out all that follow it.
    """
    if chosen is None:
        return list(by_index.values())
    if chosen.strip() in ("", "-1", "NoDevFiles"):  # three ways to say none; Slurm writes the last
        return []
    selected = []
    for name in (part.strip() for part in chosen.split(",")):
        matching = [gpu for gpu in by_index.values() if name.startswith("GPU-") and gpu.uuid.startswith(name)]
        if name in by_index:
            matching = [by_index[name]]
        elif name.startswith("MIG-"):
            matching = [Gpu(name, None)]
        if len(matching) != 1:
            known = ", ".join(f"{index} ({gpu.uuid})" for index, gpu in by_index.items()) or "none"
            raise ValueError(f"CUDA_VISIBLE_DEVICES: expected GPUs among {known}; found {name!r} in {chosen!r}.")
        selected += matching
    return selected


def per_gpu(total: int, count: int) -> int:
    """Slots of one of `count` GPUs that share `total`; rounded up, since Snakemake keeps the sum."""
    return -(-total // count)


def runtime_folder() -> Path:
    """This user's folder of locks on this machine, the same for every call. TMPDIR must not differ among them."""
    folder = Path(tempfile.gettempdir()) / f"gradlab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder}: expected a folder of user {os.getuid()}; found another's. Set TMPDIR.")
    return folder


@contextlib.contextmanager
def bound(placement: PlacementConfig) -> Iterator[None]:
    """Within: the process holds its slots of one GPU and CUDA, if it starts now, sees no other.

    Acts only inside a call that shares out slots (GRADLAB_GPU_SLOTS: their total) and where there is a GPU. Raises
    ValueError when the job can never have its slots.
    """
    total = os.environ.get("GRADLAB_GPU_SLOTS")
    if not total or placement.device == "cpu" or placement.gpu_slots == 0 or not (found := gpus()):
        yield
        return
    if placement.gpu_slots == "auto":
        raise ValueError(
            "placement.gpu_slots: expected a number where GRADLAB_GPU_SLOTS is set; found auto. Add --gpu-slots 1."
        )
    if not total.isdecimal():
        raise ValueError(f"GRADLAB_GPU_SLOTS: expected the number of slots of this machine; found {total!r}.")
    with hold(placement.gpu_slots, per_gpu(int(total), len(found)), found, runtime_folder()) as gpu:
        changed = {"CUDA_VISIBLE_DEVICES": gpu.uuid, "GRADLAB_HELD_SLOTS": str(placement.gpu_slots)}
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def hold(slots: int, each: int, gpus: Sequence[Gpu], folder: Path, poll: float = 0.5) -> Iterator[Gpu]:
    """Hold `slots` of the `each` slots of one GPU, the emptiest, all or nothing; waits with a message while none has.

    Raises ValueError for more slots than one GPU has.
    """
    if slots > each:
        raise ValueError(f"placement.gpu_slots: expected at most {each}, the slots of one GPU; found {slots}.")
    with contextlib.ExitStack() as held:
        # Temporary-file cleaners (systemd-tmpfiles) leave a locked folder alone, however old its files are.
        held.enter_context(_locked(folder, fcntl.LOCK_SH))
        with contextlib.ExitStack() as turn:
            # One process at a time chooses, and the first that waits is the next served: many small jobs cannot
            # starve a large one.
            queue = folder / "queue"
            try:
                turn.enter_context(_locked(queue, fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                _say_waiting(slots, each)
                turn.enter_context(_locked(queue, fcntl.LOCK_EX))
            said = False
            while (taken := _take(slots, each, gpus, folder)) is None:
                if not said:
                    _say_waiting(slots, each)
                said = True
                time.sleep(poll)
        gpu, locks = taken
        with locks:
            yield gpu


def _take(slots: int, each: int, gpus: Sequence[Gpu], folder: Path) -> tuple[Gpu, contextlib.ExitStack] | None:
    """The GPU with most free slots, if they are enough, and the locks of `slots` of them."""
    with contextlib.ExitStack() as probing:
        free: dict[Gpu, list[contextlib.ExitStack]] = {gpu: [] for gpu in gpus}
        for gpu in free:
            for slot in range(each):
                with contextlib.suppress(BlockingIOError):
                    lock = probing.enter_context(contextlib.ExitStack())
                    lock.enter_context(_locked(folder / f"{gpu.uuid}.{slot}", fcntl.LOCK_EX | fcntl.LOCK_NB))
                    free[gpu].append(lock)
        best = max(free, key=lambda gpu: len(free[gpu]))
        if len(free[best]) < slots:
            return None
        kept = contextlib.ExitStack()
        for lock in free[best][:slots]:
            kept.enter_context(lock.pop_all())
        return best, kept


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    """Hold a file, made if need be, or a folder. Raises BlockingIOError where `how` does not wait."""
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)  # closed in what we exec
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


def _say_waiting(slots: int, each: int) -> None:
    print(f"waiting for {slots} of the {each} slots of a GPU", file=sys.stderr, flush=True)
