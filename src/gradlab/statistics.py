"""Means with 95 % bootstrap intervals that resample prompts.

Completions of one prompt resemble each other, so the unit that is drawn is the prompt with all its
completions (cluster bootstrap, percentile interval; Davison and Hinkley 1997, sections 3.8 and 5.3.1).
Drawing completions instead would give intervals that are too narrow. With P prompts the interval is
that of the P drawn; below about 20 prompts it is itself somewhat narrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` values and its 95 % interval [low, high]; both None with a single prompt."""

    mean: float
    low: float | None
    high: float | None
    n: int


def bootstrap_mean(
    values: ArrayLike, prompts: ArrayLike | None = None, *, resamples: int = 1000, seed: int = 0
) -> Estimate | None:
    """Mean of all values and its interval. None when there is no value.

    `values` is either values_PS, one row a prompt, or values_N with the prompt of each in `prompts`
    (any labels). NaN says that the objective does not apply to the row; such values are left out.
    """
    sum_P, count_P = _totals(*_flat(values, prompts))
    if not sum_P.size:
        return None
    mean_R = _resampled_means([(sum_P, count_P)], resamples, seed)[0]
    return _estimate(sum_P.sum() / count_P.sum(), mean_R, int(count_P.sum()), sum_P.size)


def bootstrap_difference(
    values: ArrayLike,
    reference: ArrayLike,
    prompts: ArrayLike | None = None,
    reference_prompts: ArrayLike | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate | None:
    """Mean of `values` minus mean of `reference`, paired: each resample draws the same prompts for both.

    Arguments as in `bootstrap_mean`; `reference_prompts` defaults to `prompts`. `n` counts `values`.
    Raises ValueError when a prompt has values on one side only.
    """
    value_N, prompt_N = _flat(values, prompts)
    reference_N, reference_prompt_N = _flat(reference, prompts if reference_prompts is None else reference_prompts)
    if unpaired := {*prompt_N.tolist()} ^ {*reference_prompt_N.tolist()}:
        raise ValueError(
            f"bootstrap_difference: expected the same prompts on both sides; found {min(unpaired, key=str)!r} on one "
            f"only ({len(unpaired)} such prompts). Evaluate both on the same prompts."
        )
    sides = [_totals(value_N, prompt_N), _totals(reference_N, reference_prompt_N)]
    if not sides[0][0].size:
        return None
    mean, reference_mean = (sum_P.sum() / count_P.sum() for sum_P, count_P in sides)
    mean_R, reference_mean_R = _resampled_means(sides, resamples, seed)
    return _estimate(mean - reference_mean, mean_R - reference_mean_R, value_N.size, sides[0][0].size)


def _flat(values: ArrayLike, prompts: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """value_N and prompt_N without the NaN rows."""
    value = np.asarray(values, dtype=np.float64)
    if value.ndim == 2 and prompts is None:
        prompt = np.repeat(np.arange(len(value)), value.shape[1])
    elif value.ndim == 1 and prompts is not None:
        prompt = np.asarray(prompts)
    else:
        raise ValueError(
            "bootstrap: expected values_PS alone, or values_N with the prompt of each; "
            f"found values of shape {value.shape} and prompts {'missing' if prompts is None else 'given'}"
        )
    value = value.ravel()
    if len(value) != len(prompt):
        raise ValueError(f"bootstrap: expected one prompt a value; found {len(value)} values, {len(prompt)} prompts")
    if np.isinf(value).any():
        raise ValueError(f"bootstrap: expected finite values; found {value[np.isinf(value)][0]}")
    applies = ~np.isnan(value)
    return value[applies], prompt[applies]


def _totals(value_N: np.ndarray, prompt_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sum_P and count_P over each prompt's values, prompts in sorted order."""
    _, index_N = np.unique(prompt_N, return_inverse=True)
    return np.bincount(index_N, weights=value_N), np.bincount(index_N)


def _resampled_means(sides: list[tuple[np.ndarray, np.ndarray]], resamples: int, seed: int) -> list[np.ndarray]:
    """mean_R of each side, all on the same draws: how often each of the P prompts was drawn is multinomial."""
    size = sides[0][0].size
    draws_RP = np.random.Generator(np.random.Philox(seed)).multinomial(size, np.full(size, 1 / size), size=resamples)
    return [(draws_RP @ sum_P) / (draws_RP @ count_P) for sum_P, count_P in sides]


def _estimate(mean: Any, mean_R: np.ndarray, n: int, n_prompts: int) -> Estimate:
    if n_prompts < 2:  # every resample is the sample: that says nothing of the spread
        return Estimate(float(mean), None, None, n)
    low, high = np.quantile(mean_R, _QUANTILES)
    return Estimate(float(mean), float(low), float(high), n)
