"""The models, and the two files generated from them, say the same; contradictions between keys are explained."""

import argparse
import difflib
from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors import SafetensorError

from gradlab import document
from gradlab.command_line import add_placement, mapping, placement, placement_flags, run
from gradlab.config import BaseConfig, PlacementConfig, RunConfig
from gradlab.explain import dotted_keys, explain, unknown_key
from gradlab.sweep import load, load_base

ROOT = Path(__file__).parents[1]
RUN = {
    "model": {"id": "base/toy"},
    "algorithm": {"name": "grpo"},
    "objectives": {"brevity": {}},
    "data": {"train": ["a"], "heldout": ["b"]},
}


@pytest.mark.parametrize("path,text", [("config/schema.json", document.schema()), ("docs/CONFIG.md", document.page())])
def test_generated_files_are_current(path, text):
    written = (ROOT / path).read_text(encoding="utf-8")
    diff = "\n".join(difflib.unified_diff(written.splitlines(), text.splitlines(), path, "the models", lineterm=""))
    assert written == text, f"Run: python -m gradlab.document\n{diff}"


@pytest.mark.parametrize("path", sorted((ROOT / "config/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load(path.stem).runs


@pytest.mark.parametrize("path", sorted((ROOT / "config/bases").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_bases_are_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_base(path.stem).corpus


def test_the_real_models_of_the_synergy_sweeps_are_quantized_chat_models(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name, model in (("qwen2", "Qwen/Qwen2-0.5B-Instruct"), ("tinyllama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0")):
        for point in load(f"synergy_{name}").runs.values():
            assert (point.config.model.id, point.config.model.quantize, point.config.model.chat_template) == (
                model,
                "4bit",
                True,
            )


def test_every_key_has_a_meaning():
    for model in (RunConfig, BaseConfig):
        rows = document._rows(model)
        assert {key for key, *_ in rows} == {key.removesuffix(".<name>") for key in dotted_keys(model)}
        assert [key for key, _, _, text in rows if not text] == []


@pytest.mark.parametrize(
    "values,expected",
    [
        ({"rollout": {"batch_size": 10, "num_generations": 4}}, "rollout.batch_size: expected a multiple"),
        ({"rollout": {"batch_size": 4, "num_generations": 1}}, "rollout.num_generations: expected at least 2 for grpo"),
        ({"objectives": {}}, "objectives: expected at least one enabled"),
        ({"objectives": {"brevity": {"enabled": False}}}, "objectives: expected at least one enabled"),
        ({"objectives": {"brevity": {"weight": 0}}}, "objectives: expected a non-zero weight"),
        ({"adapter": {"kind": "full"}, "model": {"id": "x", "dtype": "bfloat16"}}, "adapter.kind: expected `lora`"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: expected a finite number; found nan"),
        ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas.1: expected less than 1; found 1"),
        ({"adapter": {"targets": 3}}, "adapter.targets: expected a list or 'all-linear'; found 3"),
        (
            {"adapter": {"targets": "q_proj"}},
            "adapter.targets: expected a list or 'all-linear'; found 'q_proj'. Did you mean [q_proj]?",
        ),
        ({"data": {"train": [], "heldout": ["x"]}}, "data.train: expected at least one value; found none"),
        ({"objectives": {"brevity": None}}, "objectives.brevity: expected a valid dictionary"),
        ({"objectives": {"brevity": {"wieght": 1}}}, "Did you mean 'objectives.brevity.weight'?"),
    ],
)
def test_contradictions_are_explained(values, expected):
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(RUN | values)
    lines = explain(caught.value, "", RunConfig)
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.parametrize(
    "key", ["steps", "optimizer", "algorithm.ema_decay", "objectives.a", "objectives.a.params.b.c"]
)
def test_known_keys_are_known(key):
    assert unknown_key(key, RunConfig) is None


@pytest.mark.parametrize(
    "key,near",
    [
        ("lr", "optimizer.lr"),
        ("optimizer.learning_rate", "optimizer.lr"),
        ("adaptor.rank", "adapter.rank"),
        ("objectives.a.wieght", "objectives.a.weight"),
        ("optimizer.lr.x", "optimizer.lr"),
    ],
)
def test_unknown_keys_meet_the_nearest(key, near):
    assert f"Did you mean {near!r}?" in (unknown_key(key, RunConfig) or "")


def test_placement_survives_the_command_line():
    parser = argparse.ArgumentParser()
    add_placement(parser)
    given = PlacementConfig(device="cpu", threads=3, gpu_slots=0, microbatch_tokens=77, checkpoint_every=5)
    assert placement(parser.parse_args(placement_flags(given).split()), PlacementConfig()) == given
    configured = PlacementConfig(threads=2, device="cpu")
    assert placement(parser.parse_args(["--threads", "3"]), configured) == PlacementConfig(threads=3, device="cpu")
    with pytest.raises(ValueError, match=r"threads: expected a valid integer.*found 'many'"):
        placement(parser.parse_args(["--threads", "many"]), PlacementConfig())


@pytest.mark.parametrize(
    "error,message",
    [
        (ValueError("steps: found 0"), "error: steps: found 0"),
        (FileNotFoundError(2, "No such file", "x.json"), "error: x.json: expected a file or folder; found none"),
        (FileNotFoundError("model.id: expected a base"), "error: model.id: expected a base"),
        (SafetensorError("No space left on device"), "error: No space left on device\nThe disk of results, work, l"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device\nThe disk of results, "),
        (KeyboardInterrupt(), "stopped. The same command continues"),
    ],
)
def test_a_program_ends_with_a_message_instead_of_a_traceback(error, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        run(main)
    assert str(caught.value.code).startswith(message)


def test_an_argument_that_is_no_mapping_is_explained():
    assert mapping('{"seed": 5}') == {"seed": 5}
    for text in ("{seed", "[5]"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a JSON mapping; found"):
            mapping(text)
