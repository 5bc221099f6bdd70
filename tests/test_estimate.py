"""Estimates come from runs that were alike; what none tells is unknown."""

import pytest
from fake_runs import write_run

from gradlab.config import RunConfig
from gradlab.launch.estimate import Job, makespan, read_history
from gradlab.store import read_json, write_json, write_jsonl

CONFIG = {
    "model": {"id": "base/tiny"},
    "algorithm": {"name": "grpo"},
    "objectives": {"brevity": {}},
    "data": {"train": ["a"], "heldout": ["b"]},
    "steps": 10,
}


def config(**changes):
    return RunConfig.model_validate(CONFIG | changes)


@pytest.fixture
def past(tmp_path):
    """Writes one finished run, 0.7 s a step, and what Snakemake measured of its jobs."""

    def write(run="a", pack=None, train=9.0, evaluation=2.0, device="cpu", **changes):
        folder = tmp_path / "results/s/runs" / run
        write_run(folder, config(**changes).model_dump(mode="json"))
        write_json(folder / "provenance.json", {"device": device, "pack": pack})
        write_jsonl(tmp_path / f"logs/s/train/{run}.jsonl", [{"s": train}])
        write_jsonl(tmp_path / f"logs/s/eval/{run}.jsonl", [{"s": evaluation}])
        return folder

    return write


def history(tmp_path, gpu=False):
    return read_history(tmp_path / "results", tmp_path / "logs", gpu)


def test_steps_are_scaled_and_start_up_is_not(past, tmp_path):
    past()
    found = history(tmp_path)
    assert found.training([config(steps=100, seed=5)]) == pytest.approx(100 * 0.7 + 2.0)  # 9 s less 10 steps
    assert found.training([config(steps=100)], from_step=90) == pytest.approx(10 * 0.7 + 2.0)
    assert found.evaluation(config(seed=7)) == 2.0


def test_what_nothing_tells_is_unknown(past, tmp_path):
    past()
    found = history(tmp_path)
    assert found.training([config(rollout={"batch_size": 64})]) is None
    assert found.training([config(model={"id": "base/other"})]) is None
    assert found.training([config(), config(seed=1)]) is None, "a pack is not its runs one after the other"
    assert found.evaluation(config(evaluation={"samples_per_prompt": 9})) is None
    assert history(tmp_path, gpu=True).training([config()]) is None, "measured on the CPU"
    assert history(tmp_path / "empty").training([config()]) is None


def test_a_pack_is_estimated_from_packs_of_its_size(past, tmp_path):
    past(pack=[{"from_step": 0, "runs": ["a", "b"]}], train=0.2)
    found = history(tmp_path)
    assert found.training([config(), config(seed=1)]) == pytest.approx(7.0)
    assert found.training([config()]) is None


def test_the_benchmark_of_a_resumed_run_is_no_start_up(past, tmp_path):
    past(train=1.0)  # less than its steps took
    assert history(tmp_path).training([config()]) == pytest.approx(7.0)


def test_a_run_of_another_version_tells_nothing(past, tmp_path):
    folder = past()
    write_json(folder / "config.json", read_json(folder / "config.json") | {"since_removed": 1})
    assert history(tmp_path).training([config()]) is None


@pytest.mark.parametrize(
    "jobs,cores,slots,seconds",
    [
        ([], 4, None, 0),
        ([(10, 1, 0)] * 4, 2, None, 20),
        ([(10, 1, 0)] * 4, 4, None, 10),
        ([(10, 2, 0)] * 4, 3, None, 40),  # two threads each: one at a time
        ([(10, 8, 0)], 2, None, 10),  # Snakemake gives a job what there is
        ([(10, 1, 2)] * 4, 16, 4, 20),  # slots bound
        ([(30, 1, 0), (10, 1, 0), (10, 1, 0)], 2, None, 30),
    ],
)
def test_jobs_share_cores_and_slots(jobs, cores, slots, seconds):
    assert makespan([Job(*job) for job in jobs], cores, slots) == seconds
