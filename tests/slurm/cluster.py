"""A Slurm of one node for as long as a `with` block lasts: munged, slurmctld and slurmd in a folder of their own.

Needs root (device nodes; slurmd starts jobs as their owner) and Debian's packages slurm-wlm and munge. It has
fake GPUs: device nodes that lead nowhere. Jobs get `CUDA_VISIBLE_DEVICES` as on a real node; CUDA finds no GPU.
Outside the folder there are links in /etc/slurm while it runs: commands inside jobs look nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
GPUS, SHARDS_A_GPU = 2, 4

# No cgroups and no accounting daemon: what a container or a small virtual machine can run. Finished jobs stay known
# to squeue for an hour, which is how their end is seen without accounting. Unkillable steps end after seconds.
SLURM_CONF = """
ClusterName=gradlab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/finished.txt
ReturnToService=2
MinJobAge=3600
KillWait=20
GresTypes=gpu,shard
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus},shard:{shards} State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRES_CONF = """
AutoDetect=off
Name=gpu File={folder}/gpu[0-{last}]
Name=shard Count={shards}
"""


FILES = {"slurm.conf": SLURM_CONF, "gres.conf": GRES_CONF}
ETC = Path("/etc/slurm")
MUNGE_FILES = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}


def missing() -> list[str]:
    """What this machine lacks, one line each; empty where the cluster can be set up."""
    lacking = [f"program {name}: apt-get install slurm-wlm munge" for name in PROGRAMS if not _which(name)]
    if os.geteuid() != 0:
        lacking.append("root: device nodes and slurmd need it")
    if any((ETC / name).exists() for name in FILES):
        lacking.append(f"a machine without a Slurm of its own: {ETC} has a configuration")
    return lacking


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Start it, wait until its node is idle; stop everything at the end.

    Raises RuntimeError with the logs' ends when a daemon does not come up.
    """
    folder = folder.resolve()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    for number in range(GPUS):
        os.mknod(folder / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    subprocess.run([_which("mungekey"), "--create", "--keyfile", folder / "munge.key"], check=True)
    munge = [f"--{name}={folder}/munge.{end}" for name, end in MUNGE_FILES.items()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_configuration(folder))
        stack.enter_context(_daemon(folder, "munged", "--foreground", "--force", *munge))
        _wait(folder, "munged", (folder / "munge.socket").exists)
        stack.enter_context(_daemon(folder, "slurmctld", "-D"))
        _wait(folder, "slurmctld", lambda: "UP" in _output("scontrol", "ping"))
        stack.enter_context(_daemon(folder, "slurmd", "-D"))
        _wait(folder, "slurmd", lambda: _output("sinfo", "--noheader", "--format=%t") == "idle")
        try:
            yield
        finally:
            subprocess.run(["scancel", "--user=root"], check=False)
            _wait(folder, "scancel", lambda: not _output("squeue", "--noheader", "--states=RUNNING,COMPLETING"))


@contextlib.contextmanager
def _configuration(folder: Path) -> Iterator[None]:
    """The configuration of this machine in `folder`, linked to where Slurm looks for it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    values = {
        "folder": folder,
        "host": socket.gethostname().split(".")[0],
        "controller": _free_port(),
        "daemon": _free_port(),
        "cpus": os.cpu_count(),
        "memory_mb": memory // 2**20 * 9 // 10,
        "gpus": GPUS,
        "last": GPUS - 1,
        "shards": GPUS * SHARDS_A_GPU,
    }
    ETC.mkdir(exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text.format(**values))
        (ETC / name).unlink(missing_ok=True)  # a link into a folder that is gone: `missing` has looked
        (ETC / name).symlink_to(folder / name)
    try:
        yield
    finally:
        for name in FILES:
            (ETC / name).unlink()


@contextlib.contextmanager
def _daemon(folder: Path, name: str, *arguments: str) -> Iterator[None]:
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen([_which(name), *arguments], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(folder: Path, name: str, ready: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            ends = "\n".join(f"{log.name}:\n{log.read_text()[-1500:]}" for log in sorted(folder.glob("*.log")))
            raise RuntimeError(f"{name}: expected it to serve within {seconds:.0f} s; found that it does not.\n{ends}")
        time.sleep(0.2)


def _output(*command: str) -> str:
    """What the command prints, or nothing where it fails (a daemon that is not up yet)."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _which(name: str) -> str | None:
    """Also where daemons lie, which a user's PATH may leave out."""
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
