"""Weights that move by the clock: linear, or half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""

from __future__ import annotations

import math

import numpy as np

from gradlab.weighting.base import WEIGHTINGS, Array, Weighting


@WEIGHTINGS.register("linear")
class Linear(Weighting):
    """weight = start + (end - start) * step / (steps - 1)."""

    def weights(self, step: int) -> Array:
        end_K = np.array([self.config.end.get(k, w) for k, w in zip(self.labels, self.start_K, strict=True)])
        return self.start_K + (end_K - self.start_K) * self.progress(step / max(1, self.steps - 1))

    def progress(self, time: float) -> float:
        """Way done, 0 to 1, at a share of the time."""
        return time


@WEIGHTINGS.register("cosine")
class Cosine(Linear):
    """Slow at both ends: progress = (1 - cos(pi * time)) / 2."""

    def progress(self, time: float) -> float:
        return (1 - math.cos(math.pi * time)) / 2
