"""Exponentiated gradient (Kivinen and Warmuth 1997) on net synergy: who helps the others counts more."""

from __future__ import annotations

import numpy as np

from gradlab.gradients import conflict
from gradlab.weighting.base import WEIGHTINGS, Array, Weighting, spread


@WEIGHTINGS.register("synergy")
class Synergy(Weighting):
    """At each probe multiple_k *= exp(eta * net synergy_k), kept in bounds, the mean weight unchanged.

    Net synergy is the mean cosine of the weighted objective's gradient to the others'; where it is not
    defined the objective's multiple takes part in the scaling alone.
    """

    def weights(self, step: int) -> Array:
        return self.start_K * self.memory.get("multiple_K", np.ones_like(self.start_K))

    def observe(self, rewards_BK: Array, advantages_BK: Array, combined_B: Array, gram_KK: Array | None) -> None:
        if gram_KK is None:
            return
        growth_K = np.exp(self.config.eta * np.nan_to_num(conflict(gram_KK, 0.0).synergy_K, nan=0.0))
        multiple_K = self.memory.get("multiple_K", np.ones_like(self.start_K))
        self.memory["multiple_K"] = spread(multiple_K * growth_K, self.start_K, self.config.low, self.config.high)
