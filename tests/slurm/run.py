"""The demo through profiles/slurm on a Slurm that is set up here and torn down after: `make test-slurm`.

Checked: the report is made; jobs that train ran under Slurm with their shards of a GPU and the `CUDA_VISIBLE_DEVICES`
that goes with them; one that was cancelled is tried again with more memory, one that Slurm requeued (as it does after
a failed node) is not counted as a failure, and both go on from their checkpoints; two runs train as a pack, in a job
that the main process planned.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cluster import cluster, missing

ROOT = Path(__file__).parents[2]
PLUGIN = "snakemake_executor_plugin_slurm"
STEPS, SLOTS = 25, 2
FIXED = {
    "steps": STEPS,
    "algorithm.name": "grpo",
    "placement.checkpoint_every": 2,
    "placement.gpu_slots": SLOTS,
    "evaluation.samples_per_prompt": 1,
}
COMMAND = [
    *(sys.executable, "-m", "snakemake", "--nocolor", "--workflow-profile", "profiles/slurm"),
    *("--slurm-status-command", "squeue"),  # without an accounting daemon sacct knows nothing
    *("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10"),
]
SMALL = FIXED | {"steps": 4, "rollout.batch_size": 4, "rollout.num_generations": 4}  # a shape that gains by a pack


def main() -> None:
    lacking = missing() + ([] if importlib.util.find_spec(PLUGIN) else [f"package {PLUGIN}: make test-slurm"])
    if lacking:
        sys.exit("\n".join(["test-slurm: expected all that a Slurm of one node needs; missing:", *lacking]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what follows is torn down
    with tempfile.TemporaryDirectory(prefix="gradlab-slurm-") as name:
        folder = Path(name)
        project = copy_project(folder / "project")
        with cluster(folder / "slurm"):
            try:
                check(project, folder / "snakemake.log", folder / "slurm/finished.txt")
                check_pack(project, folder / "pack.log")
            except (AssertionError, subprocess.SubprocessError):
                for path in (*sorted(folder.glob("*.log")), *sorted((project / "logs").rglob("*.log"))):
                    print(f"--- {path}", path.read_text()[-3000:], sep="\n")
                raise


def check(project: Path, log: Path, finished: Path) -> None:
    """Make everything; cancel the first run that has left a checkpoint, requeue the second."""
    started = time.monotonic()
    command = [*COMMAND, "--config", f"fixed={json.dumps(FIXED)}"]
    with open(log, "w") as handle:
        call = subprocess.Popen(command, cwd=project, env=environment_with(project), stdout=handle, stderr=handle)
    try:
        stopped: list[str] = []
        for command in (["scancel"], ["scontrol", "requeue"]):
            run, seen = training(project, call, stopped)
            subprocess.run([*command, seen["SLURM_JOB_ID"]], check=True)
            print(f"{' '.join(command)} of job {seen['SLURM_JOB_ID']}: {run} on GPU {seen['CUDA_VISIBLE_DEVICES']}")
            stopped.append(run)
        assert call.wait(timeout=1200) == 0, "Snakemake failed"
    finally:
        call.terminate()
        call.wait()
    print(f"{time.monotonic() - started:.0f} s")
    assert log.read_text().count("Trying to restart job") == 1, "the cancelled job alone"
    assert (project / "results/demo/report.html").stat().st_size > 100_000
    for run in stopped:
        check_resumed(project, run)
        origin = json.loads((project / f"results/demo/runs/{run}/provenance.json").read_text())
        assert origin["slurm_job"], origin
    check_jobs(list(parsed(finished.read_text())), len(stopped))


def check_pack(project: Path, log: Path) -> None:
    """Two runs asked for by name train in one job; their own jobs fetch training and evaluation."""
    table = [sys.executable, "scripts/sweep_table.py", "demo", "--fixed", json.dumps(SMALL)]
    there = {"cwd": project, "env": environment_with(project)}
    runs = subprocess.check_output(table, text=True, **there).split()
    targets = [f"results/demo/runs/{run}/eval.json" for run in runs]
    config = ["--config", f"fixed={json.dumps(SMALL)}", "pack=2"]
    with open(log, "w") as handle:
        command = [*COMMAND, *config, "--", *targets]
        subprocess.run(command, stdout=handle, stderr=handle, check=True, timeout=600, **there)
    origins = [json.loads((project / target).with_name("provenance.json").read_text()) for target in targets]
    assert [origin["pack"] for origin in origins] == 2 * [[{"from_step": 0, "runs": runs}]], origins
    assert len({origin["slurm_job"] for origin in origins}) == 1
    for kind in ("train", "eval"):
        for run in runs:
            said = (project / f"logs/demo/{kind}/{run}.log").read_text()
            assert "it/s" not in said and "Loading weights" not in said, f"expected {kind} of {run} fetched: {said}"
    print(f"{len(runs)} runs trained in job {origins[0]['slurm_job']}")


def environment_with(project: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{project}/src:{os.environ.get('PYTHONPATH', '')}"}


def copy_project(project: Path) -> Path:
    """The workflow with a base that is made in seconds; its results and checkpoints lie there as well."""
    for part in ("workflow", "profiles", "config", "scripts", "toy_data", "src"):
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "Snakefile", project)
    base = project / "config/bases/toy.yaml"
    text = base.read_text().partition("bands:")[0]  # a short training need not reach them
    base.write_text(re.sub(r"^steps: .*$", "steps: 60", text, flags=re.M))
    return project


def training(project: Path, call: subprocess.Popen, but: list[str]) -> tuple[str, dict[str, str]]:
    """A run that trains and has left a checkpoint, and what its process has in its environment."""
    while call.poll() is None:
        for checkpoint in (project / "work/demo").glob("*/checkpoint*.safetensors"):
            if (run := checkpoint.parent.name) not in but:
                seen = environment_of(int((checkpoint.parent / ".lock").read_text().split()[0]))
                check_gpu(seen)
                return run, seen
        time.sleep(0.2)
    raise AssertionError(f"expected two runs that leave checkpoints; found {but}, and Snakemake has ended")


def check_gpu(seen: dict[str, str]) -> None:
    """The trainer's own process runs under Slurm, on one GPU, with the shards that its slots stand for."""
    granted = ["squeue", "--noheader", "--format=%b", f"--job={seen['SLURM_JOB_ID']}"]
    assert subprocess.check_output(granted, text=True).strip() == f"gres:shard:{SLOTS}"
    assert seen["CUDA_VISIBLE_DEVICES"] in ("0", "1"), seen["CUDA_VISIBLE_DEVICES"]
    assert seen["GRADLAB_MPS"] == "left to the cluster"
    assert "GRADLAB_GPU_SLOTS" not in seen, "the cluster has bound the job; it must not wait for slots"


def environment_of(process: int) -> dict[str, str]:
    entries = Path(f"/proc/{process}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def check_resumed(project: Path, run: str) -> None:
    """The last attempt began after the cancelled one's checkpoint, and every step is there once."""
    progress = (project / f"logs/demo/train/{run}.log").read_text()
    first = int(re.findall(rf"(\d+)/{STEPS}", progress)[0])
    assert first > 0, progress
    rows = map(json.loads, (project / f"results/demo/runs/{run}/metrics.jsonl").read_text().splitlines())
    assert [row["step"] for row in rows] == list(range(STEPS))
    print(f"{run} went on from step {first}; its metrics have every step once")


def check_jobs(jobs: list[dict[str, str]], runs: int) -> None:
    """What Slurm has written of the jobs that ended."""
    for job in jobs:
        print(f"job {job['JobId']:>2} {job['JobState']:9} {job.get('Tres', '')}")
    cancelled = [job for job in jobs if job["JobState"] == "CANCELLED"]
    assert len(cancelled) == 1
    most = max(memory_mib(job) for job in jobs)
    assert most == 2 * memory_mib(cancelled[0]), "the second attempt asks for twice as much"
    assert sum(job["JobState"] == "COMPLETED" for job in jobs) == 2 * runs + 3, "base, train, eval, aggregate, report"


def memory_mib(job: dict[str, str]) -> int:
    number, unit = re.search(r"mem=(\d+)([MG])", job["Tres"]).groups()
    return int(number) * {"M": 1, "G": 1024}[unit]


def parsed(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        yield dict(word.split("=", 1) for word in line.split() if "=" in word)


if __name__ == "__main__":
    main()
