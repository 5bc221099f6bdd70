"""A sweep file makes the runs it says, under ids that change only with what is trained; mistakes are explained."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from gradlab import identity
from gradlab.config import RunConfig
from gradlab.explain import validate
from gradlab.sweep import load
from gradlab.sweep_file import WorkflowConfig

SWEEP = """
title: Test
fixed:
  model.id: base/toy
  algorithm.name: grpo
  objectives: {exactness: {}, brevity: {}}
  data: {train: [data/train.jsonl], heldout: [data/heldout.jsonl]}
  rollout: {batch_size: 8, num_generations: 4}
grid:
  optimizer.lr: [3e-4, 1.0e-3]
  seed: [0, 42]
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with one base, two data files and one sweep named test."""
    for folder in ("config/sweeps", "config/bases", "data"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/train.jsonl").write_text("{}\n")
    (tmp_path / "data/heldout.jsonl").write_text("{}\n")
    (tmp_path / "config/bases/toy.yaml").write_text("corpus: [data/train.jsonl]\nsteps: 10\n")
    (tmp_path / "config/sweeps/test.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(project, **parts):
    """The sweep with `fixed` values merged and other parts replaced; None removes a fixed value."""
    sweep = yaml.safe_load(SWEEP)
    sweep["fixed"] = {k: v for k, v in (sweep["fixed"] | parts.pop("fixed", {})).items() if v is not None}
    (project / "config/sweeps/test.yaml").write_text(yaml.safe_dump(sweep | parts, sort_keys=False))
    return load("test")


def ids(sweep):
    return list(sweep.runs)


def test_the_runs_are_the_product_of_the_axes_with_readable_ids(project):
    sweep = load("test")
    assert [re.sub(r"-[0-9a-f]{8}$", "", run) for run in sweep.runs] == [
        f"grpo_lora_lr{lr}_s{seed}" for lr in ("3e-4", "1e-3") for seed in (0, 42)
    ]
    run = list(sweep.runs.values())[1]
    assert run.varies == {"optimizer.lr": 3e-4, "seed": 42}
    assert run.config.optimizer.lr == 3e-4, "YAML reads 3e-4 as a string"
    assert run.config.rollout.batch_size == 8
    assert run.base == "toy"
    assert sweep.table()["runs"][1] == {"run": run.id, "varies": run.varies}


def test_a_value_added_to_a_list_keeps_the_other_ids(project):
    assert set(ids(load("test"))) < set(
        ids(change(project, grid={"optimizer.lr": ["3e-4", 1e-3, 0.01], "seed": [42, 0]}))
    )


PARAMS = {"params": {"target_words": 10}}  # its default


@pytest.mark.parametrize(
    "fixed",
    [
        {"rollout": {"num_generations": 4, "batch_size": 8}, "objectives": {"brevity": {}, "exactness": {}}},
        {"rollout": None, "rollout.batch_size": 8, "rollout.num_generations": 4},
        {"optimizer": {"warmup_steps": 0, "betas": [0.9, 0.999]}},
        {
            "objectives": {
                "exactness": {"kind": "exactness", "weight": 1},
                "brevity": PARAMS,
                "refusal": {"enabled": False},
            }
        },
        {"placement": {"threads": 2, "gpu_slots": 0}},
        {"evaluation": {"samples_per_prompt": 2}},
    ],
    ids=["order", "dotted", "defaults", "objective defaults", "placement", "evaluation"],
)
def test_what_does_not_affect_training_keeps_ids(project, fixed):
    before = ids(load("test"))
    assert ids(change(project, fixed=fixed)) == before


@pytest.mark.parametrize(
    "fixed",
    [
        {"steps": 7},
        {"objectives": {"exactness": {}, "brevity": {"weight": 2}}},
        {"objectives": {"exactness": {}, "short": {"kind": "brevity"}}},
        {"data": {"train": ["data/heldout.jsonl"], "heldout": ["data/heldout.jsonl"]}},
    ],
)
def test_what_affects_training_changes_every_id(project, fixed):
    before = ids(load("test"))
    assert not set(ids(change(project, fixed=fixed))) & set(before)


def test_the_base_is_part_of_the_run_and_its_checks_are_not(project):
    before, base = ids(load("test")), project / "config/bases/toy.yaml"
    base.write_text("# comment\nsteps: 10\ncorpus: [data/train.jsonl]\nbands: {happy_stories: [0, 1]}\n")
    assert ids(load("test")) == before
    base.write_text("steps: 11\ncorpus: [data/train.jsonl]\n")
    assert not set(ids(load("test"))) & set(before)


def test_a_bumped_meaning_changes_the_runs_that_use_it_and_no_others(project, monkeypatch):
    grid = {"algorithm.name": ["grpo", "reinforce"]}
    before = ids(change(project, fixed={"algorithm.name": None}, grid=grid))
    monkeypatch.setitem(identity.MEANING, "credit/grpo", 2)
    after = ids(load("test"))
    assert after[0] != before[0]
    assert after[1] == before[1]
    monkeypatch.setitem(identity.MEANING, "routing", 1)
    assert ids(load("test")) == after, "a part added at version 1 renames nothing"


def test_the_specification_is_canonical_and_gives_the_configuration_back(project):
    run = change(project, fixed={"adapter": {"targets": ["q_proj"]}}).runs.popitem()[1]
    assert run.spec == json.dumps(json.loads(run.spec), sort_keys=True, separators=(",", ":"))
    assert identity.parse(run.spec) == run.config
    assert "placement" not in run.spec
    assert "evaluation" not in run.spec


def test_variants_multiply_with_the_grid_and_show_their_values(project):
    variants = {"plain": {}, "leash": {"algorithm.beta": 0.04, "algorithm": {"inner_epochs": 2}}}
    sweep = change(project, variants=variants, grid={"seed": [1]})
    assert [run.rsplit("-", 1)[0] for run in sweep.runs] == [
        "grpo_lora_plain_b0_inner1_s1",
        "grpo_lora_leash_b0.04_inner2_s1",
    ]
    assert list(sweep.runs.values())[1].varies == {
        "variant": "leash",
        "algorithm.beta": 0.04,
        "algorithm.inner_epochs": 2,
        "seed": 1,
    }


def test_ids_say_large_and_small_numbers_alike(project):
    sweep = load("test", {"seed": 0}, {"optimizer.lr": [1e30, 1e-30, 2.5e-3, 1000000.0]})
    assert [run.split("_")[2] for run in sweep.runs] == ["lr1e30", "lr1e-30", "lr2.5e-3", "lr1e6"]


def test_ids_are_safe_file_names(project):
    (project / "../x").mkdir()
    grid = {
        "model.id": ["a/b c", "../x"],
        "data.train": [["data/train.jsonl"]],
    }
    fixed = {"model.id": None, "data": None, "data.heldout": ["data/heldout.jsonl"]}
    for run in change(project, fixed=fixed, grid=grid).runs:
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", run)


def test_overrides_win_and_narrow_an_axis(project):
    sweep = load("test", {"seed": 42, "steps": 3}, {"optimizer.lr": [0.1], "rollout.batch_size": [4, 8]})
    assert [run.rsplit("-", 1)[0] for run in sweep.runs] == ["grpo_lora_lr0.1_B4_s42", "grpo_lora_lr0.1_B8_s42"]
    assert {run.config.steps for run in sweep.runs.values()} == {3}


def test_snakemakes_strings_are_read_as_what_they_mean(project):
    given = {"sweeps": "test", "grid": {"seed": "[1,2]"}, "fixed": {"steps": "5", "optimizer.max_grad_norm": "null"}}
    chosen = WorkflowConfig.model_validate(given)
    assert chosen.sweeps == ("test",)
    sweep = load("test", chosen.fixed, chosen.grid)
    assert {(run.config.seed, run.config.steps, run.config.optimizer.max_grad_norm) for run in sweep.runs.values()} == {
        (1, 5, None),
        (2, 5, None),
    }
    assert ids(sweep) == ids(load("test", {"steps": 5, "optimizer.max_grad_norm": None}, {"seed": [1, 2]}))


def test_overrides_that_are_no_json_are_explained():
    with pytest.raises(ValueError, match=r"fixed: expected JSON or YAML; found '{steps: '"):
        validate(WorkflowConfig, {"sweeps": ["test"], "fixed": "{steps: "})


@pytest.mark.parametrize(
    "pack,message",
    [
        (0, "pack: expected greater than or equal to 1 or 'auto'; found 0."),
        (1.5, "pack: expected a valid integer or 'auto'; found 1.5."),
        ("x", "pack: expected a valid integer or 'auto'; found 'x'."),
    ],
)
def test_of_a_choice_both_parts_are_named(pack, message):
    with pytest.raises(ValueError) as caught:
        validate(WorkflowConfig, {"sweeps": ["test"], "pack": pack})
    assert str(caught.value) == message


@pytest.mark.parametrize("spelt", ["mine", "./mine", "mine/", "mine//", "./mine/."])
def test_a_results_folder_has_one_name(spelt):
    """Snakemake records what it made by the file's name: with another spelling it would not see changed params."""
    assert validate(WorkflowConfig, {"sweeps": ["test"], "results": spelt}).results == "mine"


@pytest.mark.parametrize("wrong", ["my results", "~/mine", "{sweep}", "a'b", "$HOME/mine", "-n", ""])
def test_a_results_folder_that_a_shell_would_split_is_refused(wrong):
    with pytest.raises(ValueError, match="results: expected a path of letters"):
        validate(WorkflowConfig, {"sweeps": ["test"], "results": wrong})


OBJECTIVE = {"exactness": {}, "brevity": {"params": {"nonsense": 1}}}
MISTAKES = {
    "unknown key": (
        dict(fixed={"optimiser.lr": 1}),
        ["fixed.optimiser.lr", "known key", "Did you mean 'optimizer.lr'"],
    ),
    "bare key": (dict(grid={"lr": [1]}), ["grid.lr", "Did you mean 'optimizer.lr'"]),
    "unknown top key": (dict(gird={}), ["gird: expected a known key", "Did you mean 'grid'"]),
    "key of another algorithm": (
        dict(fixed={"algorithm.ema_decay": 0.5}),
        ["algorithm.ema_decay", "a key of another choice"],
    ),
    "unknown algorithm": (dict(fixed={"algorithm.name": "gpro"}), ["algorithm.name", "'gpro'", "Did you mean 'grpo'"]),
    "no algorithm": (dict(fixed={"algorithm.name": None}), ["algorithm: expected a value; found none"]),
    "unknown objective": (
        dict(fixed={"objectives": {"exactnes": {}}}),
        ["objectives.exactnes: expected one of", "Did you mean 'exactness'"],
    ),
    "objective parameter": (
        dict(fixed={"objectives": OBJECTIVE}),
        ["objectives.brevity.params.nonsense", "max_words", "found 'nonsense'"],
    ),
    "empty axis": (dict(grid={"seed": []}), ["grid: seed: expected a list", "found []"]),
    "axis not a list": (dict(grid={"seed": 42}), ["grid: seed: expected a list", "Did you mean [42]?"]),
    "mapping in an axis": (dict(grid={"adapter": [{"rank": 4}]}), ["grid: adapter", "`variants`"]),
    "twice the same value": (
        dict(grid={"optimizer.lr": ["1e-3", 0.001]}),
        ["grid: expected points that differ", "lr1e-3"],
    ),
    "only placement differs": (dict(grid={"placement.threads": [1, 2]}), ["grid: expected points that differ"]),
    "indivisible batch": (
        dict(fixed={"rollout": {"batch_size": 9, "num_generations": 4}}),
        ["rollout.batch_size", "found 9", "Try 8"],
    ),
    "indivisible at a point": (
        dict(fixed={"rollout": None}, grid={"rollout.batch_size": [8, 9]}),
        ["rollout.batch_size", "(at rollout.batch_size=9)"],
    ),
    "out of range": (
        dict(fixed={"optimizer.lr": -1}, grid={}),
        ["optimizer.lr", "greater than or equal to 0", "found -1"],
    ),
    "not a number": (dict(grid={"optimizer.lr": ["fast"]}), ["optimizer.lr", "valid number", "found 'fast'"]),
    "wrong choice": (dict(fixed={"adapter.kind": "lore"}), ["adapter.kind", "'lora' or 'full'", "found 'lore'"]),
    "fixed and grid": (dict(fixed={"seed": 1}), ["seed: expected in fixed or in grid; found in both"]),
    "dotted and nested": (
        dict(fixed={"rollout.batch_size": 4}),
        ["fixed: rollout.batch_size: expected once; found 8 and 4"],
    ),
    "grid and variant": (dict(variants={"a": {"seed": 1}}), ["seed: expected in grid or in a variant; found in both"]),
    "unknown key of a variant": (dict(variants={"a": {"sed": 1}}), ["variants.a.sed", "Did you mean 'seed'"]),
    "variant not a mapping": (dict(variants={"a": 3}), ["variants.a", "valid dictionary", "found 3"]),
    "variant name": (dict(variants={"a/b": {}}), ["variants: expected a name of letters", "'a/b'"]),
    "equal variants": (dict(variants={"a": {}, "b": {}}), ["grid: expected points that differ"]),
    "value and mapping": (dict(fixed={"model": "base/toy"}), ["model: expected a mapping", "model.id"]),
    "no such data": (
        dict(fixed={"data": {"train": ["data/tarin.jsonl"], "heldout": ["data/heldout.jsonl"]}}),
        ["data.train", "found 'data/tarin.jsonl'", "Did you mean 'data/train.jsonl'"],
    ),
    "no such base": (dict(fixed={"model.id": "base/tyo"}), ["model.id", "'base/tyo'", "Did you mean 'base/toy'"]),
    "no such folder": (dict(fixed={"model.id": "./nowhere"}), ["model.id: expected a folder", "./nowhere"]),
}


@pytest.mark.parametrize("parts,expected", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_explained(project, parts, expected):
    with pytest.raises(ValueError) as caught:
        change(project, **{key: dict(value) for key, value in parts.items()})
    message = str(caught.value)
    assert message.startswith("config/sweeps/test.yaml: ")
    assert "pydantic" not in message
    for text in expected:
        assert text in message, message


def test_a_mistake_in_a_base_names_its_file(project):
    (project / "config/bases/toy.yaml").write_text("corpus: [data/train.jsonl]\nstep: 10\n")
    with pytest.raises(ValueError, match=r"config/bases/toy.yaml: step: .*Did you mean 'steps'"):
        load("test")


def test_unreadable_files_are_named(project):
    with pytest.raises(ValueError, match=r"sweeps: expected one of test; found 'tset'. Did you mean 'test'"):
        load("tset")
    path = project / "config/sweeps/test.yaml"
    path.write_text("fixed: [")
    with pytest.raises(ValueError, match=r"test.yaml: expected YAML; found while"):
        load("test")
    path.write_text("fixed:\n  steps: 1\n  steps: 2\n")
    with pytest.raises(ValueError, match=r"test.yaml: expected YAML; found the key 'steps' twice\n.*line 2"):
        load("test")
    path.write_text("")
    with pytest.raises(ValueError, match=r"test.yaml: expected a mapping"):
        load("test")
    path.rename(path.with_name("base.yaml"))
    with pytest.raises(ValueError, match=r"base.yaml: name of a sweep: expected letters"):
        load("base")


def test_a_run_that_does_not_exist_is_named(project):
    with pytest.raises(ValueError, match=r"sweep test: run: expected one of .*found 'nope'"):
        load("test")["nope"]


def test_expansion_never_imports_torch():
    code = "import sys, gradlab.sweep, gradlab.command_line, gradlab.document; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_run_config_is_hashable_by_value(project):
    first, second = load("test"), load("test")
    assert first.runs == second.runs
    assert isinstance(next(iter(first.runs.values())).config, RunConfig)
