"""Rows of `pairs` and `conflict`: what the saved Grams of runs say of each two objectives, with error bars.

Evidence of a step is made once; a run is the sum of its steps, a group the sum of its runs that finished.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from gradlab.aggregate.files import Row, RunFiles
from gradlab.aggregate.rows import covariance_rows
from gradlab.inference import (
    Evidence,
    PairEstimate,
    conflict_against_null,
    estimate,
    evidence,
    merge,
    q_values,
    verdict,
)
from gradlab.store import canonical


def groups_of(configs: dict[str, Row]) -> list[list[str]]:
    """The runs that differ in seed (or placement) alone, together."""
    found: dict[str, list[str]] = {}
    for run, config in configs.items():
        shared = {key: value for key, value in config.items() if key not in ("seed", "placement")}
        found.setdefault(canonical(shared), []).append(run)
    return list(found.values())


class Group:
    """Rows of the runs of a group, added one at a time, and of all its runs that finished, `runs`."""

    def __init__(self, runs: tuple[str, ...]) -> None:
        self.runs = runs
        self._together: dict[str, Evidence] = {}
        self._labels: list[str] = []
        self._tau = 0.0

    def add(self, files: RunFiles) -> dict[str, list[Row]]:
        """Rows by table of what a run's saved Grams say; a run that diverged has no statistic."""
        rows: dict[str, list[Row]] = {"metrics": [], "pairs": [], "conflict": []}
        self._labels, self._tau = files.objectives, files.config["probe"]["tau"]
        found: dict[str, dict[int, Evidence]] = {}
        for saved in files.grams():
            rows["metrics"] += [{"run": files.run} | row for row in covariance_rows(files, saved)]
            for index, layer in enumerate(saved.layers) if files.outcome.finished else ():
                generator = np.random.default_rng([zlib.crc32(files.run.encode()), saved.step, index])
                step = evidence(saved.of_layer(index), generator, tau=self._tau)
                found.setdefault(layer, {})[saved.step] = step
        if found:
            where = {"level": "run", "run": files.run, "first_run": self.runs[0], "n_runs": 1}
            steps = [
                row
                for layer, by_step in found.items()
                for step, e in by_step.items()
                for row in _pair_rows(where | {"level": "step", "step": step, "layer": layer}, self._labels, e)
            ]
            rows["pairs"] += _with_q(steps)
            total = {layer: merge(list(by_step.values())) for layer, by_step in found.items()}
            self._pool(rows, where, total)
            for layer, e in total.items():
                before = self._together.get(layer)
                self._together[layer] = merge([before, e]) if before else e
        return rows

    def pooled(self) -> dict[str, list[Row]]:
        """Rows by table over all the runs added; none where no run has a probe or none finished."""
        rows: dict[str, list[Row]] = {"pairs": [], "conflict": []}
        if self._together:
            where = {"level": "group", "run": None, "first_run": self.runs[0], "n_runs": len(self.runs)}
            self._pool(rows, where, self._together)
        return rows

    def _pool(self, rows: dict[str, list[Row]], where: Row, by_layer: dict[str, Evidence]) -> None:
        """Adds the rows of one run or group; q over its layers and pairs."""
        rows["pairs"] += _with_q(
            [row for layer, e in by_layer.items() for row in _pair_rows(where | {"layer": layer}, self._labels, e)]
        )
        for layer, e in by_layer.items():
            c = conflict_against_null(e)
            row = where | {
                "layer": layer,
                "tau": self._tau,
                "conflict_fraction": c.mean,
                "null": c.null,
                "null_low": c.low,
                "null_high": c.high,
                "p": c.p,
                "n_steps": c.n_steps,
            }
            rows["conflict"].append({key: _null(value) for key, value in row.items()})


def _pair_rows(where: Row, labels: list[str], found: Evidence) -> Iterable[Row]:
    e: PairEstimate = estimate(found, np.random.default_rng(0))
    columns = {name.removesuffix("_KK"): getattr(e, name) for name in PairEstimate.__annotations__}
    for i, first in enumerate(labels):
        for j in range(i + 1, len(labels)):
            values = {name: matrix[i, j].item() for name, matrix in columns.items()}
            yield where | {"objective_i": first, "objective_j": labels[j]} | values


def _with_q(rows: list[Row]) -> list[Row]:
    q_N = q_values(np.array([row["p"] for row in rows], dtype=float))
    return [
        {key: _null(value) for key, value in row.items()} | {"q": _null(q), "verdict": verdict(row["alignment"], q)}
        for row, q in zip(rows, q_N.tolist(), strict=True)
    ]


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and np.isnan(value) else value
