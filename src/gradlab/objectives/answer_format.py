from __future__ import annotations

import re

from gradlab.objectives.base import OBJECTIVES, Objective
from gradlab.objectives.text import NUMBER
from gradlab.types import Example, Score

_FORM = re.compile(rf"\s*answer\s*:\s*{NUMBER}[\s.!?]*", re.IGNORECASE)


@OBJECTIVES.register("answer_format")
class AnswerFormat(Objective):
    """Whether the completion is `answer : <number>` and nothing else but final punctuation: 1 or 0.

    Whether the number is right is the matter of `exactness`.
    """

    tasks = frozenset({"arithmetic", "format"})

    def score(self, completion: str, example: Example) -> Score:
        return Score(1.0, "right") if _FORM.fullmatch(completion) else Score(0.0, "wrong")
