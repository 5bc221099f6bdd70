"""Completions to rewards_BK: the objective axis is never summed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradlab.objectives.base import Objective
from gradlab.types import Example, Outcome, Scores


def score(objectives: Mapping[str, Objective], examples: Sequence[Example], completions: Sequence[str]) -> Scores:
    """Score every completion with every objective that applies to its example.

    Raises ValueError (from the objective) when a score is not finite or out of range.
    """
    rewards = np.full((len(completions), len(objectives)), np.nan)
    outcomes: list[list[Outcome | None]] = [[None] * len(objectives) for _ in completions]
    for b, (example, completion) in enumerate(zip(examples, completions, strict=True)):
        for k, objective in enumerate(objectives.values()):
            if objective.applies(example):
                result = objective(completion, example)
                rewards[b, k], outcomes[b][k] = result.value, result.outcome
    return Scores(rewards, outcomes)
