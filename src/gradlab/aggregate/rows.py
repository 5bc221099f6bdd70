"""The files of one run to the rows of each table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gradlab.aggregate.columns import HELDOUT_ROWS, PER_OBJECTIVE_SAMPLE, SAMPLE_ROWS, SAMPLE_STEPS
from gradlab.grams import advantage_covariance, saved_grams
from gradlab.store import read_json, read_jsonl

Row = dict[str, Any]
T = TypeVar("T")


def thin(rows: Sequence[T], keep: int) -> list[T]:
    """At most `keep` rows, evenly spaced, the first and the last among them. No randomness."""
    if len(rows) <= keep:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, keep).round().astype(int)]


def read(folder: Path, run: str, file: str) -> Any:
    path = folder / "runs" / run / file
    if not path.exists():
        raise ValueError(f"run {run}: expected the file {path}; found none. Make it with `snakemake {path}`.")
    return read_jsonl(path) if path.suffix == ".jsonl" else read_json(path)


def _metric_rows(folder: Path, run: str, config: Row) -> Iterable[Row]:
    labels, previous = config["objectives"], -1
    for row in read(folder, run, "metrics.jsonl"):
        step = row["step"]
        if step <= previous:
            raise ValueError(f"run {run}: metrics.jsonl: expected steps that rise; found {step} after {previous}")
        previous = step
        for key, value in row.items():
            if key == "step":
                continue
            head, *rest = key.split("/")
            # `seconds/sample` is a phase even when an objective is called `sample`.
            owned = bool(rest) and head != "seconds" and rest[0] in labels
            yield {
                "step": step,
                "metric": "/".join([head, *rest[1:]]) if owned else key,
                "objective": rest[0] if owned else None,
                "value": _number(value, run, key),
            }
    for row in _probe_rows(folder, run, config):
        place = {"step": row["step"], "layer": row["layer"]}
        for key in ("norm", "net_synergy"):
            for label in row["objectives"]:
                yield place | {"metric": f"probe/{key}", "objective": label, "value": row[key][label]}
        for key in ("conflict_fraction", "n_undefined_pairs"):
            yield place | {"metric": f"probe/{key}", "value": row[key]}
    yield from _covariance_rows(folder, run, config)


def _covariance_rows(folder: Path, run: str, config: Row) -> Iterable[Row]:
    """Each reward's covariance with the advantage that trained: the weights of the step, else those configured."""
    if not config["probe"]["every"]:
        return
    logged = {row["step"]: row for row in read(folder, run, "metrics.jsonl")}
    for saved in saved_grams(folder / "runs" / run, enabled(config)):
        weights = [
            logged.get(saved.step, {}).get(f"weight/{k}", config["objectives"][k]["weight"]) for k in saved.objectives
        ]
        found = advantage_covariance(saved.rewards_BK, saved.group_B, saved.advantages_BK @ np.array(weights, float))
        for name, values_K in zip(("covariance", "correlation"), found, strict=True):
            for label, value in zip(saved.objectives, values_K.tolist(), strict=True):
                value = None if np.isnan(value) else value
                yield {"step": saved.step, "metric": f"probe/advantage_{name}", "objective": label, "value": value}


def _number(value: Any, run: str, key: str) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"run {run}: metrics.jsonl: {key}: expected a number or null; found {value!r}")
    return value


def enabled(config: Row) -> list[str]:
    """Labels of axis K."""
    return sorted(k for k, objective in config["objectives"].items() if objective["enabled"])


def _probe_rows(folder: Path, run: str, config: Row) -> list[Row]:
    """Rows of the probe; none where the run asked for none."""
    return read(folder, run, "probe/probe.jsonl") if config["probe"]["every"] else []


def _cosine_rows(folder: Path, run: str, config: Row) -> Iterable[Row]:
    for row in _probe_rows(folder, run, config):
        labels = row["objectives"]
        for i, first in enumerate(labels):
            for j in range(i + 1, len(labels)):
                yield {key: row[key] for key in ("step", "scope", "space", "layer", "n_rows")} | {
                    "objective_i": first,
                    "objective_j": labels[j],
                    "cosine": row["cosine"][i][j],
                    "norm_i": row["norm"][first],
                    "norm_j": row["norm"][labels[j]],
                }


def _eval_rows(folder: Path, run: str, config: Row) -> Iterable[Row]:
    found = read(folder, run, "eval.json")
    for label, estimates in found["objectives"].items():
        for model, estimate in estimates.items():
            outcomes = found["outcomes"].get(model, {}).get(label) or {}
            row = {"measure": "reward", "objective": label, "model": model}
            yield row | {key: (estimate or {}).get(key) for key in ("mean", "low", "high", "n")} | outcomes
    for model, diversity in found["diversity"].items():
        for key, value in diversity.items():
            if key in ("n", "reasons"):
                continue
            note = "; ".join(diversity["reasons"]) if key == "degenerate" else None
            value = None if value is None else float(value)
            yield {"measure": key, "model": model, "mean": value, "n": diversity["n"], "note": note}
    for key in ("completion_tokens_mean", "ended_fraction"):
        for model, value in found[key].items():
            yield {"measure": key, "model": model, "mean": value, "n": found["n_samples"]}


def _sample_rows(folder: Path, run: str, config: Row) -> Iterable[Row]:
    by_step: dict[int, list[Row]] = {}
    for row in read(folder, run, "samples.jsonl"):
        by_step.setdefault(row["step"], []).append(row)
    kept = [row for _, rows in thin(sorted(by_step.items()), SAMPLE_STEPS) for row in thin(rows, SAMPLE_ROWS)]
    by_model: dict[str, list[Row]] = {}
    for row in read(folder, run, "eval_samples.jsonl"):
        by_model.setdefault(row["model"], []).append(row)
    kept += [row for rows in by_model.values() for row in thin(rows, HELDOUT_ROWS)]
    for row in kept:
        columns = {"source": row.get("model", "train")} | {
            key: row[key] for key in ("row", "example", "task", "prompt", "completion", "ended", "completion_tokens")
        }
        scores = {
            f"{name}/{label}": value
            for key, (name, _) in PER_OBJECTIVE_SAMPLE.items()
            for label, value in row.get(key, {}).items()
        }
        yield columns | {"step": row.get("step")} | scores


BUILDERS = {"metrics": _metric_rows, "cosines": _cosine_rows, "evals": _eval_rows, "samples": _sample_rows}
