"""What a section of the page is made of, and the registry of sections."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import altair as alt
import pandas as pd

from gradlab.report.load import Sweep


@dataclass(frozen=True)
class Note:
    """A sentence, also in the place of a chart that has nothing to show."""

    kind: ClassVar[str] = "note"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart over the named dataset "table", whose rows are `rows`; the caption says what, how, and n."""

    kind: ClassVar[str] = "figure"
    title: str
    caption: str
    chart: alt.TopLevelMixin
    rows: list[dict[str, Any]]

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification, validated by Altair; data beside it, since validating rows is slow."""
        return self.chart.to_dict() | {"datasets": {"table": self.rows}}


class Link(NamedTuple):
    text: str
    href: str


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    title: str
    caption: str
    columns: list[str]
    rows: list[list[str | list[Link]]]
    folded: bool = False
    numeric: frozenset[int] = field(default_factory=frozenset)
    """Columns set flush right."""


@dataclass(frozen=True)
class Browser:
    """Completions to search: `rows` as lists in the order of `columns`."""

    kind: ClassVar[str] = "browser"
    title: str
    caption: str
    columns: list[str]
    objectives: list[str]
    rows: list[list[Any]]


Block = Note | Figure | Table | Browser


class Section(NamedTuple):
    id: str
    title: str
    build: Callable[[Sweep], Iterable[Block]]
    without_runs: bool
    """Whether it says something of a sweep in which no run finished."""


SECTIONS: dict[str, Section] = {}


def section(id: str, title: str, without_runs: bool = False) -> Callable:
    """Register a function `(Sweep) -> Iterable[Block]` as the next section of the page."""

    def add(build: Callable[[Sweep], Iterable[Block]]) -> Callable[[Sweep], Iterable[Block]]:
        assert id not in SECTIONS, f"section {id!r} is registered twice"
        SECTIONS[id] = Section(id, title, build, without_runs)
        return build

    return add


TABLE = alt.NamedData(name="table")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows for a chart: NaN to null (never 0), floats to 5 significant digits."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return None if value is pd.NA else value


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    """A number for a table; an em dash where there is none."""
    if value is None or not math.isfinite(value):
        return "—"
    value = round(value, digits) or 0.0  # neither +0.00 nor -0.00
    return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float, digits: int = 2, sign: bool = False) -> str:
    return "" if not math.isfinite(low) else f" [{number(low, digits, sign)}, {number(high, digits, sign)}]"
