"""scripts/sweep.py on a copy of the workflow whose programs are stubs: its table, its call, its summary, its end."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from test_workflow import project  # noqa: F401  (a fixture)

from gradlab.launch.call import call

ROOT = Path(__file__).parents[1]
TRAIN = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT / "tests")!r})
from fake_runs import diverge, write_run
from gradlab.config import EvaluationConfig
from gradlab.identity import parse
from gradlab.store import write_json, writer_lock

def value(flag):
    return sys.argv[sys.argv.index(flag) + 1]

config, folder, work = parse(value("--spec")), Path(value("--run-dir")), Path(value("--work"))
if config.optimizer.lr == 0.25:
    sys.exit("error: the disk is full")
with writer_lock(work):
    while Path("hold").exists():
        time.sleep(0.05)
noted = EvaluationConfig.model_validate_json(value("--evaluation"))
write_run(folder, config.model_copy(update={{"evaluation": noted}}).model_dump(mode="json"))
write_json(folder / "provenance.json", {{"device": "cpu"}})
(folder / "adapter").mkdir(exist_ok=True)
if config.optimizer.lr == 0.5:
    diverge(folder, 3)
"""
EVALUATE = """
import json, sys
from pathlib import Path
estimate = {"mean": 0.125, "low": 0.0, "high": 0.25, "n": 8}
objectives = {label: {"policy": estimate} for label in ("brevity", "exactness")}
failed = "diverged" in (Path(sys.argv[1]) / "outcome.json").read_text()
(Path(sys.argv[1]) / "eval.json").write_text(json.dumps({"failed": "x"} if failed else {"objectives": objectives}))
(Path(sys.argv[1]) / "eval_samples.jsonl").touch()
"""


@pytest.fixture(scope="module")
def lab(project):  # noqa: F811
    """The project with the launcher, and stubs that leave what a sweep's summary reads."""
    for name in ("sweep", "watch"):
        shutil.copy(ROOT / f"scripts/{name}.py", project / "scripts")
    (project / "scripts/train.py").write_text(TRAIN)
    (project / "scripts/eval_run.py").write_text(EVALUATE)
    return project


def start(lab, *arguments, script="sweep", **kinds):
    return subprocess.Popen(
        [sys.executable, f"scripts/{script}.py", *arguments],
        cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kinds,
    )  # fmt: skip


def sweep(lab, *arguments, status=0, script="sweep"):
    process = start(lab, *arguments, script=script)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    return output


def table(output, column):
    """The last table with this column, as a mapping a row."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()]
    at = max(number for number, line in enumerate(lines) if column in line)
    return [dict(zip(lines[at], line, strict=False)) for line in lines[at + 1 :] if len(line) > 2]


def test_a_dry_run_shows_the_plan_and_writes_nothing(lab):
    before = sorted(lab.rglob("*"))
    changes = ("--grid", "seed=3", "lr=1e-4,3e-4", "--fixed", "max_steps=50", "--per-gpu", "12")
    output = sweep(lab, "--base", "mini", *changes, "--dry-run")
    assert {(row["algorithm"], row["lr"]) for row in table(output, "pack")} == {
        (algorithm, lr) for algorithm in ("grpo", "reinforce") for lr in ("0.0001", "0.0003")
    }
    assert "4 runs: 4 to do" in output
    assert "unknown" in output and "about" not in output
    assert "--per-gpu: no GPU" in output
    assert sorted(lab.rglob("*")) == before


def test_the_plan_counts_packs_and_the_slots_of_all_gpus(lab, tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '0, GPU-a, 24000\\n1, GPU-b, 24000\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    few = ("--fixed", "batch_size=8", "--grid", "seed=0,1,2", "--dry-run", "--cores", "3")
    output = sweep(lab, "--base", "mini", *few, "--per-gpu", "12", "--pack", "3")
    assert "on 3 cores and 24 GPU slots" in output
    assert {row["pack"] for row in table(output, "pack")} == {"3"}
    assert all(int(row["slots"]) >= 1 for row in table(output, "pack"))
    assert {row["pack"] for row in table(sweep(lab, "--base", "mini", *few), "pack")} == {"1"}
    too_many = sweep(lab, "--base", "mini", *few, "--fixed", "placement.gpu_slots=13", "--per-gpu", "12", status=1)
    assert "placement.gpu_slots: expected at most 12" in too_many


ONE = ("--base", "mini", "--fixed", "algorithm.name=grpo", "steps=20", "--grid", "seed=1,2", "--name", "mine")


@pytest.fixture(scope="module")
def made(lab):
    """Output of a first call."""
    return sweep(lab, *ONE, "--cores", "2")


def test_the_summary_has_the_final_rewards(lab, made):
    for row in table(made, "status"):
        folder = next((lab / "results/mine/runs").glob(f"*_s{row['seed']}-*"))
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert row["status"] == "done" and row["steps"] == "20/20"
        for column, key in (("reward", "reward_mean"), ("brevity", "reward_mean/brevity")):
            last = [row[key] for row in metrics[-2:]]  # the last tenth
            assert float(row[column]) == pytest.approx(sum(last) / 2, abs=6e-4)
    assert made.count("0.125") == 4, "two runs, two objectives on held-out prompts"
    assert "report: results/mine/report.html" in made


def test_the_same_command_continues_the_same_sweep(lab, made):
    again = sweep(lab, *ONE)
    assert "2 runs: 2 done" in again
    assert "Nothing to be done" in again
    assert "report: results/mine/report.html" in again


def test_estimates_come_from_what_was_made(lab, made):
    output = sweep(lab, "--base", "mini", "--fixed", "steps=200", "--cores", "2", "--dry-run")
    # Four runs of 200 steps of 0.7 s, two at a time.
    assert "about 5 min" in output and "unknown" not in output


def test_a_sweep_can_be_watched(lab, made):
    assert "mine: 2 done, 0 failed, 0 running of 2" in sweep(lab, "mine", script="watch")
    assert "mine: 0 done" in sweep(lab, "mine", "--results", "other/", script="watch")


def test_failed_and_diverged_runs_are_named_and_the_status_is_not_zero(lab):
    lr = ("--fixed", "algorithm.name=grpo", "steps=20", "seed=0", "--grid", "lr=0.125,0.25,0.5", "--name", "bad")
    output = sweep(lab, "--base", "mini", *lr, status=1)
    states = {row["lr"]: row["status"] for row in table(output, "status")}
    assert states == {"0.125": "done", "0.25": "failed", "0.5": "diverged at step 3"}
    run = next(path.name for path in (lab / "results/bad/runs").iterdir() if "lr0.5" in path.name)
    assert f"diverged: {run}: the loss is not finite" in output
    log = next((lab / "logs/bad/train").glob("*lr0.25*.log")).relative_to(lab)
    assert f"failed: {log}: the disk is full" in output
    assert "report: not made" in output
    assert "bad: 1 done, 1 diverged, 1 failed, 0 running of 3" in sweep(lab, "bad", script="watch")


def test_sigterm_stops_the_jobs_and_says_how_to_go_on(lab):
    (lab / "hold").touch()
    arguments = ("--base", "mini", "--fixed", "steps=21", "seed=0", "--name", "stopped")
    process = start(lab, *arguments)
    for _ in range(300):
        time.sleep(0.1)
        if len(locks := list(lab.glob("work/stopped/*/.lock"))) == 2 and all(lock.read_text() for lock in locks):
            break
    pids = [int(lock.read_text().split()[0]) for lock in locks]
    second = sweep(lab, *arguments, status=1)
    assert f"error: work/stopped: expected no other writer; found process {process.pid} on" in second
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    (lab / "hold").unlink()
    assert process.returncode == 1
    assert output.rstrip().endswith("The same command continues: finished runs are kept, interrupted ones resume.")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_view_that_fails_leaves_no_job_behind(tmp_path):
    """As when the reader of a pipe has gone: sweep.py ... | head."""
    log = tmp_path / "log"

    def view(stopping):
        while not log.read_text().endswith("\n"):
            time.sleep(0.01)
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        call([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(30)"], log, view)
    assert not psutil.pid_exists(int(log.read_text().split()[0]))


def test_a_sweep_file_that_differs_is_not_overwritten(lab, made):
    before = (lab / "config/sweeps/mine.yaml").read_text()
    output = sweep(lab, "--base", "mini", "--grid", "seed=9", "--name", "mine", status=1)
    assert "error: config/sweeps/mine.yaml: expected the sweep of this command" in output
    assert (lab / "config/sweeps/mine.yaml").read_text() == before


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--base", "mimi"), "sweeps: expected one of "),
        (("--base", "mini", "--per-gpu", "0"), "--per-gpu: expected at least 1; found 0"),
        (("--base", "mini", "--cores", "0"), "--cores: expected at least 1; found 0"),
        (("--base", "mini", "--name", "a/b"), "name of a sweep: expected letters"),
        (("--base", "mini", "--", "--config", "a=b"), "after --: expected no --config"),
        (("--base", "mini", "--profile", "profiles/mine"), "--profile: expected a folder with a file profile.yaml"),
        (("--base", "mini", "--profile", "elsewhere"), "--profile elsewhere: expected the package snakemake-exec"),
    ],
)
def test_mistakes_are_one_line(lab, arguments, message):
    (lab / "elsewhere").mkdir(exist_ok=True)
    (lab / "elsewhere/config.yaml").write_text("executor: no-such-cluster\n")
    output = sweep(lab, *arguments, status=1)
    assert output.startswith(f"error: {message}")
    assert "Traceback" not in output


def test_what_follows_two_dashes_goes_to_snakemake(lab, made):
    assert "Job stats" in sweep(lab, *ONE, "--", "--dry-run", "--forceall")
    part = sweep(lab, "--base", "mini", "--name", "part", "--", "--until", "sweep_table")
    assert "report: not made" in part
