"""Does the cosine predict? What training one objective did to the others, beside what was measured while training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradlab.report.load import Sweep
from gradlab.report.pairs import keep_level

PREDICTORS = {
    "cosine": "plain cosine",
    "alignment": "alignment (cross-fitted)",
    "covariance": "covariance with the training advantage",
    "correlation": "correlation with the training advantage",
}
RESAMPLES = 2000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho over the cells of the transfer matrix off its diagonal.

    low, high   95 % bootstrap interval over seeds
    p           two-sided, of cells matched by chance
    """

    predictor: str
    rho: float
    low: float
    high: float
    p: float
    cells: int
    draws_S: np.ndarray


def trained_alone(sweep: Sweep) -> dict[str, str]:
    """Run to the one objective whose weight is not 0, of the runs that measure others beside it."""
    found = {}
    for run, config in sweep.configs.items():
        weights = {k: o["weight"] for k, o in config["objectives"].items() if o["enabled"]}
        trained = [k for k, weight in weights.items() if weight]
        if len(trained) == 1 and len(weights) > 1:
            found[run] = trained[0]
    return found


def cells(sweep: Sweep) -> pd.DataFrame:
    """A row a run that trains one objective and an objective measured: change on held-out prompts, and predictors.

    Predictors are means over the run's probed steps; on the diagonal the cosine is 1.
    """
    alone = trained_alone(sweep)
    changes = sweep.evals[(sweep.evals["measure"] == "reward") & (sweep.evals["model"] == "difference")]
    frame = changes[changes["run"].isin(alone)][["run", "group", "seed", "objective", "mean", "n"]]
    frame = frame.rename(columns={"objective": "measured", "mean": "change"})
    frame.insert(0, "trained", frame["run"].map(alone))
    pairs = keep_level(sweep.pairs, "run")[["run", "objective_i", "objective_j", "cosine", "alignment", "n_steps"]]
    mirror = pairs.rename(columns={"objective_i": "objective_j", "objective_j": "objective_i"})
    both = pd.concat([pairs, mirror]).rename(columns={"objective_i": "trained", "objective_j": "measured"})
    frame = frame.merge(both, on=["run", "trained", "measured"], how="left")
    frame.loc[frame["trained"] == frame["measured"], "cosine"] = 1.0
    for name in ("covariance", "correlation"):
        rows = sweep.metrics[sweep.metrics["metric"] == f"probe/advantage_{name}"]
        means = rows.groupby(["run", "objective"])["value"].mean().rename_axis(["run", "measured"]).rename(name)
        frame = frame.merge(means.reset_index(), on=["run", "measured"], how="left")
    return frame


def rank_correlations(frame: pd.DataFrame) -> list[RankCorrelation]:
    """Of each predictor with the change, both means over seeds; the bootstrap draws the seeds of each objective."""
    off = frame[frame["trained"] != frame["measured"]]
    generator = np.random.Generator(np.random.Philox(0))
    picks: dict[str, np.ndarray] = {}  # draws of runs, by trained objective
    for trained, part in off.groupby("trained"):
        runs = part["run"].nunique()
        own = np.arange(runs)[None]
        picks[str(trained)] = np.concatenate([own, generator.integers(0, runs, (RESAMPLES, runs))])
    out = []
    for name in PREDICTORS:
        values, changes = [], []
        for (trained, _), part in off.groupby(["trained", "measured"]):
            pick_SN = picks[str(trained)]
            part = part.sort_values("run")
            values.append(_mean(part[name].to_numpy(float)[pick_SN]))
            changes.append(_mean(part["change"].to_numpy(float)[pick_SN]))
        rho_S = spearman(np.stack(values, axis=1), np.stack(changes, axis=1))
        defined = rho_S[1:][~np.isnan(rho_S[1:])]
        low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) > 0.9 * RESAMPLES else (np.nan, np.nan)
        p = _matched_by_chance(np.array([v[0] for v in values]), np.array([c[0] for c in changes]), generator)
        out.append(RankCorrelation(name, float(rho_S[0]), float(low), float(high), p, len(values), rho_S[1:]))
    return out


def spearman(x_SN: np.ndarray, y_SN: np.ndarray) -> np.ndarray:
    """rho_S over the columns where both are defined; NaN below three columns or without spread."""
    hole = np.isnan(x_SN) | np.isnan(y_SN)
    ranks = [pd.DataFrame(np.where(hole, np.nan, a)).rank(axis=1).to_numpy() for a in (x_SN, y_SN)]
    count_S = (~hole).sum(axis=1)
    centred = [np.nan_to_num(a - (np.nansum(a, axis=1) / np.maximum(count_S, 1))[:, None]) for a in ranks]
    spread_S = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    usable_S = (spread_S > 1e-9) & (count_S >= 3)
    return np.where(usable_S, (centred[0] * centred[1]).sum(axis=1) / np.where(usable_S, spread_S, 1), np.nan)


def _matched_by_chance(x_N: np.ndarray, y_N: np.ndarray, generator: np.random.Generator) -> float:
    """Share of random orders of the cells whose rho is at least as far from 0; NaN where rho is not defined."""
    order_SN = np.argsort(generator.random((RESAMPLES, len(x_N))), axis=1)
    order_SN = np.concatenate([np.arange(len(x_N))[None], order_SN])
    rho_S = np.abs(spearman(x_N[order_SN], np.broadcast_to(y_N, order_SN.shape)))
    return float("nan") if np.isnan(rho_S[0]) else float(np.nanmean(rho_S >= rho_S[0] - 1e-9))


def _mean(values_SN: np.ndarray) -> np.ndarray:
    """Mean of the defined over seeds; NaN where none is."""
    count_S = (~np.isnan(values_SN)).sum(axis=1)
    return np.where(count_S > 0, np.nansum(values_SN, axis=1) / np.maximum(count_S, 1), np.nan)


def judgement(found: list[RankCorrelation]) -> str:
    """Which of plain cosine and covariance predicts better, or that this sweep cannot say."""
    by = {r.predictor: r for r in found}
    cosine, covariance = by["cosine"], by["covariance"]
    if np.isnan(cosine.low) or np.isnan(covariance.low):
        return "Too few seeds or cells to compare the predictors."
    gap_S = cosine.draws_S - covariance.draws_S
    low, high = np.nanquantile(gap_S, [0.025, 0.975])
    some = [PREDICTORS[r.predictor] for r in (cosine, covariance) if r.low > 0 and r.p < 0.05]
    reach = f"difference of rank correlations {cosine.rho - covariance.rho:+.2f} [{low:+.2f}, {high:+.2f}]"
    reach = reach.replace("-", "\N{MINUS SIGN}")
    if low > 0:
        return f"The cosine predicts the change of the other objectives better than the covariance ({reach})."
    if high < 0:
        return f"The covariance predicts the change of the other objectives better than the cosine ({reach})."
    alone = f"; apart from 0 by itself: {', '.join(some)}" if some else "; neither is apart from 0 by itself"
    return f"Cosine and covariance are not distinguishable as predictors ({reach}){alone}."
