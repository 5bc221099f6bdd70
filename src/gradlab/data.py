"""Prompts: JSON-lines files in, the prompts of any step out.

The order is a pure function of (seed, epoch, file), so a resumed run, and a run in a pack, sees the
prompts that an uninterrupted run alone would see. Nothing is dropped where one epoch meets the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from gradlab.store import read_jsonl
from gradlab.types import Example

_STREAM = 0xDA7A  # sets these random numbers apart from other Philox streams with the same key


def load_examples(path: str | Path) -> list[Example]:
    """The prompts of one file: rows `{"id", "task", "prompt", ...}`, whatever else they hold in `fields`.

    Raises ValueError naming file, line and reason: not JSON, a missing key, a wrong type, an empty
    text, an id seen before, no rows at all.
    """
    examples: list[Example] = []
    line_of: dict[str, int] = {}
    for line, row in enumerate(read_jsonl(path), start=1):  # read_jsonl refuses blank lines, so rows are lines
        for key in ("id", "task", "prompt"):
            if key not in row:
                raise ValueError(f"{path}:{line}: expected the keys id, task and prompt; found no {key!r}")
            if not isinstance(row[key], str) or not row[key].strip():
                raise ValueError(f"{path}:{line}: {key}: expected a text that is not empty; found {row[key]!r}")
        if row["id"] in line_of:
            raise ValueError(
                f"{path}:{line}: id: expected a new one; found {row['id']!r}, which line {line_of[row['id']]} has"
            )
        line_of[row["id"]] = line
        examples.append(Example(row.pop("id"), row.pop("task"), row.pop("prompt"), row))
    return examples


def load_split(paths: Iterable[str | Path]) -> list[list[Example]]:
    """One list a file. Raises ValueError as `load_examples`, and when two files share an id."""
    files: list[list[Example]] = []
    path_of: dict[str, str | Path] = {}
    for path in paths:
        files.append(load_examples(path))
        for example in files[-1]:
            if example.id in path_of:
                raise ValueError(
                    f"{path}: id: expected a new one; found {example.id!r}, which {path_of[example.id]} has"
                )
            path_of[example.id] = path
    if not files:
        raise ValueError("data: expected at least one file; found none")
    return files


def check_disjoint(train: Sequence[Sequence[Example]], heldout: Sequence[Sequence[Example]]) -> None:
    """Raises ValueError when a prompt is in both splits, whatever its case and spacing."""
    seen = {_plain(example.prompt): example.id for file in train for example in file}
    for example in (example for file in heldout for example in file):
        if twin := seen.get(_plain(example.prompt)):
            raise ValueError(
                f"data.heldout: expected prompts that are not in data.train; found {example.prompt!r} in both "
                f"(train {twin!r}, heldout {example.id!r}). Delete one of the two rows."
            )


def _plain(prompt: str) -> str:
    return " ".join(prompt.casefold().split())


def epoch_order(sizes: Sequence[int], seed: int, epoch: int) -> list[tuple[int, int]]:
    """One epoch as (file, index) pairs: every file shuffled by itself, then spread evenly over the epoch.

    A file's own order depends on (seed, epoch, file) only; adding a file does not reshuffle the others.
    """
    return [(int(file), int(index)) for file, index in _epoch_order(tuple(sizes), seed, epoch)]


@lru_cache(maxsize=64)
def _epoch_order(sizes: tuple[int, ...], seed: int, epoch: int) -> np.ndarray:
    index_N = np.concatenate([_permutation(size, seed, epoch, file) for file, size in enumerate(sizes)])
    file_N = np.repeat(np.arange(len(sizes)), sizes)
    # Item i of n stands at (i + 1/2) / n of the epoch; equal places go by file.
    place_N = np.concatenate([(2 * np.arange(size) + 1) / (2 * max(size, 1)) for size in sizes])
    order_N2 = np.stack([file_N, index_N], axis=1)[np.lexsort((file_N, place_N))]
    order_N2.flags.writeable = False
    return order_N2


def _permutation(size: int, seed: int, epoch: int, file: int) -> np.ndarray:
    # Sorting raw Philox words, not Generator.permutation: NumPy keeps only the words equal between versions.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, _STREAM, file], np.uint64))
    return np.argsort(bits.random_raw(size), kind="stable")


def prompts_at(files: Sequence[Sequence[Example]], step: int, n_prompts: int, seed: int) -> tuple[list[Example], int]:
    """The `n_prompts` prompts of a step, and the epoch (from 0) that the first of them belongs to.

    Steps read on in the endless row of epochs; one step may end an epoch and begin the next.
    """
    sizes = tuple(len(file) for file in files)
    total = sum(sizes)
    if not total:
        raise ValueError("data: expected at least one prompt; found none")
    examples = []
    for place in range(step * n_prompts, (step + 1) * n_prompts):
        file, index = _epoch_order(sizes, seed, place // total)[place % total]
        examples.append(files[file][index])
    return examples, step * n_prompts // total
