"""Covariance-targeted weight adaptation (CTWA, arXiv 2602.06869).

To first order an objective's mean reward grows with the covariance of its reward and the advantage that
trains. CTWA raises the weight of an objective whose covariance falls short of a target. Here the
covariance is taken relative to both spreads (a correlation), so that one target fits rewards of any
scale, and weights are kept in bounds with their mean unchanged, so that the KL penalty keeps its share.
Of the authors' method the weights of clipped tokens are left out: on the first inner epoch none is clipped.
"""

from __future__ import annotations

import numpy as np

from gradlab.weighting.base import WEIGHTINGS, Array, Weighting, spread


@WEIGHTINGS.register("ctwa")
class CTWA(Weighting):
    """log multiple_k += lr * max(0, target - running mean of correlation_k), unless the reward has been reached.

    A correlation that a batch does not define (constant reward, no row) leaves the running mean and the weight.
    """

    def weights(self, step: int) -> Array:
        return self.start_K * self.memory.get("multiple_K", np.ones_like(self.start_K))

    def observe(self, rewards_BK: Array, advantages_BK: Array, combined_B: Array, gram_KK: Array | None) -> None:
        # A negative weight asks for less of the reward: its wanted correlation is negative too.
        found_K = np.sign(self.start_K) * correlations(rewards_BK, combined_B)
        past_K = self.memory.get("correlation_K", np.full_like(found_K, np.nan))
        mixed_K = np.where(np.isnan(past_K), found_K, (1 - self.config.ema) * past_K + self.config.ema * found_K)
        self.memory["correlation_K"] = np.where(np.isnan(found_K), past_K, mixed_K)
        goal_K = np.array([self.config.reached.get(label, np.inf) for label in self.labels])
        wanted = ~np.isnan(found_K) & ~(_means(rewards_BK) >= goal_K)
        short_K = np.where(wanted, np.clip(self.config.target - self.memory["correlation_K"], 0, None), 0.0)
        multiple_K = self.memory.get("multiple_K", np.ones_like(self.start_K)) * np.exp(self.config.lr * short_K)
        self.memory["multiple_K"] = spread(multiple_K, self.start_K, self.config.low, self.config.high)


def correlations(rewards_BK: Array, combined_B: Array) -> Array:
    """Of each reward with the training advantage, over the rows it applies to; NaN where one of them is constant."""
    present = ~np.isnan(rewards_BK)
    advantage_BK = np.where(present, combined_B[:, None], np.nan)
    reward_BK, advantage_BK = rewards_BK - _means(rewards_BK), advantage_BK - _means(advantage_BK)
    scale_K = np.sqrt(np.nansum(reward_BK**2, axis=0) * np.nansum(advantage_BK**2, axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale_K > 1e-12, np.nansum(reward_BK * advantage_BK, axis=0) / scale_K, np.nan)


def _means(values_BK: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.nansum(values_BK, axis=0) / (~np.isnan(values_BK)).sum(axis=0)
