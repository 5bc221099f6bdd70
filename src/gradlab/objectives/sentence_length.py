from __future__ import annotations

from pydantic import Field

from gradlab.objectives.base import OBJECTIVES, Objective
from gradlab.objectives.text import sentences
from gradlab.types import Example, Score


@OBJECTIVES.register("sentence_length")
class SentenceLength(Objective):
    """How near the story's mean words per sentence are to `target_words`: max(0, 1 - distance / `width_words`).

    A last sentence without its full stop counts; a completion without a word is unparseable, 0.
    """

    tasks = frozenset({"stories"})

    target_words: float = Field(8.0, gt=0)
    """Mean words per sentence with value 1."""
    width_words: float = Field(8.0, gt=0)
    """Distance from the target with value 0."""

    def score(self, completion: str, example: Example) -> Score:
        lengths = [len(sentence) for sentence in sentences(completion)]
        if not lengths:
            return Score(0.0, "unparseable")
        distance = abs(sum(lengths) / len(lengths) - self.target_words)
        return Score(max(0.0, 1.0 - distance / self.width_words), "graded")
