"""NVIDIA MPS for the jobs of a call: several processes compute on a GPU at the same time instead of in turns. No torch.

One control daemon for all GPUs of the machine: it starts no more than a server, which runs the contexts of every GPU,
jobs need one pipe directory whatever GPU they are bound to, and a fault reaches only jobs on the faulty job's GPU
(from Volta on). A daemon that runs proves nothing; here a client opens a context on every GPU, and the daemon must
name that client. Everything else is time-sharing, and said so.

The daemon in gradlab's own folder serves all calls of a user on a machine. Each holds a shared lock on the folder,
and the last that leaves stops the daemon; a call that was killed holds nothing, so the next one inherits it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradlab.gpu.devices import Gpu

CONTROL = "nvidia-cuda-mps-control"
USUAL = Path("/tmp/nvidia-mps")  # CUDA's own default
PATIENCE = 30  # seconds: for an answer of the daemon, for a context of the client


class Mps:
    """One call's part in MPS. `state` goes into provenance, `environment` to the jobs, `note` is for the log."""

    def __init__(self, state: str, note: str = "", pipe: Path | None = None, lock: int | None = None) -> None:
        self.state, self.note, self._pipe, self._lock = state, note, pipe, lock
        self.environment = {"GRADLAB_MPS": state}
        if pipe is not None:
            self.environment["CUDA_MPS_PIPE_DIRECTORY"] = str(pipe)
        if lock is not None and pipe is not None:
            self.environment["CUDA_MPS_LOG_DIRECTORY"] = str(pipe.with_name("log"))

    @classmethod
    def begin(cls, gpus: Sequence[Gpu], folder: Path, usual: Path = USUAL) -> Mps:
        """Use the daemon that serves already, or start one in `folder`/mps. Where none can serve: time-sharing."""
        if not gpus:
            return cls("no GPU")
        if shutil.which(CONTROL) is None:
            return cls._without(f"{CONTROL} is not on PATH", None)
        pipe, none = folder / "mps" / "pipe", folder / "none"
        others = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", usual))
        if others not in (pipe, none) and _answer(others, "get_server_list") is not None:
            why = unproved(others, gpus)
            if why is not None:
                return cls._without(f"a daemon that others started: {why}", none)
            return cls("serving, started by others", "MPS serves: started by others, left running", others)
        return cls._own(gpus, pipe, none)

    @classmethod
    def _own(cls, gpus: Sequence[Gpu], pipe: Path, none: Path) -> Mps:
        pipe.parent.mkdir(exist_ok=True)
        lock = os.open(pipe.parent, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits for a call that is stopping the daemon
        note = "MPS serves: jobs share their GPU"
        with _alone(pipe.with_name("start.lock")):
            why = None
            if _answer(pipe, "get_server_list") is None:
                if pipe.exists():
                    note += " (a dead daemon's files were cleaned up)"
                    shutil.rmtree(pipe)
                why = _start(pipe, pipe.with_name("log"))
            why = why or unproved(pipe, gpus)
        found = cls("serving, started by gradlab", note, pipe, lock)
        if why is None:
            return found
        found.end()
        return cls._without(why, none)

    @classmethod
    def _without(cls, why: str, none: Path | None) -> Mps:
        """`none`: a folder that does not exist, where CUDA looks for a daemon, finds none and goes on without."""
        return cls(f"time-sharing: {why}", f"jobs time-share their GPU: no MPS, {why}", none)

    def end(self) -> None:
        """Stop the daemon if it is gradlab's and no other call uses it. The second call does nothing."""
        if self._lock is None or self._pipe is None:
            return
        lock, self._lock = self._lock, None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _answer(self._pipe, "quit") is None and _answer(self._pipe, "get_server_list") is not None:
                print("the MPS daemon did not stop in time; it ends with its last client", file=sys.stderr)
        except BlockingIOError:
            pass  # another call's jobs use it, which stops it in its turn
        finally:
            os.close(lock)


def unproved(pipe: Path, gpus: Sequence[Gpu]) -> str | None:
    """Why the daemon of this pipe directory can not be said to serve `gpus`; None: a client of ours is served."""
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpu.uuid for gpu in gpus)
    with _client(environment) as client:
        assert client.stdout is not None
        ready, _, _ = select.select([client.stdout], [], [], PATIENCE)
        said = client.stdout.readline().strip() if ready else f"no answer in {PATIENCE} s"
        if said != "ready":
            return f"a client could not open a context: {said or 'it died'}"
        servers = _numbers(_answer(pipe, "get_server_list"))
        served = {pid for server in servers for pid in _numbers(_answer(pipe, f"get_client_list {server}"))}
        if client.pid not in served:
            return "the daemon runs but does not serve: a process with a context is not among its clients"
    return None


@contextlib.contextmanager
def _client(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process that opens a context on every GPU it sees and keeps them until the block ends, or we die."""
    with subprocess.Popen(
        [sys.executable, "-m", "gradlab.gpu.mps"],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as client:
        try:
            yield client
        finally:
            client.kill()


def _start(pipe: Path, log: Path) -> str | None:
    """Start a daemon for all GPUs; returns why it did not start. It would hold a pipe open: its output is a file."""
    for folder in (pipe, log):
        folder.mkdir(exist_ok=True)
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # another call may use other GPUs of this machine
    output = log / "start.txt"
    with open(output, "w") as handle:
        try:
            found = subprocess.run(
                [CONTROL, "-d"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                timeout=PATIENCE,
                start_new_session=True,  # Ctrl-C is for the jobs
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{CONTROL} -d did not return in {PATIENCE} s"
    text = " ".join(output.read_text(errors="replace").split())
    return f"{CONTROL} -d failed: {text or f'status {found.returncode}'}" if found.returncode else None


def _answer(pipe: Path, command: str) -> str | None:
    """The daemon's answer; None where there is no daemon, or none that answers."""
    if not pipe.is_dir():
        return None
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
    try:
        found = subprocess.run(
            [CONTROL], input=f"{command}\n", env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return None
    return None if found.returncode or "Cannot find MPS control daemon" in found.stdout + found.stderr else found.stdout


def _numbers(text: str | None) -> list[int]:
    return [int(line) for line in (text or "").split() if line.isdecimal()]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _hold_contexts() -> None:
    """The client: the primary context of every GPU, by the driver's C interface; says `ready` and waits."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: object) -> None:
        if code := getattr(cuda, name)(*arguments):
            sys.exit(f"{name} returned CUDA error {code}")

    count, device, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGetCount", ctypes.byref(count))
    for index in range(count.value):
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _hold_contexts()
