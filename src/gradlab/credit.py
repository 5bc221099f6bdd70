"""Rewards to advantages, one column an objective, so that `advantages_BK @ weights_K` trains.

Baselines and scales are those of the weighted reward sum_k w_k r_bk; dividing every column by the
same scale keeps the sum's advantage the sum of the parts. NaN marks a row that an objective does not
apply to: its advantage is exactly 0 and it enters no baseline. float64 numpy throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.config import Algorithm
from gradlab.registry import Registry

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
Credit = Callable[[Array, Groups, Array, Any, "CreditState"], Array]
CREDIT: Registry[Credit] = Registry("algorithm.name")

EPS = 1e-6  # the reference values of GRPO use ddof=1 and this epsilon


@dataclass
class CreditState:
    """What a baseline remembers between steps; saved in checkpoints. NaN: not seen yet."""

    baseline_K: Array = field(default_factory=lambda: np.empty(0))


def credit(rewards_BK: Array, group_B: Groups, weights_K: Array, algorithm: Algorithm, state: CreditState) -> Array:
    """advantages_BK of one run's rollout; updates `state` in place.

    rewards_BK    raw rewards, NaN where an objective does not apply
    group_B       which prompt a row answers
    weights_K     weights in the trained sum
    """
    return CREDIT[algorithm.name](rewards_BK, group_B, weights_K, algorithm, state)


def _group_mean(values: Array, group_B: Groups) -> Array:
    """Mean over the rows of the same group, ignoring NaN; NaN where a group has none. Shape of `values`."""
    _, index_B = np.unique(group_B, return_inverse=True)
    present = ~np.isnan(values)
    total = np.zeros((index_B.max() + 1, values.shape[1]))
    count = np.zeros_like(total)
    np.add.at(total, index_B, np.where(present, values, 0.0))
    np.add.at(count, index_B, present)
    with np.errstate(invalid="ignore"):
        return (total / count)[index_B]


def _total(rewards_BK: Array, weights_K: Array) -> Array:
    """(B, 1) weighted reward; an objective that does not apply adds nothing."""
    return np.nansum(rewards_BK * weights_K, axis=1, keepdims=True)


def _flat(scale: Array, total: Array) -> NDArray[np.bool_]:
    """Where a spread is rounding, not signal."""
    return scale <= 1e-9 * (1 + np.abs(total))


def _centred(rewards_BK: Array, group_B: Groups) -> Array:
    """r minus its group's mean; exactly 0 where an objective does not apply or its spread is rounding.

    The mean of eight times 0.7 is not 0.7: without this, an objective that says nothing would show a direction.
    """
    centred = np.nan_to_num(rewards_BK - _group_mean(rewards_BK, group_B), nan=0.0)
    return np.where(_flat(np.abs(centred), rewards_BK), 0.0, centred)


@CREDIT.register("grpo")
def grpo(rewards_BK: Array, group_B: Groups, weights_K: Array, algorithm: Any, state: CreditState) -> Array:
    """(r - group mean) / (group std + eps), arXiv 2402.03300 sec. 4.1.2; a group without variance gives 0.

    `scale_rewards: none` leaves the division out (Dr. GRPO, arXiv 2503.20783).
    """
    centred = _centred(rewards_BK, group_B)
    if algorithm.scale_rewards == "none":
        return centred
    if algorithm.normalize == "objective":
        return gdpo(rewards_BK, centred, group_B, weights_K)
    total = _total(rewards_BK, weights_K)
    _, index_B, count = np.unique(group_B, return_inverse=True, return_counts=True)
    size = count[index_B][:, None]
    deviation = total - _group_mean(total, group_B)
    std = np.sqrt(_group_mean(deviation**2, group_B) * size / (size - 1))
    return np.where(_flat(std, total), 0.0, centred / (std + EPS))


def gdpo(rewards_BK: Array, centred_BK: Array, group_B: Groups, weights_K: Array) -> Array:
    """Each objective by its own deviation in the group, the weighted sum by its deviation over the batch.

    GDPO, arXiv 2601.05242; ddof 1 throughout; the batch's mean is 0 already. Rows that an objective does
    not apply to enter no deviation of its own, rows that none applies to not the batch's.
    """
    _, index_B = np.unique(group_B, return_inverse=True)
    present = ~np.isnan(rewards_BK)
    count = np.zeros((index_B.max() + 1, rewards_BK.shape[1]))
    np.add.at(count, index_B, present)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_square = _group_mean(np.where(present, centred_BK**2, np.nan), group_B)
        std = np.sqrt(mean_square * count[index_B] / (count[index_B] - 1))
        own_BK = np.where(centred_BK == 0, 0.0, centred_BK / (std + EPS))
    sum_B = (own_BK @ weights_K)[present.any(axis=1)]
    batch_std = sum_B.std(ddof=1) if len(sum_B) > 1 else 0.0
    return own_BK / (batch_std + EPS) if batch_std > 0 else np.zeros_like(own_BK)


@CREDIT.register("rloo")
def rloo(rewards_BK: Array, group_B: Groups, weights_K: Array, algorithm: Any, state: CreditState) -> Array:
    """r minus the mean of the group's other rows, arXiv 2402.14740: n/(n-1) (r - group mean)."""
    _, index_B, count = np.unique(group_B, return_inverse=True, return_counts=True)
    size = count[index_B][:, None]
    return _centred(rewards_BK, group_B) * size / (size - 1)


@CREDIT.register("reinforce")
def reinforce(rewards_BK: Array, group_B: Groups, weights_K: Array, algorithm: Any, state: CreditState) -> Array:
    """r minus a baseline (Williams 1992): a running mean per objective, or the batch's z-score."""
    if algorithm.baseline == "zscore":
        centred = _centred(rewards_BK, np.zeros_like(group_B))
        total = _total(rewards_BK, weights_K)
        std = total.std(axis=0, ddof=1, keepdims=True)
        return np.where(_flat(std, total), 0.0, centred / (std + EPS))
    with np.errstate(invalid="ignore"):
        mean_K = np.nansum(rewards_BK, axis=0) / np.sum(~np.isnan(rewards_BK), axis=0)
    if state.baseline_K.size == 0:
        state.baseline_K = np.full(rewards_BK.shape[1], np.nan)
    # An objective's first batch is its own first baseline; afterwards the baseline is of the past only.
    baseline = np.where(np.isnan(state.baseline_K), mean_K, state.baseline_K)
    updated = algorithm.ema_decay * baseline + (1 - algorithm.ema_decay) * mean_K
    state.baseline_K = np.where(np.isnan(mean_K), state.baseline_K, updated)
    advantages = np.nan_to_num(rewards_BK - baseline, nan=0.0)
    return np.where(_flat(np.abs(advantages), rewards_BK), 0.0, advantages)


def variance_share(advantages_BK: Array, weights_K: Array) -> Array:
    """Share of each objective in the squared weighted advantages; NaN when all are 0. Sums to 1 over K."""
    squares_K = ((advantages_BK * weights_K) ** 2).sum(axis=0)
    total = squares_K.sum()
    return squares_K / total if total > 0 else np.full_like(squares_K, np.nan)


DOMINANT_SHARE, DOMINANT_STEPS = 0.95, 10


@dataclass
class Dominance:
    """For how many steps in a row one objective has owned more than `DOMINANT_SHARE` of the advantages' variance.

    A step without advantages says nothing and is passed over. `state` is saved in checkpoints.
    """

    objective: int = -1
    steps: int = 0

    def onset(self, advantages_BK: Array, weights_K: Array) -> bool:
        """Count one step; True when it makes `DOMINANT_STEPS`. A single trained objective silences none."""
        share_K = variance_share(advantages_BK, weights_K)
        if np.isnan(share_K).any() or np.count_nonzero(weights_K) < 2:
            return False
        owner = int(share_K.argmax()) if share_K.max() > DOMINANT_SHARE else -1
        self.steps = self.steps + 1 if owner == self.objective and owner >= 0 else int(owner >= 0)
        self.objective = owner
        return self.steps == DOMINANT_STEPS

    def line(self, step: int, names: list[str]) -> str:
        return (
            f"[Alarm @ {step}] {names[self.objective]} has owned more than {DOMINANT_SHARE:.0%} of the advantages' "
            f"variance for {DOMINANT_STEPS} steps: the other objectives hardly train. Lower its weight, or "
            "algorithm.normalize: objective."
        )

    @property
    def state(self) -> tuple[int, int]:
        return self.objective, self.steps
