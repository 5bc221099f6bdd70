"""What the probe saved of a run, read back: `probe/gram_stepXXXX.npz`. numpy only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradlab.inference import ProbedStep

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SavedGram:
    """One probed step. rewards_BK is NaN where an objective does not judge the row."""

    step: int
    layers: list[str]
    objectives: list[str]
    gram_LBB: Array
    advantages_BK: Array
    rewards_BK: Array
    group_B: NDArray[np.int64]

    def of_layer(self, index: int) -> ProbedStep:
        return ProbedStep(self.gram_LBB[index], self.advantages_BK, self.group_B, ~np.isnan(self.rewards_BK))


def saved_grams(run_dir: str | Path, objectives: list[str]) -> Iterator[SavedGram]:
    """The probed steps of a run in order.

    Raises ValueError when there is none, a file lacks an array, or its objectives are not `objectives`.
    """
    paths = sorted(Path(run_dir).glob("probe/gram_step*.npz"), key=_step)
    if not paths:
        raise ValueError(
            f"{run_dir}: expected probe/gram_stepXXXX.npz; found none. Train the run with probe.every above 0."
        )
    for path in paths:
        with np.load(path, allow_pickle=False) as found:
            try:
                saved = SavedGram(
                    _step(path),
                    found["layers"].tolist(),
                    found["objectives"].tolist(),
                    found["gram_LBB"].astype(np.float64),
                    found["advantages_BK"].astype(np.float64),
                    found["rewards_BK"].astype(np.float64),
                    found["group_B"].astype(np.int64),
                )
            except KeyError as error:
                raise ValueError(f"{path}: expected the arrays of docs/ARCHITECTURE.md; found {error}") from None
        if saved.objectives != objectives:
            raise ValueError(
                f"{path}: expected objectives {objectives}; found {saved.objectives}. Train the run again."
            )
        _check_psd(path, saved)
        yield saved


def _check_psd(path: Path, saved: SavedGram) -> None:
    """Raises ValueError unless every layer's Gram is symmetric and positive semi-definite within float32 rounding."""
    for layer, gram_BB in zip(saved.layers, saved.gram_LBB, strict=True):
        scale = float(np.abs(gram_BB).max())
        skew = float(np.abs(gram_BB - gram_BB.T).max())
        lowest = float(np.linalg.eigvalsh((gram_BB + gram_BB.T) / 2)[0]) if np.isfinite(scale) else np.nan
        if not (skew <= 1e-4 * scale and lowest >= -1e-4 * scale):
            raise ValueError(
                f"{path}: gram_LBB of layer {layer!r}: expected a symmetric positive semi-definite matrix; found a "
                f"lowest eigenvalue of {lowest:.3g} and an asymmetry of {skew:.3g} beside entries up to {scale:.3g}. "
                "The file is damaged: train the run again."
            )


def advantage_covariance(rewards_BK: Array, group_B: NDArray[np.int64], advantage_B: Array) -> tuple[Array, Array]:
    """covariance_K and correlation_K of each reward with the advantage that trains, within prompts.

    The covariance is, to first order in the step size and for a policy that moves freely, the change of each
    reward that training makes (covariance law, arXiv 2602.06869). Rows to which a reward does not apply are left
    out; NaN where fewer than two rows of a prompt are left, correlation also where either side has no spread.
    """
    present_BK = ~np.isnan(rewards_BK)
    _, index_B = np.unique(group_B, return_inverse=True)
    member_GB = (np.arange(index_B.max() + 1)[:, None] == index_B).astype(float)
    count_GK = member_GB @ present_BK

    def centred(values_BK: Array) -> Array:
        filled = np.where(present_BK, values_BK, 0.0)
        mean_GK = member_GB @ filled / np.maximum(count_GK, 1)
        return np.where(present_BK, filled - mean_GK[index_B], 0.0)

    reward_BK, advantage_BK = centred(rewards_BK), centred(np.broadcast_to(advantage_B[:, None], rewards_BK.shape))
    degrees_K = np.maximum(count_GK - 1, 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance_K = (reward_BK * advantage_BK).sum(axis=0) / degrees_K
        spread_K = np.sqrt((reward_BK**2).sum(axis=0) * (advantage_BK**2).sum(axis=0)) / degrees_K
    flat_K = ~(spread_K > 1e-9)
    return covariance_K, np.where(flat_K, np.nan, covariance_K / np.where(flat_K, 1, spread_K))


def _step(path: Path) -> int:
    found = re.fullmatch(r"gram_step(\d+)", path.stem)
    if not found:
        raise ValueError(f"{path}: expected a name like gram_step0010.npz")
    return int(found[1])
