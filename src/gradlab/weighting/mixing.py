"""The weightings of R runs at one step: reward weights first, then one advantage a row, then what they remember."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from gradlab.config import RunConfig
from gradlab.gradients import objective_gram
from gradlab.requirements import check_installed
from gradlab.types import ScoredRollout
from gradlab.weighting.base import WEIGHTINGS, Array, Weighting

RANDOM = 2  # purpose of a weighting's random numbers


def build(run: RunConfig) -> Weighting:
    """The run's weighting. Raises ValueError when a package that it needs is missing."""
    check_installed(run)
    return WEIGHTINGS[run.weighting.name](run)


class Mixing:
    """Works on copies of the weightings: theirs is the state after the step, to be kept once the update is done.

    weights     weights_K of each run's reward at this step
    combined    w_K of each run, what multiplies its advantages; set by `advantage`
    seconds     time spent on finding them
    """

    def __init__(self, step: int, configs: Sequence[RunConfig], weightings: Sequence[Weighting]) -> None:
        self.step, self.configs = step, configs
        self.weightings = [weighting.copy() for weighting in weightings]
        self.weights = [check_weights(step, weighting.weights(step)) for weighting in self.weightings]
        self.combined: list[Array] = []
        self.seconds = 0.0

    @property
    def needs_gram(self) -> bool:
        """Whether a run's weights wait for this batch's Gram."""
        return any(weighting.needs_gram for weighting in self.weightings)

    def advantage(self, scored: Sequence[ScoredRollout], gram_RLBB: Array | None) -> torch.Tensor:
        """(N) advantages that train, float32, run by run. `gram_RLBB` is read by the runs that need it."""
        start = time.perf_counter()
        self.combined = []
        for r, (weighting, weights_K) in enumerate(zip(self.weightings, self.weights, strict=True)):
            gram_KK = None
            if weighting.needs_gram:
                assert gram_RLBB is not None, "a weighting needs this batch's Gram"
                gram_KK = check_gram(self.step, self._gram(gram_RLBB[r], scored[r], weights_K))
            generator = step_generator(self.configs[r].seed, self.step)
            self.combined.append(check_weights(self.step, weighting.combine(gram_KK, weights_K, generator)))
        self.seconds += time.perf_counter() - start
        return torch.from_numpy(np.concatenate(self._combined_B(scored))).float()

    def observe(self, scored: Sequence[ScoredRollout], gram_RLBB: Array | None) -> None:
        """After the update. `gram_RLBB` only at probed steps, so that a run's neighbours change nothing."""
        for r, (weighting, run, combined_B) in enumerate(
            zip(self.weightings, scored, self._combined_B(scored), strict=True)
        ):
            gram_KK = None if gram_RLBB is None else self._gram(gram_RLBB[r], run, self.weights[r])
            weighting.observe(run.scores.rewards_BK, run.advantages_BK, combined_B, gram_KK)

    def _combined_B(self, scored: Sequence[ScoredRollout]) -> list[Array]:
        return [run.advantages_BK @ w_K for run, w_K in zip(scored, self.combined, strict=True)]

    def _gram(self, gram_LBB: Array, run: ScoredRollout, weights_K: Array) -> Array:
        """gram_KK of the weighted objectives over all probed layers; an objective of weight 0 has no signal."""
        return objective_gram(gram_LBB.sum(axis=0), run.advantages_BK * weights_K)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers as a function of (seed, step): a resumed run draws what it would have drawn."""
    state = np.random.SeedSequence([seed, RANDOM, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def check_weights(step: int, weights_K: Array) -> Array:
    """Raises ValueError when a weight is not finite or all are 0: nothing would be trained."""
    if not np.isfinite(weights_K).all() or not weights_K.any():
        raise ValueError(
            f"step {step}: expected finite weights, not all 0; found {weights_K.tolist()}. "
            "Choose another weighting, or weighting.gram: ema for steadier ones."
        )
    return weights_K


def check_gram(step: int, gram_KK: Array) -> Array:
    """Raises ValueError when the Gram has an eigenvalue below 0 by more than rounding."""
    active = np.flatnonzero(np.diag(gram_KK) > 0)
    value_A = np.linalg.eigvalsh(gram_KK[np.ix_(active, active)])
    if len(value_A) and not value_A[0] >= -1e-4 * value_A[-1]:
        raise ValueError(
            f"step {step}: expected a positive semi-definite Gram of the objectives; found eigenvalues "
            f"{value_A.tolist()}. Its entries are no inner products: check what was probed."
        )
    return gram_KK
