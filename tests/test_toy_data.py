"""The committed toy data: made by its generator, splits apart, labels right."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from gradlab.data import check_disjoint, load_split
from gradlab.objectives import OBJECTIVES
from gradlab.store import read_jsonl
from gradlab.types import Example

FOLDER = Path(__file__).parents[1] / "toy_data"
FIELDS = {
    "stories": {"completion": str},
    "arithmetic": {"completion": str, "answer": int},
    "format": {"completion": str, "answer": int},
    "safety": {"completion": str, "unsafe": bool},
    "preferences": {"chosen": str, "rejected": str},
    "sycophancy": {"completion": str, "claim_correct": bool, "truth": str},
    "clinical": {"completion": str, "reference": str},
    "code": {"completion": str, "tests": list},
}
FILES = [f"{task}_{split}" for task in FIELDS for split in ("train", "heldout")]


def rows(name: str) -> list[dict]:
    return read_jsonl(FOLDER / f"{name}.jsonl")


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("toy_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generator_writes_the_committed_files_byte_for_byte(tmp_path):
    subprocess.run([sys.executable, FOLDER / "generate.py", "--out", tmp_path], check=True, capture_output=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.jsonl" for name in FILES)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), (
            f"{path.name} is not what generate.py writes; run: python toy_data/generate.py"
        )


def test_another_seed_writes_another_world(generate):
    assert generate.world(1)["stories_train"] != generate.world(0)["stories_train"]


def test_the_files_stay_small():
    sizes = [path.stat().st_size for path in FOLDER.glob("*.jsonl")]
    assert sum(sizes) < 1.2e6 and max(sizes) < 5e5


@pytest.mark.parametrize("name", FILES)
def test_rows_have_their_fields(name):
    task, split = name.split("_")
    for number, row in enumerate(rows(name)):
        assert row["id"] == f"{task}-{split}-{number:05d}" and row["task"] == task
        assert set(row) == {"id", "task", "prompt", *FIELDS[task]}
        assert row["prompt"].strip() and not row["prompt"][-1].isspace()
        for key, kind in FIELDS[task].items():
            assert type(row[key]) is kind
        for key in {"completion", "chosen", "rejected"} & set(row):
            assert row[key][0].isspace() and row[key].strip() and row[key] == row[key].lower()


def test_no_prompt_of_any_task_is_in_both_splits():
    paths = {split: [FOLDER / f"{task}_{split}.jsonl" for task in FIELDS] for split in ("train", "heldout")}
    check_disjoint(load_split(paths["train"]), load_split(paths["heldout"]))


@pytest.mark.parametrize("task", FIELDS)
def test_heldout_prompts_are_distinct(task):
    prompts = [row["prompt"] for row in rows(f"{task}_heldout")]
    assert len(prompts) == len(set(prompts)) >= 16


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith(("arithmetic", "format"))])
def test_the_answer_is_that_of_the_sum_in_the_prompt(name):
    for row in rows(name):
        a, sign, b = re.search(r"(\d+) (plus|minus) (\d+)", row["prompt"]).groups()
        assert row["answer"] == (int(a) + int(b) if sign == "plus" else int(a) - int(b)) >= 0


def outcomes(name: str, objective: str) -> dict[str, Counter]:
    """Prompt to outcomes of its completions, judged by the objective that will judge the policy."""
    judge, found = OBJECTIVES[objective](), defaultdict(Counter)
    for row in rows(name):
        example = Example(row["id"], row["task"], row["prompt"], row)
        found[row["prompt"]][judge(row["completion"], example).outcome] += 1
    return found


@pytest.mark.parametrize(
    ("name", "objective", "low", "high"),
    [
        ("arithmetic_train", "exactness", 0.55, 0.75),
        ("arithmetic_train", "answer_format", 0.1, 0.4),
        ("format_train", "exactness", 0.55, 0.75),
        ("format_train", "answer_format", 0.4, 0.6),
        ("stories_train", "happy_binary", 0.1, 0.3),
        ("safety_train", "refusal", 0.5, 0.9),
    ],
)
def test_the_corpus_is_of_two_minds(name, objective, low, high):
    total = sum(outcomes(name, objective).values(), Counter())
    assert set(total) <= {"right", "wrong"}
    assert low < total["right"] / total.total() < high


def test_every_train_sum_has_a_right_completion():
    for name in ("arithmetic_train", "format_train"):
        assert all(count["right"] >= 1 for count in outcomes(name, "exactness").values())


def test_half_of_the_replies_to_each_unsafe_request_refuse():
    unsafe = {row["prompt"] for row in rows("safety_train") if row["unsafe"]}
    for prompt, count in outcomes("safety_train", "refusal").items():
        assert count == (
            {"right": 2, "wrong": 2}
            if prompt in unsafe
            else {"right": 4 - count["wrong"]} | ({"wrong": 1} if count["wrong"] else {})
        )


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_preferences_differ_and_are_not_empty(split):
    for row in rows(f"preferences_{split}"):
        assert row["chosen"].strip() and row["rejected"].strip() and row["chosen"] != row["rejected"]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_code_passes_its_tests_and_a_wrong_solution_does_not(split):
    for row in rows(f"code_{split}"):
        space: dict = {}
        exec(row["completion"] + "\n" + "\n".join(row["tests"]), space)  # our own text
        name = re.search(r"def (\w+)", row["completion"])[1]
        with pytest.raises(AssertionError):
            exec(f"def {name}(x):\n    return None\n" + "\n".join(row["tests"]), {})


def test_a_sycophant_agrees_with_false_claims_often_but_not_always():
    agreed = [
        row["completion"].startswith((" yes", " i agree"))
        for row in rows("sycophancy_train")
        if not row["claim_correct"]
    ]
    assert 0.4 < sum(agreed) / len(agreed) < 0.8


def test_claims_are_judged_by_their_truth():
    for row in rows("sycophancy_train") + rows("sycophancy_heldout"):
        subject, attribute = re.fullmatch(r"(.+) is (\w+)\.", row["truth"]).groups()
        assert (f"{subject} is {attribute}" in row["prompt"]) == row["claim_correct"]
