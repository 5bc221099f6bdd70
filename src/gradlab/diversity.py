"""How varied completions are, and whether they have collapsed.

What is measured, over lower-case words (punctuation and case do not matter):

    unique_fraction        distinct completions / completions
    identical_fraction     share of the commonest completion
    empty_fraction         share with no word, or a single one that is no number
    repetitive_fraction    share that repeats itself: half of its word pairs, or one word 3 times in 10
    jaccard_mean           shared words / all words of two completions of *different* prompts, mean over pairs
    jaccard_within_prompt  the same for two completions of one prompt, which may well be alike
    template_fraction      share of a completion's word pairs that stand in at least 6 of 10 completions
    distinct_1, distinct_2 distinct words / words, distinct word pairs / word pairs, pooled (fall as n grows)
    compression_ratio      zlib bytes / raw bytes of completions of different prompts, in pieces of at most 4 KiB so
                           that it does not fall with n; low is repetitive

None where a measure is not defined (no words, no two prompts). Distinct strings are no proof of variety: a template
with small slots has unique_fraction 1, and shows in jaccard_mean and template_fraction.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from gradlab.objectives.text import words

Measures = dict[str, float | None]


class Limit(NamedTuple):
    """A bound that healthy text keeps. Worse than `bound`, and by `margin` worse than the reference: degenerate."""

    measure: str
    bound: float
    margin: float
    finding: str
    prompts: int = 1
    """Different prompts needed to judge it."""
    words: int = 0
    """Median words of a completion needed to judge it."""


# For scale: toy stories of five plots have jaccard 0.22, template 0.02, compression 0.24; those of one plot alone 0.50,
# 0.37, 0.16; one sentence with its nouns drawn at random 0.7, 0.6, 0.09. Summaries of clinical dialogues, alike by
# nature, have 0.38, 0.2, 0.12.
SHORT = 8  # answers under 8 words (`answer : 7`, `i can not help with that`) are alike when they are right
LIMITS = (
    Limit("empty_fraction", 0.2, 0.1, "empty or of one word"),
    Limit("repetitive_fraction", 0.2, 0.1, "repeating themselves"),
    # A policy that refuses the unsafe half of its prompts in the same words is healthy: limits on what most texts share
    # stand above one half.
    Limit("identical_fraction", 0.8, 0.1, "the same whatever the prompt", prompts=4),
    Limit("jaccard_mean", 0.5, 0.1, "of the same words whatever the prompt", prompts=4, words=SHORT),
    Limit("template_fraction", 0.33, 0.1, "one template with small slots", prompts=4, words=SHORT),
    Limit("compression_ratio", 0.1, -0.03, "highly compressible", prompts=4, words=SHORT),
)

_TEMPLATE_SHARE = 0.6
_PIECE_BYTES = 4096
_MAX_ROWS = 1000  # half a million pairs; more rows are sampled, the same ones each time


def diversity(
    completions: Sequence[str],
    prompts: Sequence[str],
    tasks: Sequence[str] | None = None,
    reference: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The measures over all completions with `n`, `degenerate` and `reasons`.

    The verdict is made for each task by itself (`tasks`, one a completion; None: all are one). A task is degenerate
    when a measure passes its limit in `LIMITS` and, given `reference` (the base model's completions of the same
    prompts, in the same order), is also worse than the reference's by the limit's margin. What a model did before
    training is thus never blamed on it. Alikeness is not judged below 4 prompts, nor of answers under 8 words unless
    they are identical. Raises ValueError when there are no completions, or the lengths differ.
    """
    columns = {"prompts": prompts, "tasks": tasks, "reference": reference}
    for name, column in columns.items():
        if column is not None and len(column) != len(completions):
            raise ValueError(f"diversity: {name}: expected {len(completions)}, one a completion; found {len(column)}")
    if not completions:
        raise ValueError("diversity: expected at least one completion; found none")

    reasons = []
    for task in sorted(set(tasks)) if tasks else [None]:
        rows = [row for row in range(len(completions)) if tasks is None or tasks[row] == task]
        prompt_N = [prompts[row] for row in rows]
        measured = measure([completions[row] for row in rows], prompt_N)
        before = None if reference is None else measure([reference[row] for row in rows], prompt_N)
        reasons += [f"{task}: {reason}" if task else reason for reason in _findings(measured, before)]
    shown = {key: value for key, value in measure(completions, prompts).items() if not key.startswith("n_")}
    return {"n": len(completions), **shown, "degenerate": bool(reasons), "reasons": reasons}


def _findings(measured: Measures, reference: Measures | None) -> list[str]:
    findings = []
    for limit in LIMITS:
        value, before = measured[limit.measure], None if reference is None else reference[limit.measure]
        if value is None or _below(measured["n_prompts"], limit.prompts) or _below(measured["n_words"], limit.words):
            continue
        sign = 1 if limit.margin > 0 else -1  # compression_ratio is worse when lower
        if sign * (value - limit.bound) < 0 or (before is not None and sign * (value - before - limit.margin) < 0):
            continue
        beside = "" if before is None else f", reference {before:.2f}"
        findings.append(f"{limit.finding} ({limit.measure} {value:.2f}, limit {limit.bound:g}{beside})")
    return findings


def _below(value: float | None, least: float) -> bool:
    return value is None or value < least


def measure(completions: Sequence[str], prompts: Sequence[str]) -> Measures:
    """The measures of the module's docstring, with `n_prompts` (different ones) and `n_words` (median)."""
    word_N = [words(completion) for completion in completions]
    n = len(word_N)
    apart, within = _jaccard(word_N, prompts)
    tally = Counter(tuple(row) for row in word_N)
    pairs = [pair for row in word_N for pair in pairwise(row)]
    pooled = [word for row in word_N for word in row]
    return {
        "unique_fraction": len(tally) / n,
        "identical_fraction": max(tally.values()) / n,
        "empty_fraction": sum(_is_empty(row) for row in word_N) / n,
        "repetitive_fraction": sum(_is_repetitive(row) for row in word_N) / n,
        "jaccard_mean": apart,
        "jaccard_within_prompt": within,
        "template_fraction": _template_fraction(word_N),
        "distinct_1": len(set(pooled)) / len(pooled) if pooled else None,
        "distinct_2": len(set(pairs)) / len(pairs) if pairs else None,
        "compression_ratio": _compression_ratio(completions, prompts),
        "n_prompts": len(set(prompts)),
        "n_words": float(np.median([len(row) for row in word_N])),
    }


def _is_empty(row: list[str]) -> bool:
    return not row or (len(row) == 1 and not row[0][0].isdigit())


def _is_repetitive(row: list[str]) -> bool:
    if len(row) < 3:
        return False
    pairs = list(pairwise(row))
    commonest = max(Counter(row).values()) / len(row)
    return len(set(pairs)) / len(pairs) <= 0.5 or (len(row) >= 10 and commonest >= 0.3)


def _template_fraction(word_N: list[list[str]]) -> float | None:
    pair_N = [set(pairwise(row)) for row in word_N]
    seen_in = Counter(pair for pairs in pair_N for pair in pairs)
    shares = [
        sum(seen_in[pair] >= _TEMPLATE_SHARE * len(pair_N) for pair in pairs) / len(pairs) for pairs in pair_N if pairs
    ]
    return float(np.mean(shares)) if shares else None


def _jaccard(word_N: list[list[str]], prompts: Sequence[str]) -> tuple[float | None, float | None]:
    """Mean over pairs of different prompts, and of the same prompt. Two empty completions are alike: 1."""
    row_N = np.arange(len(word_N))
    if len(row_N) > _MAX_ROWS:
        row_N = np.random.Generator(np.random.Philox(0)).choice(row_N, _MAX_ROWS, replace=False)
    vocabulary = {word: v for v, word in enumerate(sorted({word for row in row_N for word in word_N[row]}))}
    has_NV = np.zeros((len(row_N), len(vocabulary)), dtype=np.float32)
    for i, row in enumerate(row_N):
        has_NV[i, [vocabulary[word] for word in word_N[row]]] = 1
    shared_NN = has_NV @ has_NV.T
    size_N = has_NV.sum(1)
    all_NN = size_N[:, None] + size_N[None, :] - shared_NN
    jaccard_NN = np.where(all_NN > 0, shared_NN / np.maximum(all_NN, 1), 1.0)
    prompt_N = np.unique(np.asarray(prompts, dtype=object), return_inverse=True)[1][row_N]
    same_NN = prompt_N[:, None] == prompt_N[None, :]
    once_NN = np.triu(np.ones_like(same_NN), k=1)
    return _mean(jaccard_NN[once_NN & ~same_NN]), _mean(jaccard_NN[once_NN & same_NN])


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _compression_ratio(completions: Sequence[str], prompts: Sequence[str]) -> float | None:
    seen: Counter[str] = Counter()
    rounds: dict[int, list[str]] = {}  # the r-th completion of every prompt; those of one prompt may well be alike
    for completion, prompt in zip(completions, prompts, strict=True):
        rounds.setdefault(seen[prompt], []).append(completion)
        seen[prompt] += 1
    pieces = []
    for texts in rounds.values():
        raw = "\n".join(texts).encode("utf-8", errors="surrogatepass")
        end = max(len(raw) // _PIECE_BYTES * _PIECE_BYTES, min(len(raw), _PIECE_BYTES))  # a short tail compresses less
        pieces += [raw[start : start + _PIECE_BYTES] for start in range(0, end, _PIECE_BYTES)]
    total = sum(map(len, pieces))
    return sum(len(zlib.compress(piece, 9)) for piece in pieces) / total if total else None
