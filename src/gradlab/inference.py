"""Is a gradient cosine real? Estimates, intervals and nulls from saved Grams alone; no second pass.

A probed step gives gram_BB (inner products of per-row scores), advantages_BK and group_B (the prompt of
each row). Rows of different prompts are independent draws; rows of one prompt share a baseline. So:

- the plain cosine adds each row's product with itself, which is noise squared in the norms and shared
  noise between objectives. The **cross-fitted** one keeps products of different prompts only (a
  U-statistic, the mean over all split halves): numerator and squared norms are unbiased;
- the **bootstrap** interval draws prompts, not rows;
- the **permutation null** shuffles one objective's advantages among the rows of each prompt. A pair is
  tested twice, either objective shuffled, and the larger p-value counts (intersection-union test,
  Berger 1982): it is valid when at least one of the two is unrelated to the scores;
- over steps and seeds, each step's inner products are first divided by its gradients' norms, so that
  a step counts once however long its gradients are; q-values control the false discovery rate
  (Benjamini and Hochberg 1995).

float64 numpy, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProbedStep:
    """What a probe saved of one layer at one step."""

    gram_BB: Array
    advantages_BK: Array
    group_B: NDArray[np.int64]


@dataclass(frozen=True)
class PairEstimate:
    """One K x K matrix a field, over one step or several. NaN: not defined (no signal, too few prompts).

    cosine_KK       mean over steps of the plain cosine
    unbiased_KK     cross-fitted cosine; NaN where a cross-fitted squared norm is not positive
    low_KK, high_KK 95 % bootstrap interval of `unbiased_KK`
    p_KK            two-sided permutation p-value of no relation
    """

    cosine_KK: Array
    unbiased_KK: Array
    low_KK: Array
    high_KK: Array
    p_KK: Array


def by_prompt(step: ProbedStep) -> Array:
    """products_GKGK: inner product of objective i's gradient from prompt g with j's from prompt h."""
    groups, index_B = np.unique(step.group_B, return_inverse=True)
    member_GB = (index_B[None] == np.arange(len(groups))[:, None]).astype(float)
    rows, k = step.advantages_BK.shape
    coefficient = (member_GB[:, None, :] * step.advantages_BK.T[None]).reshape(-1, rows)
    return (coefficient @ step.gram_BB @ coefficient.T).reshape(len(groups), k, len(groups), k)


def cross_products(products_GKGK: Array, weight_SG: Array | None = None) -> Array:
    """dot_SKK of different prompts only, scaled to a whole batch; S resamples with prompt counts `weight_SG`.

    NaN where fewer than two different prompts were drawn.
    """
    groups = products_GKGK.shape[0]
    weight_SG = np.ones((1, groups)) if weight_SG is None else weight_SG
    pair_SGG = weight_SG[:, :, None] * weight_SG[:, None, :] * ~np.eye(groups, dtype=bool)
    total_SKK = np.einsum("sgh,gihj->sij", pair_SGG, products_GKGK)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total_SKK * groups**2 / pair_SGG.sum(axis=(1, 2))[:, None, None]


def cosine(dot: Array) -> Array:
    """(..., K, K) inner products to cosines; NaN where a squared norm is not positive."""
    square = np.diagonal(dot, axis1=-2, axis2=-1)
    norm = np.sqrt(np.where(square > 0, square, np.nan))
    return np.clip(dot / (norm[..., :, None] * norm[..., None, :]), -1, 1)


def estimate(steps: Sequence[ProbedStep], resamples: int, seed: int) -> PairEstimate:
    """Pairs of objectives over the given steps (of one run, or of several that differ in seed).

    One step: the bootstrap draws its prompts. Several: it draws steps, whose parameters differ.
    Raises ValueError without a step.
    """
    if not steps:
        raise ValueError("estimate: expected at least one probed step; found none. Set probe.every above 0.")
    products = [by_prompt(step) for step in steps]
    plain_TKK = np.stack(
        [cosine(_silent_is_zero(p.sum(axis=(0, 2)), step)) for p, step in zip(products, steps, strict=True)]
    )
    norms_TK = [np.sqrt(np.diag(p.sum(axis=(0, 2)))) for p in products]
    # An objective that is silent at a step adds nothing to the sums over steps.
    products = (
        [
            np.divide(p, n[None, :, None, None] * n[None, None, None, :], out=np.zeros_like(p), where=_pairs(n > 0))
            for p, n in zip(products, norms_TK, strict=True)
        ]
        if len(steps) > 1
        else products
    )
    generator = np.random.Generator(np.random.Philox(seed))
    if len(steps) == 1:
        groups = products[0].shape[0]
        counts_SG = generator.multinomial(groups, np.full(groups, 1 / groups), size=resamples).astype(float)
        cross_KK = cross_products(products[0])[0]
        resampled_SKK = cross_products(products[0], counts_SG)
    else:
        cross_TKK = np.stack([cross_products(p)[0] for p in products])
        usable_TKK = cross_TKK[~np.isnan(cross_TKK).any(axis=(1, 2))]
        cross_KK = usable_TKK.sum(axis=0) if len(usable_TKK) else np.full(plain_TKK.shape[1:], np.nan)
        draws_ST = (
            generator.multinomial(
                len(usable_TKK), np.full(len(usable_TKK), 1 / max(1, len(usable_TKK))), size=resamples
            )
            if len(usable_TKK)
            else np.zeros((1, 0))
        )
        resampled_SKK = np.einsum("st,tij->sij", draws_ST.astype(float), usable_TKK)
    low_KK, high_KK = _interval(cosine(resampled_SKK))
    return PairEstimate(
        cosine_KK=_mean_of_defined(plain_TKK),
        unbiased_KK=cosine(cross_KK),
        low_KK=low_KK,
        high_KK=high_KK,
        p_KK=permutation_p(steps, resamples, generator),
    )


def _silent_is_zero(dot_KK: Array, step: ProbedStep) -> Array:
    """An objective whose advantages are all 0 has a norm of exactly 0, never rounding."""
    active_K = step.advantages_BK.any(axis=0)
    return np.where(active_K[:, None] & active_K, dot_KK, 0.0)


def _pairs(active_K: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return active_K[None, :, None, None] & active_K[None, None, None, :]


def _mean_of_defined(values_TKK: Array) -> Array:
    """Mean over steps, NaN left out; NaN where no step is defined."""
    count_KK = (~np.isnan(values_TKK)).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.nansum(values_TKK, axis=0) / np.where(count_KK > 0, count_KK, np.nan)


def _interval(cosine_SKK: Array) -> tuple[Array, Array]:
    """2.5 and 97.5 percentiles; NaN where a tenth of the resamples or more is not defined."""
    undefined_KK = np.isnan(cosine_SKK).mean(axis=0) >= 0.1
    filled = np.where(undefined_KK[None], 0.0, cosine_SKK)
    low_KK, high_KK = np.nanquantile(filled, [0.025, 0.975], axis=0)
    return np.where(undefined_KK, np.nan, low_KK), np.where(undefined_KK, np.nan, high_KK)


def permutation_p(steps: Sequence[ProbedStep], resamples: int, generator: np.random.Generator) -> Array:
    """Two-sided p_KK of the summed inner product against advantages shuffled within prompts.

    NaN on the diagonal and for an objective without advantages. The statistic is the sum
    over steps of the plain cosine; the observed one counts among the draws, so p >= 1 / (resamples + 1).
    """
    k = steps[0].advantages_BK.shape[1]
    observed_KK, shuffled_KKS = np.zeros((k, k)), np.zeros((k, k, resamples))  # [i, j]: i as it is, j shuffled
    for step in steps:
        gradient_BK = step.gram_BB @ step.advantages_BK
        dot_KK = _silent_is_zero(step.advantages_BK.T @ gradient_BK, step)
        norm_K = np.sqrt(np.diag(dot_KK))
        observed_KK += np.nan_to_num(cosine(dot_KK))
        order_SB = _shuffles(step.group_B, resamples, generator)
        for j in np.flatnonzero(norm_K > 0):
            advantage_SB = step.advantages_BK[order_SB, j]
            square_S = np.einsum("sb,sb->s", advantage_SB @ step.gram_BB, advantage_SB)
            scale_KS = norm_K[:, None] * np.sqrt(square_S)
            dots_KS = (advantage_SB @ gradient_BK).T
            shuffled_KKS[:, j] += np.divide(dots_KS, scale_KS, out=np.zeros_like(dots_KS), where=scale_KS > 0)
    found_KK, null_KKS = np.abs(observed_KK), np.abs(shuffled_KKS)
    at_least = (null_KKS >= found_KK[..., None] * (1 - 1e-9)).sum(axis=-1)
    p_KK = (1 + at_least) / (1 + resamples)
    p_KK = np.maximum(p_KK, p_KK.T)
    silent_K = ~np.any([step.advantages_BK.any(axis=0) for step in steps], axis=0)
    p_KK[silent_K, :] = p_KK[:, silent_K] = np.nan
    np.fill_diagonal(p_KK, np.nan)
    return p_KK


def _shuffles(group_B: NDArray[np.int64], resamples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(S, B) row indices: rows of each prompt permuted among themselves."""
    keys_SB = generator.random((resamples, len(group_B)))
    by_group_B = np.argsort(group_B, kind="stable")
    shuffled_SB = np.lexsort((keys_SB, np.broadcast_to(group_B, keys_SB.shape)), axis=1)
    order_SB = np.empty_like(shuffled_SB)
    order_SB[:, by_group_B] = shuffled_SB
    return order_SB


def q_values(p_values: Array) -> Array:
    """Benjamini-Hochberg adjusted p-values, in the order given; NaN stays NaN and is not counted."""
    q = np.full(len(p_values), np.nan)
    tested = np.flatnonzero(~np.isnan(p_values))
    if len(tested):
        order = tested[np.argsort(p_values[tested])]
        scaled = p_values[order] * len(order) / np.arange(1, len(order) + 1)
        q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q
