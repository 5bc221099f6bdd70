"""MPS is believed on only when a client of ours is served; what we start we stop, what others started stays."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import fake_gpus
import pytest
import torch

from gradlab.gpu import mps
from gradlab.gpu.devices import Gpu
from gradlab.gpu.mps import Mps
from gradlab.provenance import provenance

TWO = [Gpu("GPU-aaaa1111", 24576), Gpu("GPU-bbbb2222", 24576)]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two GPUs and a working MPS; `begin()` is a call's part in it. Daemons left over are stopped."""
    for name, value in fake_gpus.install(tmp_path / "fakes").items():
        monkeypatch.setenv(name, value)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "FAKE_MPS", "FAKE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()

    def begin():
        return Mps.begin(TWO, home, usual=tmp_path / "usual")

    yield SimpleNamespace(
        begin=begin,
        home=home,
        usual=tmp_path / "usual",
        env=monkeypatch,
        log=lambda: fake_gpus.daemon_log(tmp_path / "fakes"),
    )
    for folder in (home / "mps" / "pipe", tmp_path / "usual"):
        mps._answer(folder, "quit")


def start_by_hand(pipe):
    pipe.mkdir(parents=True)
    environment = {**os.environ, "CUDA_MPS_PIPE_DIRECTORY": str(pipe)}
    subprocess.run(["nvidia-cuda-mps-control", "-d"], env=environment, check=True)


def alive(pipe):
    return mps._answer(pipe, "get_server_list") is not None


def test_a_daemon_is_started_proved_and_stopped(machine):
    machine.env.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = machine.begin()
    assert found.state == "serving, started by gradlab"
    assert found.note == "MPS serves: jobs share their GPU"
    pipe = machine.home / "mps" / "pipe"
    assert found.environment == {
        "GRADLAB_MPS": found.state,
        "CUDA_MPS_PIPE_DIRECTORY": str(pipe),
        "CUDA_MPS_LOG_DIRECTORY": str(machine.home / "mps" / "log"),
    }
    assert machine.log() == ["start "], "for all GPUs, whatever this call may use"
    assert alive(pipe)
    found.end()
    found.end()
    assert machine.log() == ["start ", "stop"]
    assert not alive(pipe)


@pytest.mark.parametrize(
    "name,value,why",
    [
        ("FAKE_MPS", "deaf", "the daemon runs but does not serve: a process with a context is not among its clients"),
        ("FAKE_MPS", "broken", "nvidia-cuda-mps-control -d failed: Cannot use this device"),
        ("FAKE_CUDA", "3", "a client could not open a context: cuInit returned CUDA error 3"),
    ],
)
def test_what_does_not_serve_is_not_believed_nor_left_behind(machine, name, value, why):
    machine.env.setenv(name, value)
    found = machine.begin()
    assert found.state == f"time-sharing: {why}"
    assert found.note == f"jobs time-share their GPU: no MPS, {why}"
    assert found.environment == {
        "GRADLAB_MPS": found.state,
        "CUDA_MPS_PIPE_DIRECTORY": str(machine.home / "none"),
    }, "jobs do not talk to it"
    assert not (machine.home / "none").exists()
    assert not alive(machine.home / "mps" / "pipe")
    found.end()


def test_without_a_client_that_answers_it_is_not_believed(machine):
    machine.env.setattr(mps, "PATIENCE", 0.3)
    machine.env.setattr(mps.sys, "executable", "/bin/cat")  # opens a file `-m`, or waits: never says `ready`
    assert "a client could not open a context" in machine.begin().state


def test_what_a_dead_daemon_left_is_cleaned_up(machine):
    pipe = machine.home / "mps" / "pipe"
    start_by_hand(pipe)
    daemon = int((pipe / "control").read_text())
    os.kill(daemon, signal.SIGKILL)
    for _ in range(100):
        if alive(pipe):
            time.sleep(0.05)
    (pipe / "leftover").touch()
    found = machine.begin()
    assert found.state == "serving, started by gradlab"
    assert found.note == "MPS serves: jobs share their GPU (a dead daemon's files were cleaned up)"
    assert not (pipe / "leftover").exists()
    found.end()
    assert machine.log() == ["start ", "start ", "stop"]


@pytest.mark.parametrize("named", [True, False])
def test_a_daemon_of_others_is_used_and_left_running(machine, tmp_path, named):
    theirs = tmp_path / "theirs" if named else machine.usual
    start_by_hand(theirs)
    if named:
        machine.env.setenv("CUDA_MPS_PIPE_DIRECTORY", str(theirs))
    found = machine.begin()
    assert found.environment == {"GRADLAB_MPS": "serving, started by others", "CUDA_MPS_PIPE_DIRECTORY": str(theirs)}
    found.end()
    assert alive(theirs)
    assert machine.log() == ["start "]
    mps._answer(theirs, "quit")


def test_a_daemon_of_others_that_does_not_serve_us_is_left_alone(machine):
    start_by_hand(machine.usual)
    machine.env.setenv("FAKE_MPS", "deaf")
    found = machine.begin()
    assert found.state.startswith("time-sharing: a daemon that others started: the daemon runs but does not serve")
    assert found.environment["CUDA_MPS_PIPE_DIRECTORY"] == str(machine.home / "none")
    found.end()
    assert alive(machine.usual)
    assert machine.log() == ["start "]


def test_the_last_of_several_calls_stops_the_daemon(machine):
    first, second = machine.begin(), machine.begin()
    assert machine.log() == ["start "]
    first.end()
    assert machine.log() == ["start "], "the jobs of the second call use it"
    second.end()
    assert machine.log() == ["start ", "stop"]


def test_the_daemon_of_a_killed_call_is_stopped_by_the_next(machine):
    code = """
import sys
from pathlib import Path
from gradlab.gpu.devices import gpus
from gradlab.gpu.mps import Mps
print(Mps.begin(gpus(), Path(sys.argv[1]), Path(sys.argv[2])).state, flush=True)
sys.stdin.read()
"""
    arguments = [sys.executable, "-c", code, str(machine.home), str(machine.usual)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as call:
        assert call.stdout.readline() == "serving, started by gradlab\n"
        call.kill()
    assert alive(machine.home / "mps" / "pipe")
    machine.begin().end()
    assert machine.log() == ["start ", "stop"]


def test_where_there_is_no_mps_nothing_is_set(machine, tmp_path):
    assert Mps.begin([], machine.home).environment == {"GRADLAB_MPS": "no GPU"}
    machine.env.setenv("PATH", str(tmp_path))
    found = machine.begin()
    assert found.environment == {"GRADLAB_MPS": "time-sharing: nvidia-cuda-mps-control is not on PATH"}
    assert found.note == "jobs time-share their GPU: no MPS, nvidia-cuda-mps-control is not on PATH"


def test_provenance_says_how_the_gpu_was_shared(monkeypatch):
    for name in ("GRADLAB_MPS", "GRADLAB_HELD_SLOTS"):
        monkeypatch.delenv(name, raising=False)
    record = provenance("12345678", 0, torch.device("cpu"))
    assert (record["mps"], record["gpu_slots"], record["device_uuid"]) == (None, None, None)
    monkeypatch.setenv("GRADLAB_MPS", "serving, started by gradlab")
    monkeypatch.setenv("GRADLAB_HELD_SLOTS", "2")
    record = provenance("12345678", 0, torch.device("cpu"))
    assert (record["mps"], record["gpu_slots"]) == ("serving, started by gradlab", 2)
