"""Rows of all runs to Parquet, with each run's parameters as columns; one run in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradlab.aggregate.columns import COLUMNS, Column, columns_of
from gradlab.aggregate.files import Row, RunFiles, run_files
from gradlab.aggregate.pairs import Group, groups_of
from gradlab.aggregate.rows import BUILDERS
from gradlab.store import atomic, read_json

ROW_GROUP = 50_000
"""Rows at which a group of rows is written: small in memory, and few groups in the largest file."""


def aggregate(results: str | Path, sweep: str, runs: Sequence[str] | None = None) -> dict[str, Path]:
    """Write `results/<sweep>/<table>.parquet` for each table of docs/DATA.md; returns their paths.

    `runs`: ids of the sweep's current runs (default: those of `sweep.json`). Other run folders, left
    from an older version of the sweep, are not read. Raises ValueError naming run and file when a
    file is missing or is not what docs/ARCHITECTURE.md describes.
    """
    folder = Path(results) / sweep
    if runs is None:
        runs = [run["run"] for run in read_json(folder / "sweep.json")["runs"]]
    if not runs or len(set(runs)) != len(runs):
        raise ValueError(f"sweep {sweep!r}: expected one or more different runs; found {list(runs)}")
    found = {run: run_files(folder, run) for run in runs}
    objectives = sorted({label for files in found.values() for label in files.objectives})
    parameters = _parameter_columns({run: flatten(files.config) for run, files in found.items()})
    with ExitStack() as stack:
        tables = {
            name: stack.enter_context(_Table(folder / f"{name}.parquet", columns_of(name, objectives), parameters))
            for name in COLUMNS
        }
        for members in groups_of({run: files.config for run, files in found.items()}):
            group = Group(tuple(run for run in members if found[run].outcome.finished))
            for run in members:
                _add_run(tables, replace(found[run]), group)  # a copy: what it reads is forgotten with it
            for name, rows in group.pooled().items():
                tables[name].add(rows)
    return {name: table.path for name, table in tables.items()}


def _add_run(tables: dict[str, _Table], files: RunFiles, group: Group) -> None:
    try:
        for name, rows_of_run in BUILDERS.items():
            tables[name].add({"run": files.run} | row for row in rows_of_run(files))
        for name, rows in group.add(files).items():
            tables[name].add(rows)
    except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"run {files.run}: expected files as docs/ARCHITECTURE.md describes; found {what} in {files.folder}. "
            "Make the run again."
        ) from error


class _Table:
    """A Parquet file that grows by groups of rows and appears whole, or not at all."""

    def __init__(self, path: Path, columns: Iterable[Column], parameters: dict[str, list[tuple]]) -> None:
        self.path, self._parameters = path, parameters
        self._own = pa.schema([pa.field(c.name, c.type, metadata={"doc": c.doc}) for c in columns])
        shared = next(iter(parameters.values()))
        self._schema = pa.schema([*self._own, *(pa.field(key, kind) for key, _, kind in shared)])
        self._waiting: list[tuple[pa.Table, str, bool]] = []
        self._stack = ExitStack()

    def __enter__(self) -> _Table:
        temporary = self._stack.enter_context(atomic(self.path))
        self._writer = self._stack.enter_context(pq.ParquetWriter(temporary, self._schema))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._write()
        self._stack.__exit__(kind, error, trace)

    def add(self, rows: Iterable[Row]) -> None:
        """Rows of one run, or of one group: their `run`, else their `first_run`, says whose parameters stand beside."""
        rows = list(rows)
        if not rows:
            return
        first = rows[0]
        pooled = first.get("n_runs", 1) > 1
        self._waiting.append((pa.Table.from_pylist(rows, schema=self._own), first["run"] or first["first_run"], pooled))
        if sum(len(table) for table, _, _ in self._waiting) >= ROW_GROUP:
            self._write()

    def _write(self) -> None:
        """The rows that wait as a group of rows, with their runs' parameters; the seed of several runs is null."""
        if not self._waiting:
            return
        tables, runs, pooled = zip(*self._waiting, strict=True)
        table = pa.concat_tables(tables).combine_chunks()
        part_N = pa.array(np.repeat(np.arange(len(tables)), [len(table) for table in tables]))
        for i, (key, _, kind) in enumerate(self._parameters[runs[0]]):
            values = [self._parameters[run][i][1] for run in runs]
            if key == "seed":
                values = [None if several else value for value, several in zip(values, pooled, strict=True)]
            table = table.append_column(pa.field(key, kind), pa.array(values, kind).take(part_N))
        self._writer.write_table(table)
        self._waiting = []


def flatten(config: Row, prefix: str = "") -> Row:
    """Nested config to dotted keys. Lists and empty mappings have no column and are left out."""
    flat: Row = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            flat[prefix + key] = value
    return flat


def _parameter_columns(flat: dict[str, Row]) -> dict[str, list[tuple]]:
    """For every run the same columns (key, value, type); a parameter that a run lacks is null there."""
    keys = sorted({key for parameters in flat.values() for key in parameters})
    types = {key: _common_type(parameters.get(key) for parameters in flat.values()) for key in keys}
    return {
        run: [(key, _cast(parameters.get(key), types[key]), types[key]) for key in keys]
        for run, parameters in flat.items()
    }


def _common_type(values: Iterable[Any]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    for wide, allowed in ((pa.bool_(), {bool}), (pa.int64(), {int}), (pa.float64(), {int, float})):
        if kinds and kinds <= allowed:
            return wide
    return pa.string()


def _cast(value: Any, kind: pa.DataType) -> Any:
    return str(value) if value is not None and kind == pa.string() else value
