"""The word that stories are made to say: how often, and whether at all."""

from __future__ import annotations

from pydantic import Field

from gradlab.objectives.base import OBJECTIVES, Objective
from gradlab.objectives.text import words
from gradlab.types import Example, Score


@OBJECTIVES.register("happy_count")
class HappyCount(Objective):
    """How often the whole word `happy` stands in the story, at most `cap`: min(count, cap)."""

    tasks = frozenset({"stories"})

    cap: int = Field(5, ge=1)
    """The greatest value; more of the word earns nothing more."""

    @property
    def high(self) -> float:
        return float(self.cap)

    def score(self, completion: str, example: Example) -> Score:
        return Score(float(min(words(completion).count("happy"), self.cap)), "graded")


@OBJECTIVES.register("happy_binary")
class HappyBinary(Objective):
    """Whether the whole word `happy` stands in the story: 1 or 0."""

    tasks = frozenset({"stories"})

    def score(self, completion: str, example: Example) -> Score:
        return Score(1.0, "right") if "happy" in words(completion) else Score(0.0, "wrong")
