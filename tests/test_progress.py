"""Where a run stands is read from its files: never from a lock that a job may want, never from a dead process."""

import concurrent.futures
import json
import os
import platform
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from gradlab.launch.progress import ENDED, Folders, progress
from gradlab.launch.screen import time_left
from gradlab.store import write_json, writer_lock

RUN = SimpleNamespace(id="a", config=SimpleNamespace(steps=10))
SWEEP = SimpleNamespace(name="s", runs={"a": RUN})


@pytest.fixture
def folders(tmp_path):
    return Folders(tmp_path / "results", tmp_path / "work", tmp_path / "logs")


def look(folders, known=None):
    return progress(SWEEP, folders, known)["a"]


def begin(folders, steps, seconds=0.5, checkpoint=None):
    """What a trainer leaves in its work folder after `steps` steps."""
    work = folders.work / "s/a"
    (work / "log").mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "seconds/step": seconds, "reward_mean": step / 10} for step in range(steps)]
    (work / "log/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if checkpoint is not None:
        (work / f"checkpoint-{checkpoint}.safetensors").touch()
    return work


def lock(work, text, age=0.0):
    (work / ".lock").write_text(text)
    os.utime(work / ".lock", (time.time() - age, time.time() - age))


def ended_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_nobody_began(folders):
    assert look(folders).state == "to do"


def test_a_run_at_work(folders):
    work = begin(folders, 4, checkpoint=2)
    with open(work / "log/metrics.jsonl", "a") as handle:
        handle.write('{"step": 4, "seco')  # half a row: being written
    with writer_lock(work):
        found = look(folders)
    assert (found.state, found.step, found.step_seconds, found.reward_mean) == ("running", 4, 0.5, 0.3)
    assert found.seconds_left == pytest.approx(3.0)


def test_a_run_that_ends_while_it_is_looked_at(folders):
    """Its growing files go at any moment between two questions about them; 300 looks meet that many times."""
    metrics, ended = begin(folders, 4) / "log/metrics.jsonl", threading.Event()

    def come_and_go():
        text = metrics.read_text()
        while not ended.is_set():
            metrics.unlink()
            metrics.write_text(text)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        trainer = pool.submit(come_and_go)
        try:
            states = {look(folders).state for _ in range(300)}
        finally:
            ended.set()
    trainer.result()
    assert states <= {"to do", "interrupted"}


def test_a_run_before_its_first_step_has_no_speed(folders):
    with writer_lock(begin(folders, 0)):
        found = look(folders)
    assert (found.state, found.step, found.step_seconds, found.seconds_left) == ("running", 0, None, None)


def test_a_killed_run_is_interrupted_at_its_checkpoint(folders):
    lock(begin(folders, 5, checkpoint=4), f"{ended_pid()} on {platform.node()}")
    assert (look(folders).state, look(folders).step) == ("interrupted", 4)


def test_another_process_with_the_number_of_a_dead_one_is_not_the_run(folders):
    lock(begin(folders, 5), f"{os.getpid()} on {platform.node()}", age=1e6)  # older than this process
    assert look(folders).state == "interrupted"


@pytest.mark.parametrize("age,state", [(5, "running"), (1000, "interrupted")])
def test_a_run_on_another_machine_runs_while_it_moves(folders, age, state):
    work = begin(folders, 5)
    lock(work, "1 on elsewhere")
    os.utime(work / "log/metrics.jsonl", (time.time() - age, time.time() - age))
    assert look(folders).state == state


def test_looking_does_not_keep_a_trainer_out(folders):
    """A shared lock taken for a moment would stop a trainer that starts in that moment."""
    begin(folders, 1)
    code = "import time\nfrom gradlab.store import writer_lock\n" + (
        f"for _ in range(200):\n    with writer_lock({str(folders.work / 's/a')!r}): time.sleep(0.001)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code])
    while trainer.poll() is None:
        look(folders)
    assert trainer.returncode == 0


@pytest.mark.parametrize(
    "text,note",
    [
        ("begins\nerror: objective x: no such\nDid you mean y?\n", "objective x: no such Did you mean y?"),
        ('Traceback (most recent call last):\n  File "a.py"\nMemoryError\n', "MemoryError"),
        ("torch.OutOfMemoryError: CUDA out of memory\n", "torch.OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_a_failed_run_says_why(folders, text, note):
    (folders.logs / "s/train").mkdir(parents=True)
    (folders.logs / "s/train/a.log").write_text(text)
    assert (look(folders).state, look(folders).note) == ("failed", note)


def test_a_stopped_run_did_not_fail(folders):
    begin(folders, 3, checkpoint=3)
    (folders.logs / "s/train").mkdir(parents=True)
    (folders.logs / "s/train/a.log").write_text("stopped at step 3\n")
    assert look(folders).state == "interrupted"


def publish(folders, status, steps_done, reason=None):
    folder = folders.results / "s/runs/a"
    write_json(folder / "config.json", {})
    write_json(folder / "outcome.json", {"status": status, "steps_done": steps_done, "steps": 10, "reason": reason})
    return folder


def test_a_run_that_ended(folders):
    (folders.work / "s/a/finished").mkdir(parents=True)
    assert look(folders).state == "staged"
    folder = publish(folders, "finished", 10)
    assert look(folders).state == "trained"
    write_json(folder / "eval.json", {})
    assert look(folders).state == "done"


def test_a_run_that_diverged_says_where_and_why(folders):
    publish(folders, "diverged", 3, "the loss is not finite")
    found = look(folders)
    assert (found.state, found.step, found.note) == ("diverged", 3, "the loss is not finite")


def test_a_folder_without_an_outcome_is_to_do(folders):
    write_json(folders.results / "s/runs/a/config.json", {})
    assert look(folders).state == "to do"


def test_what_ended_is_not_read_again(folders):
    write_json(publish(folders, "finished", 10) / "eval.json", {})
    known = progress(SWEEP, folders)
    assert known["a"].state in ENDED
    (folders.results / "s/runs/a/outcome.json").unlink()
    assert look(folders, known).state == "done"


def test_time_left_counts_the_runs_to_come(folders):
    with writer_lock(begin(folders, 4, seconds=2.0)):
        running = look(folders)
    idle = look(Folders(folders.results, folders.work / "none", folders.logs))
    assert time_left({"a": running}) == pytest.approx(12)
    assert time_left({"a": running, "b": running}) == pytest.approx(12), "two at once"
    assert time_left({"a": running, "b": idle}) == pytest.approx(32)
    assert time_left({"b": idle}) is None
