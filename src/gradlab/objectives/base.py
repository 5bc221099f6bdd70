"""What an objective is: completion and example in, a finite number in a stated range out."""

from __future__ import annotations

import math
from typing import ClassVar

from gradlab.config import Frozen, ObjectiveConfig
from gradlab.registry import Registry
from gradlab.types import Example, Score

OBJECTIVES: Registry[type[Objective]] = Registry("objective")


class Objective(Frozen):
    """A frozen pydantic model: its fields are the parameters bound from `objectives.<label>.params`.

    Register with `@OBJECTIVES.register("name", version=1)`. `tasks` are the tasks it judges (None:
    all); on other rows it has no value at all (NaN in `rewards_BK`), never 0.
    """

    low: ClassVar[float]
    high: ClassVar[float]
    tasks: ClassVar[frozenset[str] | None] = None

    def applies(self, example: Example) -> bool:
        return self.tasks is None or example.task in self.tasks

    def score(self, completion: str, example: Example) -> Score:
        raise NotImplementedError

    def __call__(self, completion: str, example: Example) -> Score:
        """The checked score. Raises ValueError when it is not finite or leaves [low, high]."""
        score = self.score(completion, example)
        if not (math.isfinite(score.value) and self.low <= score.value <= self.high):
            raise ValueError(
                f"objective {type(self).__name__}: expected a score in [{self.low}, {self.high}]; "
                f"found {score.value} for example {example.id!r} and completion {completion!r}"
            )
        return score


def build(label: str, config: ObjectiveConfig) -> Objective:
    """The objective that a run's `objectives.<label>` asks for."""
    return OBJECTIVES[config.kind or label](**config.params)
