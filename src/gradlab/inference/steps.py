"""What one probed step says of its objectives: products of different rows, their shuffles and prompts drawn again."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

ENOUGH_ROWS = 4
"""Rows of one prompt that U-centring needs."""
RESAMPLES = 499


@dataclass(frozen=True)
class ProbedStep:
    """What a probe saved of one layer at one step; `applies_BK`: whether an objective judges the row (None: all)."""

    gram_BB: Array
    advantages_BK: Array
    group_B: NDArray[np.int64]
    applies_BK: Bools | None = None


@dataclass(frozen=True)
class Evidence:
    """T steps, ready to be added to others. Inner products are in units of the steps' own lengths.

    cosine_TKK           plain cosine, NaN without a gradient
    cross_TKK            cross-fitted inner product, 0 where not testable
    square_TK            plain squared norm
    testable_TKK         both objectives have a gradient, and rows or prompts enough
    null_2SKK            sum over T of `cross` with objective j shuffled [0], with all shuffled together [1]
    boot_SKK             sum over T of `cross` with prompts drawn again
    conflict_T           share of the defined pairs below -tau; NaN where none is defined
    conflict_null_S      sum over T of that share with every objective shuffled by itself
    """

    cosine_TKK: Array
    cross_TKK: Array
    square_TK: Array
    testable_TKK: Bools
    null_2SKK: Array
    boot_SKK: Array
    conflict_T: Array
    conflict_null_S: Array


def active(step: ProbedStep) -> Bools:
    """active_K: whether an objective has a gradient here that is more than rounding (1e-7 of its rows' reach)."""
    square_K = np.einsum("bk,bc,ck->k", step.advantages_BK, step.gram_BB, step.advantages_BK, optimize=True)
    reach_K = np.abs(step.advantages_BK).T @ np.sqrt(np.clip(np.diag(step.gram_BB), 0, None))
    return square_K > 1e-7 * reach_K**2


def evidence(step: ProbedStep, generator: np.random.Generator, resamples: int = RESAMPLES, tau: float = 0) -> Evidence:
    """What one step says (T = 1). `generator` draws prompts; shuffles depend on `group_B` and `resamples` alone."""
    active_K = active(step)
    advantages_BK = np.where(active_K, step.advantages_BK, 0.0)
    _, index_B, count_G = np.unique(step.group_B, return_inverse=True, return_counts=True)
    same_BB = index_B[:, None] == index_B
    within_BB, between_BB = step.gram_BB * same_BB, step.gram_BB * ~same_BB
    whole = bool(count_G.min() >= ENOUGH_ROWS)
    other_BB = between_BB + _u_centred(step.gram_BB, index_B) if whole else between_BB
    member_GB = (np.arange(index_B.max() + 1)[:, None] == index_B).astype(float)
    applies_BK = np.ones(advantages_BK.shape, bool) if step.applies_BK is None else step.applies_BK
    applies_GK = (member_GB @ applies_BK) > 0
    groups = len(member_GB)
    cross_KK = advantages_BK.T @ other_BB @ advantages_BK
    factor_KK = np.ones(cross_KK.shape) if whole else _u_factor(np.ones((1, groups)), applies_GK)[0]
    testable_KK = np.outer(active_K, active_K) & (factor_KK > 0)

    # Shuffles: row s of moved_SKB holds draw s of every objective.
    moved_SKB = advantages_BK[_shuffles(step.group_B.tobytes(), resamples)].transpose(0, 2, 1)
    flat = moved_SKB.reshape(-1, len(index_B))
    # The length that scales a step is the root mean square over its shuffles: the same for the observed order and for
    # every other, and not near 0 when a shuffle happens to put its few advantages on copies of one completion.
    within_SK = np.einsum("nb,nb->n", flat @ within_BB, flat).reshape(moved_SKB.shape[:2])
    length_K = np.sqrt(np.clip(within_SK, 0, None).mean(axis=0))
    unit_KK = reciprocal(np.outer(length_K, length_K))
    through_SKB, all_SKB = ((flat @ part).reshape(moved_SKB.shape) for part in (other_BB, step.gram_BB))
    alone_SKK = (through_SKB @ advantages_BK).transpose(0, 2, 1)
    together_SKK = moved_SKB @ through_SKB.transpose(0, 2, 1)
    null_2SKK = np.stack([alone_SKK, together_SKK]) * unit_KK * np.where(testable_KK, factor_KK, 0.0)

    # Conflict: objectives shuffled independently, that is draw s of one with draw s + k * shift of the k-th.
    k = advantages_BK.shape[1]
    shift = max(1, resamples // max(k, 1))
    free = np.stack([np.roll(moved_SKB[:, i], i * shift, axis=0) for i in range(k)], axis=1)
    pulled = np.stack([np.roll(all_SKB[:, i], i * shift, axis=0) for i in range(k)], axis=1)
    both_KK = advantages_BK.T @ step.gram_BB @ advantages_BK
    plain_KK = np.where(np.outer(active_K, active_K), both_KK, 0.0)
    cosine_KK = cosine(plain_KK)
    null_SKK = cosine(np.where(np.outer(active_K, active_K), free @ pulled.transpose(0, 2, 1), 0.0))

    counts_SG = generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(float)
    return Evidence(
        cosine_TKK=cosine_KK[None],
        cross_TKK=(np.where(testable_KK, cross_KK * factor_KK, 0.0) * unit_KK)[None],
        square_TK=(np.diag(plain_KK) * np.diag(unit_KK))[None],
        testable_TKK=testable_KK[None],
        null_2SKK=null_2SKK,
        boot_SKK=_prompts_drawn(other_BB, advantages_BK, member_GB, applies_GK, counts_SG, whole)
        * unit_KK
        * testable_KK,
        conflict_T=conflict_fraction(cosine_KK[None], tau),
        conflict_null_S=np.nan_to_num(conflict_fraction(null_SKK, tau)),
    )


def merge(parts: Sequence[Evidence]) -> Evidence:
    """The steps of all parts together. Raises ValueError without a part."""
    if not parts:
        raise ValueError("merge: expected at least one probed step; found none. Set probe.every above 0.")
    along = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Evidence.__annotations__
             if "_T" in name}  # fmt: skip
    summed = {name: sum(getattr(part, name) for part in parts) for name in Evidence.__annotations__ if "_T" not in name}
    return Evidence(**along, **summed)


def conflict_fraction(cosine_SKK: Array, tau: float) -> Array:
    """Share of the defined pairs below -tau, of each matrix; NaN where none is defined."""
    pairs = cosine_SKK[(slice(None), *np.triu_indices(cosine_SKK.shape[-1], 1))]
    count = (~np.isnan(pairs)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (pairs < -tau).sum(axis=1) / np.where(count > 0, count, np.nan)


def cosine(dot: Array) -> Array:
    """(..., K, K) inner products to cosines; NaN where a squared norm is not positive."""
    square = np.diagonal(dot, axis1=-2, axis2=-1)
    norm = np.sqrt(np.where(square > 0, square, np.nan))
    return np.clip(dot / (norm[..., :, None] * norm[..., None, :]), -1, 1)


def _u_factor(count_SG: Array, applies_GK: Bools) -> Array:
    """factor_SKK from the sum over pairs of different prompts to that over all pairs; 0 where an objective has one."""
    weighted_SGK = count_SG[:, :, None] * applies_GK
    total_SK = weighted_SGK.sum(axis=1)
    all_SKK = total_SK[:, :, None] * total_SK[:, None]
    different_SKK = all_SKK - weighted_SGK.transpose(0, 2, 1) @ weighted_SGK
    several_SK = np.diagonal(different_SKK, axis1=1, axis2=2) > 0
    return all_SKK * reciprocal(different_SKK) * (several_SK[:, :, None] & several_SK[:, None])


def _u_centred(gram_BB: Array, index_B: NDArray[np.int64]) -> Array:
    """Blocks of one prompt with a^T block a unbiased for the squared expected sum of n centred rows; 0 elsewhere."""
    out_BB = np.zeros_like(gram_BB)
    for group in range(index_B.max() + 1):
        rows = np.flatnonzero(index_B == group)
        n = len(rows)
        block = gram_BB[np.ix_(rows, rows)] * ~np.eye(n, dtype=bool)
        row = block.sum(axis=1) / (n - 2)
        block = block - row[:, None] - row + block.sum() / ((n - 1) * (n - 2))
        out_BB[np.ix_(rows, rows)] = block * ~np.eye(n, dtype=bool) * (n - 1) ** 2 / (n * (n - 3))
    return out_BB


def _prompts_drawn(
    other_BB: Array, advantages_BK: Array, member_GB: Array, applies_GK: Bools, counts_SG: Array, whole: bool
) -> Array:
    """cross_SKK with prompts drawn `counts_SG` times; a prompt is never multiplied with its own copy.

    `whole`: a prompt's own U-centred product counts as often as it was drawn, those of two prompts are scaled to
    all pairs. Else NaN where an objective was drawn with fewer than two of its prompts.
    """
    groups, k = applies_GK.shape
    part_NB = (member_GB[:, None] * advantages_BK.T).reshape(groups * k, -1)
    products = (part_NB @ other_BB @ part_NB.T).reshape(groups, k, groups, k).transpose(0, 2, 1, 3)
    pair_SGG = counts_SG[:, :, None] * counts_SG[:, None] * ~np.eye(groups, dtype=bool)
    if whole:
        pair_SGG = pair_SGG * groups / max(groups - 1, 1) + counts_SG[:, :, None] * np.eye(groups)
    total_SKK = (pair_SGG.reshape(len(counts_SG), -1) @ products.reshape(groups**2, -1)).reshape(-1, k, k)
    if whole:
        return total_SKK
    factor_SKK = _u_factor(counts_SG, applies_GK)
    return total_SKK * np.where(factor_SKK > 0, factor_SKK, np.nan)


@functools.lru_cache(maxsize=8)
def _shuffles(groups: bytes, resamples: int) -> NDArray[np.int64]:
    """(S, B) row indices: rows of each prompt permuted among themselves; the same for the same layout.

    One draw serves every step: the steps' data are independent, and shuffling all steps alike leaves their joint
    distribution unchanged under the null.
    """
    group_B = np.frombuffer(groups, dtype=np.int64)
    keys_SB = np.random.Generator(np.random.Philox(0x5EED)).random((resamples, len(group_B)))
    shuffled_SB = np.lexsort((keys_SB, np.broadcast_to(group_B, keys_SB.shape)), axis=1)
    order_SB = np.empty_like(shuffled_SB)
    order_SB[:, np.argsort(group_B, kind="stable")] = shuffled_SB
    return order_SB


def reciprocal(values: Array) -> Array:
    """1 / values; 0 where a value is 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
