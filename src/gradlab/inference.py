"""Is a gradient cosine real? Estimates, intervals and nulls from saved Grams alone; no second pass.

A probed step gives gram_BB (inner products of per-row scores), advantages_BK and group_B (the prompt of
each row). Rows of different prompts are independent draws; rows of one prompt share a baseline. So:

- the plain cosine adds each row's product with itself: squared noise in the norms, and between two objectives
  the correlation of their rewards on the same text. The **cross-fitted** inner product keeps products of different
  rows only: of different prompts as they are, of one prompt U-centred (Szekely and Rizzo 2014; the unbiased HSIC of
  Song et al. 2012 with linear kernels), since its rows share a baseline. It is unbiased for the gradients expected
  on the step's prompts. A prompt with fewer than ENOUGH_ROWS rows has no such estimate; then the step keeps
  different prompts alone, scaled to all pairs, and speaks of the mean over prompts. Over the cross-fitted norms it
  is the **unbiased** cosine (a ratio of unbiased parts: consistent, not exactly unbiased), given only where both
  squared norms are positive in 97.5 % of the resamples: a norm that happens to come out positive by chance selects
  large cosines. Over the plain norms it is the **alignment**, defined where both objectives have a gradient, of the
  cosine's sign and shrunk towards 0 by noise;
- the **interval** is a bootstrap: of prompts within a step; over ENOUGH_STEPS steps or more, of steps;
- the **permutation null** shuffles advantages among the rows of each prompt, in three ways: either objective
  alone, and both together (which keeps the noise they share). The statistic is the cross-fitted inner product,
  and the largest p-value counts (intersection-union test, Berger 1982): valid when neither objective is related
  to the scores, or one of the two is not and is independent of the other. Two objectives that both have a
  gradient, orthogonal to each other, are outside of it: within one step they are flagged too often. Over
  ENOUGH_STEPS steps a **sign-flip** test of the steps' inner products, which asks only whether they scatter
  around 0, must agree: its p-value enters the maximum;
- steps are added after division by sqrt(sum over prompts of squared norms), so that a step counts once however
  long its gradients are. That length holds no product of different prompts: dividing by it leaves those at mean 0
  where there is no relation, dividing by the plain norm would not;
- q-values control the false discovery rate (Benjamini and Hochberg 1995).

An objective may apply to some prompts only (`applies_BK`): where pairs of prompts are scaled, they are counted by
objective.
float64 numpy, no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

ENOUGH_STEPS = 8
"""From here on steps are the unit that is drawn; fewer have too few sign patterns: 2 / 2^8 < 0.01."""
ENOUGH_ROWS = 4
"""Rows of one prompt that U-centring needs."""
SURE = 0.975
"""Share of resamples in which both squared norms must be positive for a cosine to be given."""
RESAMPLES = 499
CONFLICT, SYNERGY, NEITHER = "conflict", "synergy", "not distinguishable from 0"


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


@dataclass(frozen=True)
class PairEstimate:
    """One K x K matrix a field. NaN: not defined (no gradient, too few prompts).

    cosine_KK          mean over steps of the plain cosine
    unbiased_KK        cross-fitted cosine, NaN where a norm is not surely positive; low_KK, high_KK its 95 % interval
    alignment_KK       cross-fitted inner product over plain norms; alignment_low_KK, alignment_high_KK
    p_KK               two-sided p-value of no relation; NaN on the diagonal
    n_steps_KK         steps with both gradients; n_tested_KK: of those, with enough prompts to test
    """

    cosine_KK: Array
    unbiased_KK: Array
    low_KK: Array
    high_KK: Array
    alignment_KK: Array
    alignment_low_KK: Array
    alignment_high_KK: Array
    p_KK: Array
    n_steps_KK: NDArray[np.int64]
    n_tested_KK: NDArray[np.int64]


@dataclass(frozen=True)
class ConflictFraction:
    """Mean share of pairs in conflict over `n_steps` steps, against objectives shuffled independently.

    `low` and `high` hold 95 % of the null; `p` is two-sided. NaN without a defined pair.
    """

    mean: float
    null: float
    low: float
    high: float
    p: float
    n_steps: int


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
    unit_KK = _reciprocal(np.outer(length_K, length_K))
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


def estimate(found: Evidence, generator: np.random.Generator) -> PairEstimate:
    """Every pair of objectives over the given steps, of one run or of several that differ in seed.

    The interval speaks of these steps of these runs, not of new seeds. Percentile intervals of 95 % held the true
    cosine in about 90 % of simulations with 16 steps (tests/simulate.py): read them as somewhat narrow.
    """
    cross_TKK, testable_TKK = found.cross_TKK, found.testable_TKK
    n_tested_KK, resamples = testable_TKK.sum(axis=0), len(found.boot_SKK)
    # A pair's norms are those of the steps at which the pair could be tested.
    norm_TKK = np.diagonal(cross_TKK, axis1=1, axis2=2)[:, :, None] * testable_TKK
    plain_KK = (found.square_TK[:, :, None] * testable_TKK).sum(axis=0)
    plain_KK = np.sqrt(plain_KK * plain_KK.T)
    tested_KK = n_tested_KK > 0
    p_KK = permutation_p(found)
    if len(cross_TKK) >= ENOUGH_STEPS:
        draw_ST = generator.multinomial(len(cross_TKK), np.full(len(cross_TKK), 1 / len(cross_TKK)), size=resamples)
        drawn_SKK, drawn_norm_SKK = (np.einsum("st,tij->sij", draw_ST.astype(float), a) for a in (cross_TKK, norm_TKK))
        enough_KK = n_tested_KK >= ENOUGH_STEPS
        p_KK = np.where(enough_KK, np.maximum(p_KK, sign_flip_p(cross_TKK, resamples, generator)), p_KK)
    else:
        drawn_SKK = found.boot_SKK
        drawn_norm_SKK = np.broadcast_to(np.diagonal(drawn_SKK, axis1=1, axis2=2)[:, :, None], drawn_SKK.shape)
    sure_KK = (drawn_norm_SKK > 0).mean(axis=0) >= SURE
    sure_KK &= sure_KK.T & tested_KK
    low_KK, high_KK = _interval(np.where(sure_KK, _over_norms(drawn_SKK, drawn_norm_SKK), np.nan))
    alignment_SKK = drawn_SKK * _reciprocal(plain_KK)
    alignment_low_KK, alignment_high_KK = _interval(np.where(tested_KK, alignment_SKK, np.nan))
    np.fill_diagonal(p_KK, np.nan)
    return PairEstimate(
        cosine_KK=_mean_of_defined(found.cosine_TKK),
        unbiased_KK=np.where(sure_KK, _over_norms(cross_TKK.sum(axis=0), norm_TKK.sum(axis=0)), np.nan),
        low_KK=low_KK,
        high_KK=high_KK,
        alignment_KK=np.where(tested_KK, cross_TKK.sum(axis=0) * _reciprocal(plain_KK), np.nan),
        alignment_low_KK=alignment_low_KK,
        alignment_high_KK=alignment_high_KK,
        p_KK=np.where(tested_KK, p_KK, np.nan),
        n_steps_KK=(~np.isnan(found.cosine_TKK)).sum(axis=0),
        n_tested_KK=n_tested_KK,
    )


def permutation_p(found: Evidence) -> Array:
    """p_KK against the shuffles, the largest of the three. The observed value counts among the draws."""
    observed_KK = np.abs(found.cross_TKK.sum(axis=0))
    at_least_2KK = (np.abs(found.null_2SKK) >= observed_KK * (1 - 1e-9)).sum(axis=1)
    alone_KK, together_KK = (1 + at_least_2KK) / (1 + found.null_2SKK.shape[1])
    return np.maximum(np.maximum(alone_KK, alone_KK.T), together_KK)


def sign_flip_p(cross_TKK: Array, resamples: int, generator: np.random.Generator) -> Array:
    """Two-sided p_KK of steps' inner products that scatter symmetrically around 0 (Fisher 1935)."""
    sign_ST = generator.integers(0, 2, (resamples, len(cross_TKK))) * 2.0 - 1
    flipped_SKK = np.abs(np.einsum("st,tij->sij", sign_ST, cross_TKK))
    observed_KK = np.abs(cross_TKK.sum(axis=0))
    return (1 + (flipped_SKK >= observed_KK * (1 - 1e-9)).sum(axis=0)) / (1 + resamples)


def conflict_against_null(found: Evidence) -> ConflictFraction:
    """The mean conflict fraction of the steps, and what shuffled objectives would give."""
    defined_T = ~np.isnan(found.conflict_T)
    n = int(defined_T.sum())
    if not n:
        nan = float("nan")
        return ConflictFraction(nan, nan, nan, nan, nan, 0)
    mean, null_S = float(found.conflict_T[defined_T].mean()), found.conflict_null_S / n
    centre = float(null_S.mean())
    at_least = (np.abs(null_S - centre) >= abs(mean - centre) - 1e-9).sum()
    low, high = np.quantile(null_S, [0.025, 0.975])
    return ConflictFraction(mean, centre, float(low), float(high), float((1 + at_least) / (1 + len(null_S))), n)


def conflict_fraction(cosine_SKK: Array, tau: float) -> Array:
    """Share of the defined pairs below -tau, of each matrix; NaN where none is defined."""
    pairs = cosine_SKK[(slice(None), *np.triu_indices(cosine_SKK.shape[-1], 1))]
    count = (~np.isnan(pairs)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (pairs < -tau).sum(axis=1) / np.where(count > 0, count, np.nan)


def verdict(alignment: float, q: float, level: float = 0.05) -> str | None:
    """`conflict`, `synergy` or `not distinguishable from 0`; None where nothing could be tested."""
    if np.isnan(q):
        return None
    return NEITHER if q >= level else SYNERGY if alignment > 0 else CONFLICT


def q_values(p_values: Array) -> Array:
    """Benjamini-Hochberg adjusted p-values, in the order given; NaN stays NaN and is not counted."""
    q = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    if len(tested):
        order = tested[np.argsort(p_values[tested])]
        scaled = p_values[order] * len(order) / np.arange(1, len(order) + 1)
        q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


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
    return all_SKK * _reciprocal(different_SKK) * (several_SK[:, :, None] & several_SK[:, None])


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


def _over_norms(dot: Array, square: Array) -> Array:
    """Cosines from inner products and square[..., i, j], objective i's squared norm where the pair was tested."""
    norm = np.sqrt(np.where(square > 0, square, np.nan))
    return np.clip(dot / (norm * np.swapaxes(norm, -1, -2)), -1, 1)


def _reciprocal(values: Array) -> Array:
    """1 / values; 0 where a value is 0."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


def _mean_of_defined(values_TKK: Array) -> Array:
    """Mean over steps, NaN left out; NaN where no step is defined."""
    count_KK = (~np.isnan(values_TKK)).sum(axis=0)
    return np.nansum(values_TKK, axis=0) / np.where(count_KK > 0, count_KK, np.nan)


def _interval(values_SKK: Array) -> tuple[Array, Array]:
    """2.5 and 97.5 percentiles of the defined; NaN where a tenth of the resamples or more is not defined."""
    undefined_KK = np.isnan(values_SKK).mean(axis=0) >= 0.1
    values_SKK = np.where(undefined_KK, 0.0, values_SKK)
    quantile = np.nanquantile if np.isnan(values_SKK).any() else np.quantile  # the former is slow, the numbers equal
    low_KK, high_KK = quantile(values_SKK, [0.025, 0.975], axis=0)
    return np.where(undefined_KK, np.nan, low_KK), np.where(undefined_KK, np.nan, high_KK)
