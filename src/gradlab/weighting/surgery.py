"""Weights from the Gram of the objectives' gradients; TorchJD does the mathematics (Quinton and Rey 2024, 2406.16232).

Only the inner products enter, so the update stays one ordinary backward of the combined advantage.
Left out: ConFIG, GradDrop, ExcessMTL and TrimmedMean read gradients entry by entry; MoDo and SDMGrad
need inner products across two independent batches.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from gradlab.weighting.base import Array, Weighting

Index = NDArray[np.int64]


class Surgery(Weighting):
    """A method of TorchJD on this batch's Gram, or on the running mean of the probed steps before.

    An objective without signal is left out of the Gram and keeps its weight; so do all where fewer than
    `least` have one. The method sees the weighted objectives and its result multiplies their weights:
    a single objective is left as it is.
    """

    torchjd: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()  # parameters of the configuration that TorchJD's class takes
    least: ClassVar[int] = 2

    @property
    def needs_gram(self) -> bool:  # type: ignore[override]
        return self.config.gram == "batch"

    def combine(self, gram_KK: Array | None, weights_K: Array, generator: torch.Generator) -> Array:
        if not self.needs_gram:
            gram_KK = self.memory.get("gram_KK")
        if gram_KK is None:
            return weights_K  # nothing probed yet
        active = np.flatnonzero(np.diag(gram_KK) > 0)
        if len(active) < self.least:
            return weights_K
        gram_AA = torch.from_numpy(np.ascontiguousarray(gram_KK[np.ix_(active, active)]))
        with torch.random.fork_rng(devices=[]):  # the methods that draw take torch's global generator
            torch.set_rng_state(generator.get_state())
            found_A = self.solve(gram_AA, active).double().numpy()
        multiple_K = np.ones_like(weights_K)
        multiple_K[active] = found_A / found_A.mean() if self.config.rescale == "mean" and found_A.any() else found_A
        return multiple_K * weights_K

    def solve(self, gram_AA: torch.Tensor, active: Index) -> torch.Tensor:
        """TorchJD's weights for the objectives `active`; a method with a state takes it from `memory`."""
        return self.method()(gram_AA)

    def method(self, **more: Any) -> Any:
        """A fresh instance of TorchJD's class."""
        made = getattr(importlib.import_module("torchjd.aggregation"), self.torchjd)
        return made(**{option: getattr(self.config, option) for option in self.options}, **more)

    def observe(self, rewards_BK: Array, advantages_BK: Array, combined_B: Array, gram_KK: Array | None) -> None:
        if gram_KK is None or self.needs_gram:
            return
        found_KK = np.nan_to_num(gram_KK, nan=0.0)  # the gradient of an objective without signal is 0
        past_KK = self.memory.get("gram_KK", found_KK)
        self.memory["gram_KK"] = self.config.ema_decay * past_KK + (1 - self.config.ema_decay) * found_KK
