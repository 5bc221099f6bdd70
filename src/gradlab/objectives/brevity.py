from __future__ import annotations

from pydantic import Field, model_validator

from gradlab.objectives.base import OBJECTIVES, Objective
from gradlab.objectives.text import words
from gradlab.types import Example, Score


@OBJECTIVES.register("brevity")
class Brevity(Objective):
    """How short the completion is: 1 up to `target_words`, falling in a straight line to 0 at `max_words`.

    A completion without a word is unparseable, 0.
    """

    target_words: int = Field(10, ge=1)
    """Longest completion with the full value."""
    max_words: int = Field(40, ge=1)
    """Shortest completion with value 0. Greater than `target_words`."""

    @model_validator(mode="after")
    def _ordered(self) -> Brevity:
        if self.max_words <= self.target_words:
            raise ValueError(f"expected max_words above target_words={self.target_words}; found {self.max_words}")
        return self

    def score(self, completion: str, example: Example) -> Score:
        count = len(words(completion))
        if not count:
            return Score(0.0, "unparseable")
        value = (self.max_words - count) / (self.max_words - self.target_words)
        return Score(min(1.0, max(0.0, value)), "graded")
