"""What an objective is: completion and example in, a finite number in a stated range out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ValidationError

from gradlab.config import Frozen, ObjectiveConfig
from gradlab.registry import Registry, unknown
from gradlab.types import Example, Score

OBJECTIVES: Registry[type[Objective]] = Registry("objective")


class Objective(Frozen):
    """A frozen pydantic model: its fields are the parameters bound from `objectives.<label>.params`.

    Register with `@OBJECTIVES.register("name", version=1)`. `tasks` are the tasks it judges (None:
    all); on other rows it has no value at all (NaN in `rewards_BK`), never 0. `needs` are the fields
    it reads of an example (float: any number). Its docstring and its fields' are its documentation.
    """

    tasks: ClassVar[frozenset[str] | None] = None
    needs: ClassVar[Mapping[str, type]] = {}

    @property
    def low(self) -> float:
        """Least value. An empty completion has it, and is unparseable: silence never pays."""
        return 0.0

    @property
    def high(self) -> float:
        """Greatest value."""
        return 1.0

    def applies(self, example: Example) -> bool:
        return self.tasks is None or example.task in self.tasks

    def check(self, example: Example) -> None:
        """Raises ValueError when a field that this objective reads is missing or of another type."""
        for key, kind in self.needs.items():
            value = example.fields.get(key)
            if not _is(value, kind):
                found = repr(value) if key in example.fields else "no such key"
                raise ValueError(
                    f"objective {type(self).__name__}: example {example.id!r}: {key}: "
                    f"expected {_KIND[kind]}; found {found}"
                )

    def score(self, completion: str, example: Example) -> Score:
        """The score of a completion that is not empty; `check` has passed."""
        raise NotImplementedError

    def __call__(self, completion: str, example: Example) -> Score:
        """The checked score. Raises ValueError for a bad example, or a value outside [low, high]."""
        self.check(example)
        if not completion.strip():
            return Score(self.low, "unparseable")
        score = self.score(completion, example)
        if not (math.isfinite(score.value) and self.low <= score.value <= self.high):
            raise ValueError(
                f"objective {type(self).__name__}: expected a score in [{self.low}, {self.high}]; "
                f"found {score.value} for example {example.id!r} and completion {completion!r}"
            )
        return score


_KIND = {float: "a finite number", bool: "true or false", str: "a text"}


def _is(value: Any, kind: type) -> bool:
    if kind is float:  # a bool is an int to Python, and JSON readers let NaN through
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def build(label: str, config: ObjectiveConfig) -> Objective:
    """The objective that a run's `objectives.<label>` asks for. Raises ValueError naming the bad key."""
    kind = OBJECTIVES[config.kind or label]
    try:
        return kind(**config.params)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            where = ".".join(("objectives", label, "params", *map(str, problem["loc"])))
            if problem["type"] == "extra_forbidden":
                lines.append(f"{where}: {unknown('parameter', str(problem['loc'][-1]), sorted(kind.model_fields))}")
            else:
                expected = problem["msg"].replace("Input should be", "expected")
                lines.append(f"{where}: {expected}; found {problem['input']!r}")
        raise ValueError("\n".join(lines)) from error
