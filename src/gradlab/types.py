"""The data that flows between layers, and the legend of the axis letters in array names.

    R runs in a pack    B rows (sampled completions of one run)    T tokens    K objectives
    P parameters        L layers (or groups of layers) probed      V vocabulary

`rewards_BK` is rows by objectives; a leading R means the runs of a pack, laid out run by run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Outcome = Literal["right", "wrong", "unparseable", "graded"]


@dataclass(frozen=True)
class Example:
    """One prompt. `fields` holds what the task's objectives need: `answer`, `unsafe`, `tests`, ..."""

    id: str
    task: str
    prompt: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What an objective says of one completion: a finite value in its stated range, and why.

    `right`, `wrong` and `unparseable` are three different facts although the last two may share a
    value; `graded` is a point on a scale.
    """

    value: float
    outcome: Outcome


@dataclass(frozen=True)
class Rollout:
    """Sampled completions of R runs; N = R * B rows laid out run by run, right-padded.

    ids_NT         prompt then completion then padding, int64
    prompt_len_N   tokens of the prompt
    length_N       tokens of prompt and completion, the sampled EOS included
    logp_NC        the sampler's log-probs at its temperature, completion token c at [n, c]; 0 on padding
    ended_N        whether the row sampled EOS (False: cut at max_new_tokens, no EOS is scored)
    """

    ids_NT: Tensor
    prompt_len_N: Tensor
    length_N: Tensor
    logp_NC: Tensor
    ended_N: Tensor

    @property
    def completion_len_N(self) -> Tensor:
        return self.length_N - self.prompt_len_N


@dataclass(frozen=True)
class Scores:
    """rewards_BK as the objectives gave them (NaN: does not apply), and their outcomes (None there)."""

    rewards_BK: NDArray[np.float64]
    outcomes_BK: list[list[Outcome | None]]


@dataclass(frozen=True)
class ScoredRollout:
    """One run's B rows: example, completion, group (which prompt of the step), scores, advantages.

    length_B counts the completion's tokens, the sampled EOS included; ended_B as in `Rollout`.
    """

    examples: list[Example]
    texts: list[str]
    group_B: NDArray[np.int64]
    length_B: NDArray[np.int64]
    ended_B: NDArray[np.bool_]
    scores: Scores
    advantages_BK: NDArray[np.float64]
    epoch: int
