from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from gradlab.objectives.base import OBJECTIVES, Objective
from gradlab.objectives.text import final_number
from gradlab.types import Example, Score


@OBJECTIVES.register("exactness")
class Exactness(Objective):
    """Whether the final number equals the example's `answer`: 1 or 0.

    Read is the number after the last `answer :`, without that mark the last number. Signs, decimals and
    thousands commas count (`-1,234.5`).
    """

    tasks = frozenset({"arithmetic", "format"})
    needs: ClassVar[Mapping[str, type]] = {"answer": float}

    tolerance: float = Field(0.0, ge=0)
    """Greatest distance that still is right."""
    unparseable_value: float = Field(0.0, le=0)
    """Value of a completion with no number; below 0 it costs more than a wrong one."""

    @property
    def low(self) -> float:
        return self.unparseable_value

    def score(self, completion: str, example: Example) -> Score:
        number = final_number(completion)
        if number is None:
            return Score(self.unparseable_value, "unparseable")
        right = abs(number - example.fields["answer"]) <= self.tolerance
        return Score(1.0, "right") if right else Score(0.0, "wrong")
