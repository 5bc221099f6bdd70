"""The files of one run, each read once. A run that diverged may lack rows, but not a file that says why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradlab.grams import SavedGram, saved_grams
from gradlab.outcome import RunOutcome, read_config, read_outcome
from gradlab.store import read_json, read_jsonl

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """`config` is the resolved configuration as JSON values. Reading raises ValueError naming run and file."""

    run: str
    folder: Path
    config: Row
    outcome: RunOutcome

    @property
    def objectives(self) -> list[str]:
        """Labels of axis K."""
        return enabled(self.config)

    @cached_property
    def metrics(self) -> list[Row]:
        """Rows of metrics.jsonl. Raises ValueError unless steps rise, and all are there when the run finished."""
        rows, previous = self._rows("metrics.jsonl"), -1
        for row in rows:
            if row["step"] <= previous:
                raise ValueError(
                    f"run {self.run}: metrics.jsonl: expected steps that rise; found {row['step']} after {previous}"
                )
            previous = row["step"]
        if self.outcome.finished and len(rows) != self.outcome.steps:
            raise ValueError(
                f"run {self.run}: metrics.jsonl: expected a row for each of {self.outcome.steps} steps; found "
                f"{len(rows)}. Make the run again."
            )
        return rows

    @cached_property
    def metrics_at(self) -> dict[int, Row]:
        """Row of metrics.jsonl by step."""
        return {row["step"]: row for row in self.metrics}

    @property
    def samples(self) -> list[Row]:
        return self._rows("samples.jsonl")

    @property
    def heldout_samples(self) -> list[Row]:
        return self._rows("eval_samples.jsonl")

    @cached_property
    def probes(self) -> list[Row]:
        """Rows of probe.jsonl; none where the run asked for none."""
        return self._rows("probe/probe.jsonl") if self.config["probe"]["every"] else []

    def grams(self) -> Iterator[SavedGram]:
        """What the probe saved, a step at a time: the Grams of large batches would not fit in memory at once."""
        if self.config["probe"]["every"] and (self.outcome.finished or self.probes):
            yield from saved_grams(self.folder, self.objectives)

    @property
    def evaluation(self) -> Row | None:
        """Content of eval.json; None of a run that diverged."""
        if not self.outcome.finished:
            return None
        found = read_json(self._path("eval.json"))
        if "failed" in found:
            raise ValueError(
                f"run {self.run}: eval.json: expected the evaluation of a finished run; found that of one that failed "
                f"({found['failed']}). Make it again: `snakemake --cores all --force -- {self.folder / 'eval.json'}`."
            )
        return found

    def _path(self, file: str) -> Path:
        path = self.folder / file
        if not path.exists():
            raise ValueError(
                f"run {self.run}: expected the file {path}; found none. Make it: `snakemake --cores all -- {path}`."
            )
        return path

    def _rows(self, file: str) -> list[Row]:
        if not self.outcome.finished:
            path = self.folder / file
            if not path.exists() or not path.stat().st_size:
                return []
        return read_jsonl(self._path(file))


def run_files(folder: Path, run: str) -> RunFiles:
    """The files of `folder/runs/<run>`. Raises ValueError when another version wrote them."""
    where = folder / "runs" / run
    config, outcome = read_config(where), read_outcome(where)
    if outcome.steps != config.steps:
        raise ValueError(
            f"run {run}: expected the {config.steps} steps of config.json in outcome.json; found {outcome.steps}. The "
            "two files are of different runs: make the run again."
        )
    return RunFiles(run, where, config.model_dump(mode="json"), outcome)


def enabled(config: Row) -> list[str]:
    """Labels of axis K."""
    return sorted(k for k, objective in config["objectives"].items() if objective["enabled"])
