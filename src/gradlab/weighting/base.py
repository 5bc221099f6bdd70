"""What a weighting is: how K objectives become one advantage a row, with what it remembers between steps."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradlab.config import RunConfig
from gradlab.registry import Registry

Array = NDArray[np.float64]
WEIGHTINGS: Registry[type[Weighting]] = Registry("weighting.name")


class Weighting:
    """Of one run. The plain one leaves the configured weights alone.

    config      the run's `weighting`
    labels      the objectives, axis K
    start_K     their configured weights
    steps       of the whole run
    memory      all that it remembers between steps, as float64 arrays: checkpoints hold them exactly.
                Arrays are replaced, never changed in place.
    """

    needs_gram = False  # this step's Gram, before the backward pass

    def __init__(self, run: RunConfig) -> None:
        self.config: Any = run.weighting
        self.labels = list(run.enabled_objectives)
        self.start_K = np.array([o.weight for o in run.enabled_objectives.values()])
        self.steps = run.steps
        self.memory: dict[str, Array] = {}

    def weights(self, step: int) -> Array:
        """weights_K of this step's reward: credit and the Gram are of the weighted objectives."""
        return self.start_K

    def combine(self, gram_KK: Array | None, weights_K: Array, generator: torch.Generator) -> Array:
        """What multiplies advantages_BK.

        gram_KK     inner products of the weighted objectives' gradients, NaN where there is no signal; None
                    unless `needs_gram`
        weights_K   what `weights` gave
        generator   a function of the run's seed and the step
        """
        return weights_K

    def observe(self, rewards_BK: Array, advantages_BK: Array, combined_B: Array, gram_KK: Array | None) -> None:
        """After the update: remember.

        combined_B is the advantage that trained, gram_KK as in `combine` at probed steps and None between.
        """

    def copy(self) -> Weighting:
        """With a memory of its own."""
        twin = copy.copy(self)
        twin.memory = dict(self.memory)
        return twin


WEIGHTINGS.register("fixed")(Weighting)


def spread(multiple_K: Array, start_K: Array, low: float, high: float) -> Array:
    """The multiples scaled by one number and clipped to [low, high], such that mean |weight| is that of `start_K`.

    Between low <= 1 <= high such a scale exists, and the mean grows with it: bisection on its logarithm.
    """
    share_K = np.abs(start_K) / np.abs(start_K).sum()
    below, above = np.log(low / multiple_K.max()), np.log(high / multiple_K.min())
    for _ in range(100):
        middle = (below + above) / 2
        mean = share_K @ np.clip(multiple_K * np.exp(middle), low, high)
        below, above = (middle, above) if mean < 1 else (below, middle)
    return np.clip(multiple_K * np.exp((below + above) / 2), low, high)
