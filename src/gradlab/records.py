"""Rows of metrics.jsonl and samples.jsonl from a scored rollout. Undefined is null, never 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.config import RunConfig
from gradlab.credit import variance_share
from gradlab.gradients import Array, numbers
from gradlab.runlog import per_objective
from gradlab.types import Example, ScoredRollout, Scores
from gradlab.update import STATS

OUTCOMES = ("right", "wrong", "unparseable", "graded")


def metric_row(
    names: list[str],
    run: ScoredRollout,
    config: RunConfig,
    combined_K: Array,
    stats_S: Sequence[float],
) -> dict[str, Any]:
    """One run's metrics of one step; rewards as the objectives gave them.

    `reward_mean` is of the configured weights, the same yardstick at every step; combined_K is what trained.
    """
    rewards_BK, weights_K = run.scores.rewards_BK, np.array([o.weight for o in config.enabled_objectives.values()])
    present = ~np.isnan(rewards_BK)
    count_K = present.sum(axis=0)
    with np.errstate(invalid="ignore"):
        mean_K = np.nansum(rewards_BK, axis=0) / count_K
        spread_K = np.sqrt(np.nansum((rewards_BK - mean_K) ** 2, axis=0) / (count_K - 1.0))
    spread_K = np.where(count_K > 1, spread_K, np.nan)
    combined_B = run.advantages_BK @ combined_K
    flat = [not combined_B[run.group_B == g].any() for g in np.unique(run.group_B)]
    total = dict(zip(STATS, stats_S, strict=True))
    tokens, epochs = total["tokens"], config.algorithm.inner_epochs
    outcomes = {
        f"outcome/{name}/{outcome}": sum(row[k] == outcome for row in run.scores.outcomes_BK)
        for k, name in enumerate(names)
        for outcome in OUTCOMES
    }
    return {
        "reward_mean": float(np.nansum(rewards_BK * weights_K, axis=1).mean()),
        **per_objective("reward_mean", names, mean_K),
        **per_objective("reward_std", names, spread_K),
        **{f"reward_n/{name}": int(n) for name, n in zip(names, count_K, strict=True)},
        **outcomes,
        **per_objective("advantage_variance_share", names, variance_share(run.advantages_BK, combined_K)),
        **per_objective("weight", names, combined_K),
        "zero_variance_group_fraction": float(np.mean(flat)),
        "kl_nats_per_token": total["kl"] / tokens if config.algorithm.beta else None,
        "entropy_nats_per_token": total["entropy"] / tokens,
        "clip_fraction": total["clipped"] / (tokens * epochs),
        "ratio_mean": total["ratio"] / (tokens * epochs),
        "loss": total["loss"],
        "completion_tokens_mean": float(run.length_B.mean()),
        "ended_fraction": float(run.ended_B.mean()),
    }


def sample_rows(step: int, names: list[str], run: ScoredRollout) -> list[dict[str, Any]]:
    """Every completion of the step with what was said of it."""
    columns = zip(run.examples, run.texts, run.length_B, run.ended_B, strict=True)
    return [
        {
            "step": step,
            "group": int(run.group_B[b]),
            **completion_row(b, names, run.scores, *column),
            "advantages": dict(zip(names, map(float, run.advantages_BK[b]), strict=True)),
        }
        for b, column in enumerate(columns)
    ]


def completion_row(
    b: int, names: list[str], scores: Scores, example: Example, text: str, length: int, ended: bool
) -> dict[str, Any]:
    """What training and evaluation both say of row b."""
    return {
        "row": b,
        "example": example.id,
        "task": example.task,
        "prompt": example.prompt,
        "completion": text,
        "ended": bool(ended),
        "completion_tokens": int(length),
        "rewards": dict(zip(names, numbers(scores.rewards_BK[b]), strict=True)),
        "outcomes": dict(zip(names, scores.outcomes_BK[b], strict=True)),
    }


def sample_line(step: int, row: dict[str, Any]) -> str:
    """`[Sample @ step] prompt -> completion (scores)`, one line whatever the text holds."""
    scores = ", ".join(f"{k} {v:.3g}" for k, v in row["rewards"].items() if v is not None)
    return f"[Sample @ {step}] {row['prompt']!r} -> {row['completion']!r} ({scores})"
