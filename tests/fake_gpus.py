"""Programs that answer as NVIDIA's do, and a driver for the MPS client, so that no GPU is needed.

FAKE_GPUS     what nvidia-smi prints; empty: it fails as after a driver update
FAKE_MPS      deaf: the daemon runs and knows no client; broken: it does not start
FAKE_CUDA     the error code of cuInit
FAKE_MPS_LOG  a file that gets one line for each start and stop of a daemon
"""

import os
from pathlib import Path

TWO = "0, GPU-aaaa1111, 24576\n1, GPU-bbbb2222, 24576\n"
FAILURE = "Failed to initialize NVML: Driver/library version mismatch"

SMI = f"""#!/bin/sh
if [ -z "$FAKE_GPUS" ]; then echo "{FAILURE}"; exit 18; fi
printf "$FAKE_GPUS"
"""

# The daemon is a `sleep`; its pipe directory holds its process id, and a file for each client.
CONTROL = """#!/bin/sh
control="$CUDA_MPS_PIPE_DIRECTORY/control"
if [ "$1" = -d ]; then
    if [ "$FAKE_MPS" = broken ]; then echo "Cannot use this device" >&2; exit 1; fi
    if [ -e "$control" ]; then echo "An instance of this daemon is already running" >&2; exit 1; fi
    sleep 600 > /dev/null 2>&1 &
    echo $! > "$control"
    echo "start $CUDA_VISIBLE_DEVICES" >> "$FAKE_MPS_LOG"
    exit 0
fi
read command rest
state=
if [ -e "$control" ]; then state=$(cut -d " " -f 3 "/proc/$(cat "$control")/stat" 2> /dev/null); fi
case "$state" in
    "" | Z) echo "Cannot find MPS control daemon process"; exit 1 ;; # a killed one stays a zombie without an init
esac
case "$command" in
    get_server_list) if [ "$FAKE_MPS" != deaf ]; then echo 4242; fi ;;
    get_client_list) ls "$CUDA_MPS_PIPE_DIRECTORY/clients" ;;
    quit) kill "$(cat "$control")"; rm "$control"; echo stop >> "$FAKE_MPS_LOG" ;;
esac
"""

# Python reads a module of this name before anything else: ctypes then finds a driver.
DRIVER = """
import ctypes, os, pathlib

class Driver:
    def cuInit(self, flags):
        return int(os.environ.get("FAKE_CUDA", 0))

    def cuDeviceGetCount(self, count):
        count._obj.value = len(os.environ["CUDA_VISIBLE_DEVICES"].split(","))
        return 0

    def cuDeviceGet(self, device, index):
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        clients = pathlib.Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"], "clients")
        clients.mkdir(exist_ok=True)
        (clients / str(os.getpid())).touch()
        return 0

real = ctypes.CDLL
ctypes.CDLL = lambda name, *rest, **more: Driver() if name == "libcuda.so.1" else real(name, *rest, **more)
"""


def install(folder: Path, mps: bool = True) -> dict[str, str]:
    """Write the programs into `folder`; returns the environment in which they are found."""
    folder.mkdir()
    programs = {"nvidia-smi": SMI} | ({"nvidia-cuda-mps-control": CONTROL} if mps else {})
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "sitecustomize.py").write_text(DRIVER)
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
        "FAKE_GPUS": TWO,
        "FAKE_MPS_LOG": str(folder / "mps.log"),
        "TMPDIR": str(folder),
    }


def daemon_log(folder: Path) -> list[str]:
    path = folder / "mps.log"
    return path.read_text().splitlines() if path.exists() else []
