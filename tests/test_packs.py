"""Runs that train together: who leaves a pack, what the others get, how runs come and go between packs; the planner."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_engine import assert_close
from world import config, make_world

from gradlab import engine, training
from gradlab.config import RunConfig
from gradlab.objectives.brevity import Brevity
from gradlab.packs import planner
from gradlab.staging import fetch
from gradlab.stopping import Stopped
from gradlab.store import read_json, read_jsonl, writer_lock
from gradlab.sweep import Run

WORK = Path("work/s")
EVERY_2 = {"placement": {"checkpoint_every": 2}}
RUNS = {
    "a": config(adapter={"rank": 4}, weighting={"name": "ctwa"}, **EVERY_2),
    "b": config(adapter={"rank": 2}, algorithm={"name": "reinforce", "inner_epochs": 2}, seed=1, **EVERY_2),
    "c": config(adapter={"rank": 8}, algorithm={"name": "rloo", "inner_epochs": 2}, seed=2, **EVERY_2),
}


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_world(tmp_path)


def alone(run: str, own: RunConfig | None = None, name: str | None = None) -> Path:
    """The run's own job: publish what a pack has staged, else train."""
    own, name = own or RUNS[run], name or run
    folder = Path("results/s/runs") / name
    if not fetch(own, folder, WORK / name, "results/base"):
        training.train(own, folder, WORK / name, "results/base")
    return folder


def together(runs: str) -> list[Exception]:
    return training.train_pack({run: RUNS[run] for run in runs}, WORK, "results/base")


def assert_same_run(found: Path, expected: Path) -> None:
    """Two folders of one run, to rounding; metrics without a gap."""
    for name in ("metrics.jsonl", "samples.jsonl", "probe/probe.jsonl"):
        rows = [[dict(row) for row in read_jsonl(folder / name)] for folder in (found, expected)]
        for row in (row for side in rows for row in side):
            for key in [k for k in row if k.startswith("seconds/") or k == "sampler_logp_gap_max_nats"]:
                del row[key]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
        assert_close(*rows)
    steps = read_json(expected / "outcome.json")["steps"]
    assert [row["step"] for row in read_jsonl(found / "metrics.jsonl")] == list(range(steps))
    ours, theirs = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (found, expected))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-5, rtol=1e-3)
    for name in ("config.json", "outcome.json"):
        assert read_json(found / name) == read_json(expected / name)


def history(run: str) -> list[tuple[int, str]]:
    parts = read_json(f"results/s/runs/{run}/provenance.json")["pack"]
    return [(part["from_step"], "".join(part["runs"])) for part in parts]


@pytest.fixture
def stop_after(monkeypatch):
    """Have the next training stop after so many steps, as if a signal had come."""

    def set_up(steps: int) -> contextlib.AbstractContextManager[object]:
        asked = iter([False] * (steps - 1) + [True])
        requested = contextlib.nullcontext(lambda: next(asked))
        monkeypatch.setattr(training, "stop_requested", lambda: requested)
        return pytest.raises(Stopped, match="stopped after")

    yield set_up


@pytest.fixture
def go_on(monkeypatch):
    return lambda: monkeypatch.setattr(training, "stop_requested", lambda: contextlib.nullcontext(lambda: False))


@pytest.mark.parametrize("inner,again_from", [(0, 3), (1, 2)])
def test_a_run_that_diverges_leaves_the_others_as_they_are(world, monkeypatch, inner, again_from):
    """At step 3. In a later inner epoch the parameters have moved: the others repeat step 2 from the checkpoint."""
    plain, calls = engine.accumulate, []

    def poisoned(adapter, batch, first, *rest):
        result = plain(adapter, batch, first, *rest)
        calls.append(first)
        if adapter.runs == 3 and sum(calls) == 4 and first == (inner == 0):
            adapter.modules["model.layers.0.mlp.up_proj"].A_RrI.grad[1, 0, 0] = float("nan")
        return result

    monkeypatch.setattr(engine, "accumulate", poisoned)
    assert together("abc") == []
    folder = alone("b")
    outcome = read_json(folder / "outcome.json")
    assert (outcome["status"], outcome["steps_done"]) == ("diverged", 3)
    assert re.match("step 3: expected a finite loss and gradient; found .*work/s/b/diverged.json", outcome["reason"])
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == [0, 1, 2]
    assert all(value.isfinite().all() for value in load_file(folder / "adapter/adapter_model.safetensors").values())
    for run in "ac":
        assert_same_run(alone(run), alone(run, name=f"{run}-alone"))
        assert history(run) == [(0, "abc"), (again_from, "ac")]
    assert history("b") == [(0, "abc")]


def test_a_run_that_can_not_be_scored_is_left_to_its_own_job(world, monkeypatch):
    picky = {"brevity": {"params": {"target_words": 1, "max_words": 13}}}
    monkeypatch.setitem(RUNS, "b", RUNS["b"].model_copy(update={"objectives": config(objectives=picky).objectives}))
    plain, calls = Brevity.score, []

    def refuses(self, completion, example):
        if self.max_words == 13:
            calls.append(1)
            if len(calls) > 24:
                raise ValueError("the judge is on strike")
        return plain(self, completion, example)

    monkeypatch.setattr(Brevity, "score", refuses)
    (error,) = together("abc")
    assert re.match("step 3: the judge is on strike. The state before is in work/s/b", str(error))
    with pytest.raises(engine.Unscorable, match=re.escape(str(error))):
        alone("b")
    assert not Path("results/s/runs/b").exists()
    for run in "ac":
        assert_same_run(alone(run), alone(run, name=f"{run}-alone"))
    monkeypatch.setattr(Brevity, "score", plain)
    assert_same_run(alone("b"), alone("b", name="b-alone"))
    assert history("b") == [(0, "abc"), (3, "b")]


def test_a_member_that_does_not_fit_leaves_all_to_their_own_jobs(world, monkeypatch):
    row = {"id": "long", "task": "arithmetic", "prompt": "what is " * 60 + "1 plus 1?", "answer": 2}
    Path("long.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setitem(RUNS, "c", config(data={"train": ["long.jsonl"], "heldout": ["heldout.jsonl"]}))
    (error,) = together("abc")
    assert "prompt of example 'long'" in str(error)
    with pytest.raises(ValueError, match=re.escape(str(error))):
        alone("c")
    assert_same_run(alone("a"), alone("a", name="a-alone"))
    assert read_json("results/s/runs/a/provenance.json")["pack"] is None


def test_runs_interrupted_alone_go_on_in_a_pack(world, stop_after, go_on):
    for run in "abc":
        with stop_after(3):
            alone(run)
    go_on()
    assert together("abc") == []
    for run in "abc":
        assert_same_run(alone(run), alone(run, name=f"{run}-alone"))
        assert history(run) == [(0, run), (3, "abc")]


def test_runs_interrupted_at_different_steps_each_go_on_from_their_own(world, stop_after, go_on):
    for run, steps in (("a", 3), ("b", 5)):
        with stop_after(steps):
            alone(run)
    go_on()
    assert together("abc") == []
    for run, steps in (("a", 3), ("b", 5), ("c", 0)):
        folder = alone(run)
        assert (f"resumed at step {steps}" in (folder / "train.log").read_text()) == bool(steps)
        assert read_json(folder / "provenance.json")["pack"] is None
        assert_same_run(folder, alone(run, name=f"{run}-alone"))


def test_a_run_interrupted_in_a_pack_goes_on_alone(world, stop_after, go_on):
    with stop_after(3):
        together("abc")
    go_on()
    for run in "abc":
        assert_same_run(alone(run), alone(run, name=f"{run}-alone"))
        assert history(run) == [(0, "abc"), (3, run)]


def test_a_newer_checkpoint_is_gone_before_the_log_is_cut_back_to_an_older_one(world, stop_after, go_on, monkeypatch):
    """A pack killed while it wrote step 4 goes on at step 2 and is killed again; alone, the run must not jump to 4."""
    with stop_after(2):
        together("ab")
    files = {run: WORK / run / "checkpoint-2.safetensors" for run in "ab"}
    content = {run: file.read_bytes() for run, file in files.items()}
    with stop_after(2):
        together("ab")
    for run, file in files.items():
        file.write_bytes(content[run])
    (WORK / "b/checkpoint-4.safetensors").unlink()
    go_on()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.Trainer, "step", lambda self, step: signal.raise_signal(signal.SIGINT))
        together("ab")
    assert [path.name for path in (WORK / "a").glob("checkpoint*")] == ["checkpoint-2.safetensors"]
    assert_same_run(alone("a"), alone("a", name="a-alone"))


def test_a_member_that_another_process_holds_stops_the_pack_with_its_name(world):
    with writer_lock(WORK / "b"), pytest.raises(RuntimeError, match="work/s/b: expected no other writer"):
        together("abc")
    with writer_lock(WORK / "a"), writer_lock(WORK / "c"):
        assert not list(WORK.glob("*/finished"))


def test_two_full_fine_tunings_are_left_to_their_own_jobs(world, monkeypatch):
    for run in "ab":
        monkeypatch.setitem(RUNS, run, config(adapter={"kind": "full"}, steps=1))
    (error,) = together("ab")
    assert "expected one `full` run a process" in str(error)
    assert (alone("a") / "adapter/model.safetensors").is_file()


def test_the_same_runs_alone_and_packed_draw_the_same_curves(world, monkeypatch):
    """The certificate: the first step's tokens equal, its log-probs to 1e-5, all metrics of 16 steps to rounding."""
    runs = {f"s{seed}": config(seed=seed, steps=16, adapter={"rank": 2 + seed}) for seed in range(4)}
    first: list[torch.Tensor] = []
    plain = engine.sample

    def recording(adapter, *rest):
        rollout = plain(adapter, *rest)
        if not any(module.B_ROr.any() for module in adapter.modules.values()):  # nothing learnt yet
            first.extend(rollout.logp_NC.split(8))
        return rollout

    monkeypatch.setattr(engine, "sample", recording)
    assert training.train_pack(runs, WORK, "results/base") == []
    for name, own in runs.items():
        assert_same_run(alone(name, own), alone(name, own, f"{name}-alone"))
    for packed, single in zip(first[:4], first[4:], strict=True):
        width = min(packed.shape[1], single.shape[1])
        torch.testing.assert_close(packed[:, :width], single[:, :width], atol=1e-5, rtol=0)
        assert not packed[:, width:].any() and not single[:, width:].any()
    rewards = [row["reward_mean"] for row in read_jsonl("results/s/runs/s0/metrics.jsonl")]
    assert len(set(rewards)) > 8, "a curve that does not move would certify nothing"


# The planner.


def waiting_run(name: str, **changes) -> Run:
    return Run(name, config(**changes), {}, "")


def names(planned: dict[str, list[Run]]) -> list[str]:
    return ["".join(run.id for run in members) for members in planned.values()]


def checkpoint_at(run: str, *steps: int) -> None:
    (WORK / run).mkdir(parents=True, exist_ok=True)
    for step in steps:
        (WORK / run / f"checkpoint-{step}.safetensors").touch()


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "count,size,expected",
    [
        (7, 3, ["ab", "cde", "fg"]),
        (4, 3, ["ab", "cd"]),
        (6, 6, ["abcdef"]),
        (3, 2, ["ab"]),
        (1, 4, []),
        (5, 1, []),
    ],
)
def test_packs_are_even_and_in_the_order_of_the_sweep(empty, count, size, expected):
    runs = [waiting_run(name, seed=seed, adapter={"rank": 1 + seed}) for seed, name in enumerate("abcdefg"[:count])]
    assert names(planner.plan(runs, size, WORK)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 9},
        {"model": {"id": "base/other"}},
        {"adapter": {"targets": ["q_proj"]}},
        {"rollout": {"batch_size": 4, "num_generations": 4, "max_new_tokens": 8}},
        {"probe": {"every": 3}},
        {"placement": {"threads": 2}},
    ],
)
def test_only_runs_that_can_share_a_process_are_packed(empty, changes):
    runs = [waiting_run("a"), waiting_run("b", **changes), waiting_run("c", seed=1)]
    runs.append(waiting_run("d", **{**changes, "seed": 1}))
    assert names(planner.plan(runs, 4, WORK)) == ["ac", "bd"]


def test_full_fine_tuning_is_never_packed(empty):
    runs = [waiting_run(name, seed=seed, adapter={"kind": "full"}) for seed, name in enumerate("abc")]
    assert planner.plan(runs, 4, WORK) == {}


def test_runs_at_different_steps_stay_apart_and_a_pack_killed_while_it_wrote_comes_together(empty):
    runs = [waiting_run(name, seed=seed) for seed, name in enumerate("abcdef")]
    checkpoint_at("a", 2)
    checkpoint_at("b", 2, 4)
    checkpoint_at("c", 4)
    checkpoint_at("d", 0)
    assert names(planner.plan(runs, 4, WORK)) == ["ab", "def"]
    checkpoint_at("f", 4)
    assert names(planner.plan(runs, 4, WORK)) == ["cf", "ab", "de"]


def test_a_second_attempt_has_a_name_of_its_own(empty):
    runs = [waiting_run("a"), waiting_run("b", seed=1)]
    (first,) = planner.plan(runs, 2, WORK)
    (WORK / "packs").mkdir(parents=True)
    (WORK / "packs" / first).touch()
    (second,) = planner.plan(runs, 2, WORK)
    assert first != second and planner.plan(runs, 2, WORK).keys() == {second}


def test_a_run_waits_until_it_is_published_or_staged(empty):
    run, folder = waiting_run("a"), Path("results/a")
    assert planner.waiting(run, folder, WORK)
    (WORK / "a/finished").mkdir(parents=True)
    assert not planner.waiting(run, folder, WORK)
    (WORK / "a/finished").rmdir()
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    assert not planner.waiting(run, folder, WORK)


def test_a_pack_that_does_not_fit_into_memory_says_how_to_mend_it(world, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(training, "Trainer", full)
    with pytest.raises(RuntimeError, match=r"pack: expected 3 runs to fit .* Lower it: --config pack=1\."):
        together("abc")
