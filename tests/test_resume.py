"""A training that is killed, stopped or starved anywhere, and started again, ends as one that never was.

Real processes of scripts/train.py and scripts/train_pack.py on a tiny random base, on CPU: equal means bit for bit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from lives import ClockAt, Count, Durable, FullDisk, Kill, NoRights, Signal, Torn, live
from world import STEPS, config, make_world

from gradlab.identity import specification
from gradlab.store import read_json, read_jsonl
from gradlab.workfolder import EVALUATED

# What a run remembers between steps: baselines, a weighting's memory, moments; ranks that a pack pads.
RUNS = {
    "a": config(adapter={"rank": 4}, weighting={"name": "ctwa"}),
    "b": config(adapter={"rank": 2}, algorithm={"name": "reinforce", "inner_epochs": 2}, seed=1),
    "c": config(adapter={"rank": 8}, algorithm={"name": "rloo", "inner_epochs": 2}, seed=2),
}
EVALUATION = '{"samples_per_prompt": 1, "bootstrap": 100}'
PLACEMENT = ["--checkpoint-every", "2", "--device", "cpu", "--threads", "1"]


@pytest.fixture(scope="module")
def unused(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("unused"))


@pytest.fixture
def world(unused, tmp_path):
    shutil.copytree(unused, tmp_path, dirs_exist_ok=True)
    return tmp_path


def train(run: str) -> list[str]:
    folders = ["--run-dir", f"results/s/runs/{run}", "--work", f"work/s/{run}"]
    return ["train.py", "--spec", specification(RUNS[run], None), "--evaluation", EVALUATION, *folders, *PLACEMENT]


def programs(world: Path, runs: str) -> list[list[str]]:
    """What the workflow would start for these runs: a pack for those not trained yet, and each run's own job."""
    left = [run for run in runs if not (world / f"results/s/runs/{run}/config.json").exists()]
    wait = [run for run in left if not (world / f"work/s/{run}/finished").exists()]
    plan = {run: {"spec": specification(RUNS[run], None), "evaluation": EVALUATION} for run in wait}
    (world / "pack.json").write_text(json.dumps(plan))
    pack = [["train_pack.py", "--plan", "pack.json", "--work", "work/s", *PLACEMENT]]
    return [*(pack if len(wait) > 1 else []), *map(train, left)]


def finish(world: Path, runs: str) -> dict[str, dict]:
    assert live(world, programs(world, runs)) == 0, (world / "output").read_text()
    return results(world, runs)


def results(world: Path, runs: str) -> dict[str, dict]:
    """All that the runs wrote, but for times and for what says that they were resumed. Nothing else may lie around."""
    found = {}
    for run in runs:
        folder = world / f"results/s/runs/{run}"
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        rows = read_jsonl(folder / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(STEPS))
        files["metrics.jsonl"] = [{k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows]
        lines = files["train.log"].decode().splitlines()
        files["train.log"] = [line for line in lines if not line.startswith("resumed at")]
        files["provenance.json"] = read_json(folder / "provenance.json")["pack"]
        found[run] = files
        left = {p.name for p in (world / f"work/s/{run}").iterdir() if not p.name.endswith(".removed.tmp")}
        assert left <= {".lock", EVALUATED}  # but for what was killed while it was removed, after everything else
    return found


def checkpoints(world: Path, run: str) -> list[int]:
    return sorted(int(p.stem.partition("-")[2]) for p in (world / f"work/s/{run}").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def whole(unused, tmp_path_factory):
    """By the runs trained together: what they write if nothing happens, and the operations that it takes."""
    found = {}
    for runs in ("a", "abc"):
        world = shutil.copytree(unused, tmp_path_factory.mktemp("whole") / runs)
        assert live(world, programs(world, runs), Count()) == 0, (world / "output").read_text()
        found[runs] = results(world, runs), int((world / "operations").read_text())
    grams = [name for name in found["abc"][0]["b"] if name.startswith("probe/gram")]
    assert len(grams) == STEPS / 2 and found["abc"][0]["b"]["provenance.json"] == [{"from_step": 0, "runs": [*"abc"]}]
    return found


def test_a_run_depends_on_its_neighbours_by_rounding_only(whole):
    alone, together = whole["a"][0]["a"], whole["abc"][0]["a"]
    for mine, other in zip(alone["metrics.jsonl"], together["metrics.jsonl"], strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("runs,seed", [(runs, seed) for runs in ("a", "abc") for seed in range(4)])
def test_killed_at_random_again_and_again_is_never_killed(world, whole, runs, seed):
    """Three kills each, 24 in all, spread over a life from its first operation to the end of publishing."""
    expected, operations = whole[runs]
    draw = np.random.default_rng([seed, len(runs)])
    for part in range(3):
        # Of the whole life, then of what the kills so far have left; a fourth of it a seed.
        at = int(operations * (seed + draw.random()) / 4) + 1 if part == 0 else int(draw.integers(1, operations // 2))
        status = live(world, programs(world, runs), Kill(at))
        assert status in (0, -signal.SIGKILL), (world / "output").read_text()
        assert status or part, "the first kill came too late"
        for run in runs:
            assert len(checkpoints(world, run)) <= 2
    assert finish(world, runs) == expected


@pytest.mark.parametrize("file", [2, 4, 5, 6, 8, 12])
def test_killed_while_a_checkpoint_is_written(world, whole, file):
    """Three files at a time, at steps 0, 2, 4 and 6: some runs have the new one, one has half of it, some the old."""
    assert live(world, programs(world, "abc"), Torn(file)) == -signal.SIGKILL
    steps = [checkpoints(world, run) for run in "abc"]
    assert all(0 <= len(found) <= 2 for found in steps)
    assert finish(world, "abc") == whole["abc"][0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("runs", ["a", "abc"])
def test_asked_to_stop_it_saves_at_that_very_step(world, whole, runs, number):
    assert live(world, programs(world, runs), Signal(number, sampling=3)) == 1
    assert f"stopped after 3 of {STEPS} steps. The same command continues." in (world / "output").read_text()
    assert all(checkpoints(world, run) == [3] for run in runs), "one at rest"
    resumed = finish(world, runs)
    assert resumed == whole[runs][0]
    assert "resumed at step 3" in (world / f"results/s/runs/{runs[-1]}/train.log").read_text()


def test_a_disk_that_fills_up_between_the_files_of_a_pack(world, whole):
    """The last file of step 4 does not fit: two runs have it, all have step 2, and step 2 is where they go on."""
    assert live(world, programs(world, "abc"), FullDisk(9)) == 1
    assert "File too large" in (world / "output").read_text()
    assert [checkpoints(world, run) for run in "abc"] == [[2, 4], [2, 4], [2]]
    assert finish(world, "abc") == whole["abc"][0]
    assert "resumed at step 2" in (world / "results/s/runs/a/train.log").read_text()


@pytest.mark.parametrize("damage", ["cut", "garbage", "another version's"])
def test_a_damaged_checkpoint_is_named_and_never_used(world, whole, damage):
    assert live(world, programs(world, "a"), Signal(signal.SIGTERM, sampling=3)) == 1
    path = world / "work/s/a/checkpoint-3.safetensors"
    content = path.read_bytes()
    changed = {
        "cut": content[:-9],
        "garbage": b"\xff" * 999,
        "another version's": content.replace(b"history", b"histary"),
    }
    path.write_bytes(changed[damage])
    assert live(world, programs(world, "a")) == 1
    assert f"error: {path.relative_to(world)}: expected a checkpoint as this version" in (world / "output").read_text()
    path.unlink()
    assert finish(world, "a") == whole["a"][0]


def test_a_log_that_was_cut_is_named_and_never_continued(world, whole):
    assert live(world, programs(world, "a"), Signal(signal.SIGTERM, sampling=3)) == 1
    os.truncate(world / "work/s/a/log/metrics.jsonl", 10)
    assert live(world, programs(world, "a")) == 1
    said = (world / "output").read_text()
    assert "work/s/a/log/metrics.jsonl: expected at least the" in said and "remove work/s/a to" in said
    shutil.rmtree(world / "work/s/a")
    assert finish(world, "a") == whole["a"][0]


def test_a_log_that_went_on_after_the_checkpoint_is_cut_back(world, whole):
    assert live(world, programs(world, "a"), Signal(signal.SIGTERM, sampling=3)) == 1
    for name in ("metrics.jsonl", "samples.jsonl", "probe/probe.jsonl", "train.log"):
        with open(world / "work/s/a/log" / name, "a") as handle:
            handle.write('{"step": 3, "half of a')
    assert finish(world, "a") == whole["a"][0]


def test_data_that_was_changed_and_changed_back_does_not_mix_the_runs(world, whole):
    """The other data's start removes the checkpoint: its log is gone, and another's must not stand in for it."""
    assert live(world, programs(world, "a"), Signal(signal.SIGTERM, sampling=2)) == 1
    before = (world / "train.jsonl").read_text()
    (world / "train.jsonl").write_text(before.replace("plus 1", "plus one"))
    assert live(world, programs(world, "a"), Signal(signal.SIGKILL, sampling=2)) == -signal.SIGKILL
    (world / "train.jsonl").write_text(before)
    assert finish(world, "a") == whole["a"][0]


def test_a_clock_that_jumps_back_changes_nothing(world, whole):
    assert live(world, programs(world, "abc"), Kill(whole["abc"][1] // 2)) == -signal.SIGKILL
    for path in (world / "work").rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert live(world, programs(world, "abc"), ClockAt(1e9)) == 0, (world / "output").read_text()
    assert results(world, "abc") == whole["abc"][0]


@pytest.fixture
def public(unused):
    """A world that any user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(unused, folder, dirs_exist_ok=True)
        if os.geteuid() == 0:
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.chown(path, NoRights.user, NoRights.user)
        yield Path(folder)


def test_results_that_can_not_be_written_are_kept_and_published_later(public, whole):
    runs = public / "results/s/runs"
    runs.mkdir(parents=True, mode=0o555)
    assert live(public, programs(public, "a"), NoRights()) == 1
    assert "Permission denied: 'results/s/runs/" in (public / "output").read_text()
    assert (public / "work/s/a/finished/stamp").is_file() and not list(runs.iterdir())
    runs.chmod(0o755)
    assert finish(public, "a") == whole["a"][0]
    assert "step" not in (public / "output").read_text(), "it was trained again"


def test_a_loss_of_power_finds_everything_on_the_disk(world):
    assert live(world, programs(world, "abc"), Durable()) == 0, (world / "output").read_text()
