"""A pack evaluates what it trained: the same files as the run's own job writes, the base sampled once."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_training import config, rows, world  # noqa: F401  (the fixture)

from gradlab import evaluate as evaluating
from gradlab import staged_evaluation, staging
from gradlab.store import read_json, writer_lock
from gradlab.training import train_pack
from gradlab.workfolder import EVALUATED

WORK, BASES = Path("work/s"), Path("results/base")


def pack(**changes):
    return {f"r{seed}": config(seed=seed, adapter={"rank": 2 + seed}, **changes) for seed in range(2)}


def published(configs):
    assert train_pack(configs, WORK, BASES) == []
    for run, own in configs.items():
        assert staging.fetch(own, Path("results/s/runs") / run, WORK / run, BASES)
        Path("results/s/runs", run, "adapter/.snakemake_timestamp").touch()  # as Snakemake leaves in folders
    return {run: Path("results/s/runs") / run for run in configs}


def test_fetched_is_what_the_own_job_would_write(world, monkeypatch):  # noqa: F811
    sampled = []
    plain = evaluating._Completions

    class Counted(plain):
        def __init__(self, *arguments):
            sampled.append(1)
            super().__init__(*arguments)

    monkeypatch.setattr(evaluating, "_Completions", Counted)
    configs = pack()
    folders = published(configs)
    assert len(sampled) == 3, "two policies and one base"
    for run, own in configs.items():
        assert staged_evaluation.fetch(own, folders[run], WORK / run, BASES)
        fetched = {name: (folders[run] / name).read_text() for name in staged_evaluation.FILES}
        evaluating.evaluate(own, folders[run], BASES)
        assert fetched == {name: (folders[run] / name).read_text() for name in staged_evaluation.FILES}
        assert not staged_evaluation.fetch(own, folders[run], WORK / run, BASES), "fetched once"


@pytest.mark.parametrize("changed", ["evaluation", "prompts", "adapter", "meaning"])
def test_another_evaluation_is_not_fetched(world, monkeypatch, changed):  # noqa: F811
    configs = pack()
    folder, own = published(configs)["r0"], configs["r0"]
    if changed == "evaluation":
        own = own.model_copy(update={"evaluation": own.evaluation.model_copy(update={"samples_per_prompt": 2})})
    elif changed == "meaning":
        monkeypatch.setattr(staged_evaluation, "EVALUATION_MEANING", staged_evaluation.EVALUATION_MEANING + 1)
    elif changed == "prompts":
        Path("heldout.jsonl").write_text(rows("h", range(30, 36)))
    else:
        path = folder / "adapter/adapter_model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert not staged_evaluation.fetch(own, folder, WORK / "r0", BASES)
    assert not (folder / "eval.json").exists() and not (WORK / "r0" / EVALUATED).exists()


def test_bases_asked_differently_are_sampled_apart(world):  # noqa: F811
    configs = pack()
    other = configs["r1"].evaluation.model_copy(update={"seed": 7})
    configs["r1"] = configs["r1"].model_copy(update={"evaluation": other})
    folders = published(configs)
    for run, own in configs.items():
        staged_evaluation.fetch(own, folders[run], WORK / run, BASES)
    lengths = [read_json(folder / "eval.json")["completion_tokens_mean"]["base"] for folder in folders.values()]
    assert lengths[0] != lengths[1]


def test_a_run_that_can_not_be_evaluated_is_left_to_its_own_job(world, monkeypatch):  # noqa: F811
    configs = pack()
    plain = evaluating._summary

    def broken(own, *rest):
        if own.seed == 1:
            raise ValueError("no summary")
        return plain(own, *rest)

    monkeypatch.setattr(evaluating, "_summary", broken)
    assert [str(error) for error in train_pack(configs, WORK, BASES)] == ["no summary"]
    assert (WORK / "r0/evaluated/eval.json").is_file() and not (WORK / "r1/evaluated").exists()
    assert (WORK / "r1/finished/outcome.json").is_file()


def test_an_evaluation_does_not_wait_for_a_training_elsewhere(world):  # noqa: F811
    """A call with another results folder may train the same run, in the same work folder, while this one evaluates."""
    with writer_lock(WORK / "r0"):
        assert not staged_evaluation.fetch(config(), Path("results/s/runs/r0"), WORK / "r0", BASES)
