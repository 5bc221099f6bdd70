"""Rows of `pairs` and `conflict`: what the saved Grams of runs say of each two objectives, with error bars.

Evidence of a step is made once; a run is the sum of its steps, a group the sum of its runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.aggregate.rows import enabled
from gradlab.grams import saved_grams
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

Row = dict[str, Any]


def groups_of(configs: dict[str, Row]) -> dict[str, list[str]]:
    """First run to all the runs that differ from it in seed (or placement) alone."""
    found: dict[str, list[str]] = {}
    for run, config in configs.items():
        shared = {key: value for key, value in config.items() if key not in ("seed", "placement")}
        found.setdefault(canonical(shared), []).append(run)
    return {runs[0]: runs for runs in found.values()}


def statistics(folder: Path, configs: dict[str, Row]) -> tuple[list[Row], list[Row]]:
    """Rows of `pairs` and of `conflict`, over all runs of a sweep and their groups."""
    pairs: list[Row] = []
    conflicts: list[Row] = []
    for first, runs in groups_of(configs).items():
        if not configs[first]["probe"]["every"]:
            continue
        labels = enabled(configs[first])
        tau = configs[first]["probe"]["tau"]
        together: dict[str, list[Evidence]] = {}
        for run in runs:
            where = {"level": "run", "run": run, "first_run": first, "n_runs": 1}
            by_layer = _evidence(folder, run, labels, tau)
            steps = [
                row
                for layer, found in by_layer.items()
                for step, e in found.items()
                for row in _pair_rows(where | {"level": "step", "step": step, "layer": layer}, labels, e)
            ]
            pairs += _with_q(steps)
            total = {layer: merge(list(found.values())) for layer, found in by_layer.items()}
            for rows, more in zip((pairs, conflicts), _pooled(where, labels, total, tau), strict=True):
                rows += more
            for layer, found in total.items():
                together.setdefault(layer, []).append(found)
        where = {"level": "group", "run": None, "first_run": first, "n_runs": len(runs)}
        whole = {layer: merge(found) for layer, found in together.items()}
        for rows, more in zip((pairs, conflicts), _pooled(where, labels, whole, tau), strict=True):
            rows += more
    return pairs, conflicts


def _evidence(folder: Path, run: str, labels: list[str], tau: float) -> dict[str, dict[int, Evidence]]:
    """By layer and step."""
    found: dict[str, dict[int, Evidence]] = {}
    for saved in saved_grams(folder / "runs" / run, labels):
        for index, layer in enumerate(saved.layers):
            generator = np.random.default_rng([zlib.crc32(run.encode()), saved.step, index])
            found.setdefault(layer, {})[saved.step] = evidence(saved.of_layer(index), generator, tau=tau)
    return found


def _pooled(
    where: Row, labels: list[str], by_layer: dict[str, Evidence], tau: float
) -> tuple[Iterable[Row], Iterable[Row]]:
    """q over the layers and pairs of one run or group."""
    pairs = [row for layer, found in by_layer.items() for row in _pair_rows(where | {"layer": layer}, labels, found)]
    conflicts = []
    for layer, found in by_layer.items():
        c = conflict_against_null(found)
        conflicts.append(
            where
            | {
                "layer": layer,
                "tau": tau,
                "conflict_fraction": c.mean,
                "null": c.null,
                "null_low": c.low,
                "null_high": c.high,
                "p": c.p,
                "n_steps": c.n_steps,
            }
        )
    return _with_q(pairs), [{key: _null(value) for key, value in row.items()} for row in conflicts]


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
