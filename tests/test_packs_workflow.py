"""Packs in the workflow: which runs they get, one that dies, several calls and machines at work. Stubs as programs."""

import json
import shutil

from test_workflow import (  # project and done: fixtures
    NEW_RUNS,
    SWEEP,
    SWEEP_FILE,
    done,  # noqa: F401
    edit,  # noqa: F401
    plan,
    project,  # noqa: F401
    snakemake,
    start,
    trainings,
    wait_for,
)

from gradlab.sweep import load


def test_a_larger_pack_re_runs_nothing_and_packs_what_is_new(done, edit):  # noqa: F811
    assert plan(done, "--config", "pack=3") == {}
    edit(SWEEP_FILE, "seed: [0, 1]", "seed: [0, 1, 2]")
    assert plan(done, "--config", "pack=3") == {"pack": 1, "train": 2, "eval_run": 2, **NEW_RUNS}


def test_runs_named_of_several_sweeps_are_packed_and_no_others(done, monkeypatch):  # noqa: F811
    monkeypatch.chdir(done)
    runs = {name: [f"new/{name}/runs/{run}/config.json" for run in load(name).runs] for name in ("mini", "other")}
    options = ("--config", "results=new", "pack=4")
    assert plan(done, *options, "--", *runs["mini"][:3], runs["other"][0]) == {"base": 1, "pack": 1, "train": 4}
    (done / "config/sweeps/third.yaml").write_text(SWEEP.replace("seed: [0, 1]", "seed: [6]"))
    neither = ("--config", "results=new", "pack=4", "sweeps=third", "--", runs["mini"][0], runs["other"][0])
    assert plan(done, *neither) == {"base": 1, "train": 2}
    (done / "config/sweeps/third.yaml").unlink()


def test_a_pack_that_dies_publishes_nothing_and_the_same_command_finishes(done):  # noqa: F811
    fresh = ("--config", "results=dying", "pack=4")
    before = {kind: len(trainings(done, kind)) for kind in ("pack", "train", "fetch")}

    def new(kind):
        return trainings(done, kind)[before[kind] :]

    (done / "broken").touch()
    assert "error: the disk is full" in snakemake(done, *fresh, ok=False)
    (done / "broken").unlink()
    assert not (done / "dying/mini/runs").exists() and not new("train") and not new("fetch")
    snakemake(done, *fresh)
    assert [len(runs) for runs in new("pack")] == [4] and len(new("fetch")) == 4 and not new("train")
    assert "Nothing to be done" in snakemake(done, *fresh)
    run = next((done / "dying/mini/runs").iterdir())
    shutil.rmtree(run)
    snakemake(done, *fresh)
    assert new("train") == [[run.name]] and len(new("pack")) == 1


def test_packs_of_two_calls_at_once_do_not_mix(done):  # noqa: F811
    """The second plans and trains while packs of the first wait for a core."""
    before = len(trainings(done, "pack"))
    (done / "hold").touch()
    options = ("--cores", "1", "--until", "train", "--config", "pack=2")
    try:
        first = start(done, *options, "results=first", 'grid={"seed": [11, 12]}')
        wait_for(lambda: len(trainings(done, "pack")) > before, first)
        second = start(done, *options, "results=second", 'grid={"seed": [13, 14]}')
        wait_for(lambda: len(trainings(done, "pack")) > before + 1, second)
    finally:
        (done / "hold").unlink()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert [len(runs) for runs in trainings(done, "pack")[before:]] == [2] * 4


def test_jobs_on_other_machines_plan_nothing_and_read_what_was_planned(done, monkeypatch):  # noqa: F811
    monkeypatch.chdir(done)
    runs = list(load("mini").runs.values())[:2]
    job = ("--mode", "remote", "--config", "pack=2", "results=results", "--force", "--")
    outcomes = [f"results/mini/runs/{run.id}/outcome.json" for run in runs]
    assert plan(done, *job, *outcomes) == {"train": 2}
    written = done / "work/mini/packs/0a1b2c3d.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(json.dumps({run.id: {} for run in runs}))
    assert "train 2 runs together (pack 0a1b2c3d, " in snakemake(done, "--dry-run", *job, "work/mini/packs/0a1b2c3d")
    written.unlink()


def test_a_call_without_hooks_plans_no_pack(done):  # noqa: F811
    message = "--no-hooks: expected only with pack=1"
    assert message in snakemake(done, "--no-hooks", "--config", "results=bare", "pack=2", ok=False)
    assert plan(done, "--no-hooks", "--config", "results=bare", "pack=1")["train"] == 4
