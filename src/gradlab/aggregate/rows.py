"""The files of one run to the rows of each table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from gradlab.aggregate.columns import HELDOUT_ROWS, SAMPLE_ROWS, SAMPLE_STEPS
from gradlab.aggregate.files import Row, RunFiles
from gradlab.grams import SavedGram, advantage_covariance

T = TypeVar("T")


def thin(rows: Sequence[T], keep: int) -> list[T]:
    """At most `keep` rows, evenly spaced, the first and the last among them. No randomness."""
    if len(rows) <= keep:
        return list(rows)
    return [rows[i] for i in np.linspace(0, len(rows) - 1, keep).round().astype(int)]


def _run_rows(files: RunFiles) -> Iterable[Row]:
    outcome, last = files.outcome, files.metrics[-max(1, files.outcome.steps // 10) :]
    seconds = [row["seconds/step"] for row in files.metrics if row["seconds/step"] is not None]
    row: Row = {
        "status": outcome.status,
        "steps_done": outcome.steps_done,
        "reason": outcome.reason,
        "seconds": sum(seconds) if seconds else None,
        "seconds/step": sum(seconds) / len(seconds) if seconds else None,
    }
    if outcome.finished:
        row["n_last_steps"] = len(last)
        for key in ("reward_mean", *(f"reward_mean/{k}" for k in files.objectives)):
            defined = [step[key] for step in last if step[key] is not None]
            row[key] = sum(defined) / len(defined) if defined else None
    yield row


def _metric_rows(files: RunFiles) -> Iterable[Row]:
    labels = files.config["objectives"]
    for row in files.metrics:
        for key, value in row.items():
            if key == "step":
                continue
            head, *rest = key.split("/")
            # `seconds/sample` is a phase even when an objective is called `sample`.
            owned = bool(rest) and head != "seconds" and rest[0] in labels
            yield {
                "step": row["step"],
                "metric": "/".join([head, *rest[1:]]) if owned else key,
                "objective": rest[0] if owned else None,
                "value": _number(value, files.run, key),
            }
    for row in files.probes:
        place = {"step": row["step"], "layer": row["layer"]}
        for key in ("norm", "net_synergy"):
            for label in row["objectives"]:
                yield place | {"metric": f"probe/{key}", "objective": label, "value": row[key][label]}
        for key in ("conflict_fraction", "n_undefined_pairs"):
            yield place | {"metric": f"probe/{key}", "value": row[key]}


def covariance_rows(files: RunFiles, saved: SavedGram) -> Iterable[Row]:
    """Rows of `metrics`: each reward's covariance with the advantage that trained, by the weights of the step."""
    logged = files.metrics_at.get(saved.step, {})
    configured = files.config["objectives"]
    weights = [logged.get(f"weight/{k}", configured[k]["weight"]) for k in saved.objectives]
    found = advantage_covariance(saved.rewards_BK, saved.group_B, saved.advantages_BK @ np.array(weights, float))
    for name, values_K in zip(("covariance", "correlation"), found, strict=True):
        for label, value in zip(saved.objectives, values_K.tolist(), strict=True):
            value = None if np.isnan(value) else value
            yield {"step": saved.step, "metric": f"probe/advantage_{name}", "objective": label, "value": value}


def _number(value: Any, run: str, key: str) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"run {run}: metrics.jsonl: {key}: expected a number or null; found {value!r}")
    return value


def _cosine_rows(files: RunFiles) -> Iterable[Row]:
    for row in files.probes:
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


def _eval_rows(files: RunFiles) -> Iterable[Row]:
    found = files.evaluation
    if found is None:
        return
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


def _sample_rows(files: RunFiles) -> Iterable[Row]:
    by_step: dict[int, list[Row]] = {}
    for row in files.samples:
        by_step.setdefault(row["step"], []).append(row)
    kept = [row for _, rows in thin(sorted(by_step.items()), SAMPLE_STEPS) for row in thin(rows, SAMPLE_ROWS)]
    by_model: dict[str, list[Row]] = {}
    for row in files.heldout_samples:
        by_model.setdefault(row["model"], []).append(row)
    kept += [row for rows in by_model.values() for row in thin(rows, HELDOUT_ROWS)]
    for row in kept:
        columns = {"source": row.get("model", "train")} | {
            key: row[key] for key in ("row", "example", "task", "prompt", "completion", "ended", "completion_tokens")
        }
        scores = {
            f"{name}/{label}": value
            for name in ("reward", "outcome", "advantage")
            for label, value in row.get(f"{name}s", {}).items()
        }
        yield columns | {"step": row.get("step")} | scores


BUILDERS = {
    "runs": _run_rows,
    "metrics": _metric_rows,
    "cosines": _cosine_rows,
    "evals": _eval_rows,
    "samples": _sample_rows,
}
