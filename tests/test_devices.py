"""GPU slots by lock files: several real processes on two GPUs that only nvidia-smi claims to be there."""

import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

import fake_gpus
import pytest

from gradlab.config import PlacementConfig
from gradlab.gpu.devices import Gpu, bound, gpus, hold, per_gpu, runtime_folder, visible

A, B = Gpu("GPU-aaaa1111", 24576), Gpu("GPU-bbbb2222", 24576)
JOB = """
import os, subprocess, sys
from gradlab.config import PlacementConfig
from gradlab.gpu.devices import bound
with bound(PlacementConfig(gpu_slots=int(sys.argv[1]))):
    child = subprocess.Popen(["sleep", "60"], close_fds=False) if "child" in sys.argv else None
    print(os.environ["CUDA_VISIBLE_DEVICES"], child.pid if child else "", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two GPUs; `CUDA_VISIBLE_DEVICES` and what a workflow would set are not set."""
    for name, value in fake_gpus.install(tmp_path / "fakes").items():
        monkeypatch.setenv(name, value)
    for name in ("CUDA_VISIBLE_DEVICES", "GRADLAB_GPU_SLOTS", "GRADLAB_HELD_SLOTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "fakes"))
    return monkeypatch


@pytest.fixture
def job(machine):
    """Start a job of some slots; it prints its GPU once it has them and stays until it is killed."""
    machine.setenv("GRADLAB_GPU_SLOTS", "4")
    started = []

    def start(slots, *options):
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(slots), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(stream):
    assert select.select([stream], [], [], 30)[0], "nothing said in 30 s"
    return stream.readline()


def test_jobs_spread_wait_and_are_freed_by_any_death(job):
    running = [job(1) for _ in range(4)]
    places = [line(process.stdout).split()[0] for process in running]
    assert Counter(places) == {A.uuid: 2, B.uuid: 2}
    late = job(2)
    assert line(late.stderr) == "waiting for 2 of the 2 slots of a GPU\n"
    on_b = [process for process, place in zip(running, places, strict=True) if place == B.uuid]
    on_a = [process for process in running if process not in on_b]
    on_b[0].send_signal(signal.SIGKILL)
    on_a[0].send_signal(signal.SIGKILL)
    time.sleep(1)
    assert late.poll() is None, "two free slots on different GPUs are not two slots of one"
    on_b[1].send_signal(signal.SIGKILL)
    assert line(late.stdout).split() == [B.uuid]


def test_a_killed_job_takes_its_slots_from_what_it_started(job):
    killed = job(2, "child")
    _, child = line(killed.stdout).split()
    killed.kill()
    killed.wait()
    try:
        os.kill(int(child), 0)
        taken = [job(2), job(2)]
        assert {line(process.stdout).split()[0] for process in taken} == {A.uuid, B.uuid}
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_never_more_than_there_are(tmp_path):
    """Locks of one process exclude each other as those of many do."""
    held, most, guard, draw = Counter(), Counter(), threading.Lock(), random.Random(0)

    def work(demands):
        for slots in demands:
            with hold(slots, 3, [A, B], tmp_path, poll=0.001) as gpu:
                with guard:
                    held[gpu.uuid] += slots
                    most[gpu.uuid] = max(most[gpu.uuid], held[gpu.uuid])
                time.sleep(0.001)
                with guard:
                    held[gpu.uuid] -= slots

    threads = [threading.Thread(target=work, args=([draw.randint(1, 3) for _ in range(15)],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert dict(most) == {A.uuid: 3, B.uuid: 3}


def test_the_emptiest_gpu_is_first(tmp_path):
    with hold(1, 4, [A, B], tmp_path) as first, hold(2, 4, [A, B], tmp_path) as second:
        assert (first, second) == (A, B)
        with hold(2, 4, [A, B], tmp_path) as third:
            assert third == A
    with pytest.raises(ValueError, match=r"placement.gpu_slots: expected at most 4, the slots of one GPU; found 5"):
        hold(5, 4, [A, B], tmp_path).__enter__()


BY_INDEX = {"0": A, "1": B}


@pytest.mark.parametrize(
    "chosen,expected",
    [
        (None, [A, B]),
        ("1,0", [B, A]),
        ("1", [B]),
        ("GPU-bbbb", [B]),
        ("GPU-aaaa1111, 1", [A, B]),
        ("MIG-5c89852c", [Gpu("MIG-5c89852c", None)]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_an_existing_choice_of_gpus_is_kept(chosen, expected):
    assert visible(BY_INDEX, chosen) == expected


@pytest.mark.parametrize("chosen", ["2", "0,7", "GPU-cccc", "GPU-", "0,"])
def test_a_gpu_that_does_not_exist_is_an_error(chosen):
    message = r"CUDA_VISIBLE_DEVICES: expected GPUs among 0 \(GPU-aaaa1111\), 1 \(GPU-bbbb2222\); found '"
    with pytest.raises(ValueError, match=message):
        visible(BY_INDEX, chosen)


def test_what_nvidia_smi_says(machine, capsys, tmp_path):
    assert gpus() == [A, B]
    machine.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus() == [B]
    machine.setenv("FAKE_GPUS", "0, GPU-cccc, [N/A]\\n")
    machine.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert gpus() == [Gpu("GPU-cccc", None)]
    machine.setenv("FAKE_GPUS", "")
    capsys.readouterr()
    assert gpus() == []
    assert capsys.readouterr().err == f"no GPU is used: nvidia-smi fails: {fake_gpus.FAILURE}\n"
    machine.setenv("PATH", str(tmp_path))
    assert gpus() == []
    assert capsys.readouterr().err == ""


def test_a_job_is_bound_within_and_only_where_it_was_told_to(machine, capsys):
    def seen(**placement):
        with bound(PlacementConfig(**placement)):
            return os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("GRADLAB_HELD_SLOTS")

    assert seen(gpu_slots=1) == (None, None), "called by hand"
    machine.setenv("GRADLAB_GPU_SLOTS", "4")
    assert seen(gpu_slots=2) == (A.uuid, "2")
    assert (os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("GRADLAB_HELD_SLOTS")) == (None, None)
    assert seen(gpu_slots=0) == seen(gpu_slots=1, device="cpu") == (None, None)
    machine.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert seen(gpu_slots=4) == (B.uuid, "4"), "one GPU is left, and offers all"
    with pytest.raises(ValueError, match=r"placement.gpu_slots: expected a number .* found auto. Add --gpu-slots 1"):
        seen()
    machine.setenv("FAKE_GPUS", "")
    assert seen(gpu_slots=1) == ("1", None)
    machine.setenv("FAKE_GPUS", fake_gpus.TWO)
    machine.setenv("GRADLAB_GPU_SLOTS", "many")
    with pytest.raises(ValueError, match=r"GRADLAB_GPU_SLOTS: expected the number .* found 'many'"):
        seen(gpu_slots=1)


def test_slots_are_shared_out_evenly():
    assert [per_gpu(16, 2), per_gpu(9, 2), per_gpu(1, 8), per_gpu(0, 2)] == [8, 5, 1, 0]


def test_the_folder_of_locks_is_the_users_own(machine, tmp_path):
    folder = runtime_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(RuntimeError, match=r"expected a folder of user \d+; found another's"):
        runtime_folder()
