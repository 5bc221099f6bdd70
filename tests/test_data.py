"""Loading prompts, and the order they are given out in."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from gradlab.data import check_disjoint, epoch_order, load_examples, load_split, prompts_at
from gradlab.types import Example

GOOD = {"id": "a", "task": "stories", "prompt": "once"}


def write(path: Path, *rows: dict | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def files(*sizes: int) -> list[list[Example]]:
    return [[Example(f"{f}-{i}", "t", f"p{f}-{i}") for i in range(size)] for f, size in enumerate(sizes)]


def test_examples_keep_their_other_fields(tmp_path):
    rows = load_examples(write(tmp_path / "x.jsonl", GOOD, GOOD | {"id": "b", "answer": 7, "tests": ["t"]}))
    assert rows == [
        Example("a", "stories", "once", {}),
        Example("b", "stories", "once", {"answer": 7, "tests": ["t"]}),
    ]


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"x.jsonl:2: expected UTF-8; found .*Convert the file"):
        load_examples(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "b", "task": "stories"}, r"x.jsonl:2: expected the keys id, task and prompt; found no 'prompt'"),
        (GOOD | {"id": 7}, r"x.jsonl:2: id: expected a text that is not empty; found 7"),
        (GOOD | {"id": "b", "task": None}, r"x.jsonl:2: task: expected .*; found None"),
        (GOOD | {"id": "b", "prompt": "  "}, r"x.jsonl:2: prompt: expected .*; found '  '"),
        (GOOD, r"x.jsonl:2: id: expected a new one; found 'a', which line 1 has"),
        ("{", r"x.jsonl:2: expected a JSON object"),
        ("[1]", r"x.jsonl:2: expected a JSON object; found list"),
        ("", r"x.jsonl:2: .*empty line"),
    ],
)
def test_bad_rows_name_file_line_and_reason(tmp_path, row, reason):
    with pytest.raises(ValueError, match=reason):
        load_examples(write(tmp_path / "x.jsonl", GOOD, row))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x.jsonl: expected at least one row"):
        load_examples(write(tmp_path / "x.jsonl"))


def test_split_is_one_list_a_file_with_ids_of_its_own(tmp_path):
    one = write(tmp_path / "one.jsonl", GOOD)
    two = write(tmp_path / "two.jsonl", GOOD | {"id": "b"}, GOOD | {"id": "c"})
    assert [[e.id for e in file] for file in load_split([one, two])] == [["a"], ["b", "c"]]
    with pytest.raises(ValueError, match=r"one.jsonl: id: expected a new one; found 'a', which .*one.jsonl has"):
        load_split([one, one])
    with pytest.raises(ValueError, match="expected at least one file"):
        load_split([])


def test_a_prompt_in_both_splits_is_named():
    train = [[Example("t1", "x", "Once upon  a time")], [Example("t2", "x", "two")]]
    check_disjoint(train, [[Example("h1", "x", "once upon")]])
    with pytest.raises(ValueError, match=r"'once upon a time ?' in both \(train 't1', heldout 'h2'\)"):
        check_disjoint(train, [[Example("h1", "x", "new")], [Example("h2", "x", "once upon a time ")]])


def test_an_epoch_has_every_prompt_once():
    order = epoch_order([7, 1, 4, 0], seed=3, epoch=2)
    assert sorted(order) == [(f, i) for f, size in enumerate([7, 1, 4, 0]) for i in range(size)]


def test_files_are_spread_in_proportion():
    sizes = [60, 30, 10]
    order = epoch_order(sizes, seed=0, epoch=0)
    seen = Counter()
    for place, (file, _) in enumerate(order, start=1):
        seen[file] += 1
        for f, size in enumerate(sizes):
            assert abs(seen[f] - size / 100 * place) <= 1.5
    tens = [place for place, (file, _) in enumerate(order) if file == 2]
    assert all(8 <= b - a <= 12 for a, b in pairwise(tens))


def test_order_is_a_function_of_seed_epoch_and_file():
    def of(file, order):
        return [index for f, index in order if f == file]

    base = epoch_order([20, 20], seed=1, epoch=0)
    assert base == epoch_order((20, 20), seed=1, epoch=0)
    assert of(0, base) == of(0, epoch_order([20, 5, 9], seed=1, epoch=0))  # other files do not matter
    orders = [
        of(0, base),
        of(1, base),
        of(0, epoch_order([20], seed=2, epoch=0)),
        of(0, epoch_order([20], seed=1, epoch=1)),
        of(0, epoch_order([20], seed=0, epoch=1)),
        list(range(20)),
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_order_never_changes_between_versions():
    golden = [(0, 1), (1, 0), (0, 3), (0, 2), (0, 0), (1, 1), (0, 4)]
    assert epoch_order([5, 2], seed=0, epoch=0) == golden


def test_every_place_is_reached_by_every_prompt_alike():
    """First prompt of a file of 4 over 2000 epochs: 500 each; 5 sigma is 97. False alarm below 1e-5, and seeded."""
    first = Counter(epoch_order([4], seed=9, epoch=e)[0][1] for e in range(2000))
    assert all(abs(first[i] - 500) < 97 for i in range(4))


def test_steps_read_on_across_the_seam_of_epochs():
    data, taken = files(3, 2), []
    for step in range(10):
        examples, epoch = prompts_at(data, step, 4, seed=5)
        assert epoch == step * 4 // 5
        taken += [example.id for example in examples]
    expected = [data[f][i].id for epoch in range(8) for f, i in epoch_order([3, 2], 5, epoch)]
    assert taken == expected
    assert prompts_at(data, 1, 4, seed=5) == prompts_at(data, 1, 4, seed=5)
    assert prompts_at(data, 1, 4, seed=5) != prompts_at(data, 1, 4, seed=6)


def test_one_step_may_need_several_epochs():
    examples, epoch = prompts_at(files(2), 0, 5, seed=0)
    assert epoch == 0 and Counter(e.id for e in examples[:4]) == {"0-0": 2, "0-1": 2}


def test_no_prompts_is_an_error():
    with pytest.raises(ValueError, match="expected at least one prompt"):
        prompts_at([[]], 0, 1, seed=0)
