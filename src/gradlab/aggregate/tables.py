"""Rows of all runs to Parquet, with each run's parameters as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradlab.aggregate.columns import COLUMNS, PER_OBJECTIVE_SAMPLE, Column
from gradlab.aggregate.pairs import statistics
from gradlab.aggregate.rows import BUILDERS, Row, read
from gradlab.store import atomic, read_json


def aggregate(results: str | Path, sweep: str, runs: Sequence[str] | None = None) -> dict[str, Path]:
    """Write `results/<sweep>/{metrics,cosines,evals,samples,pairs,conflict}.parquet`; returns their paths.

    `runs`: ids of the sweep's current runs (default: those of `sweep.json`). Other run folders, left
    from an older version of the sweep, are not read. Raises ValueError naming run and file when a
    file is missing or is not what docs/ARCHITECTURE.md describes.
    """
    folder = Path(results) / sweep
    if runs is None:
        runs = [run["run"] for run in read_json(folder / "sweep.json")["runs"]]
    if not runs or len(set(runs)) != len(runs):
        raise ValueError(f"sweep {sweep!r}: expected one or more different runs; found {list(runs)}")
    configs = {run: read(folder, run, "config.json") for run in runs}
    parameters = _parameter_columns({run: flatten(config) for run, config in configs.items()})
    paths = {}
    for name, rows_of_run in BUILDERS.items():
        schema = _schema(COLUMNS[name] + (_sample_columns(configs.values()) if name == "samples" else ()))
        tables = [_table(rows_of_run, folder, run, configs[run], schema, parameters[run]) for run in runs]
        paths[name] = _write(folder / f"{name}.parquet", pa.concat_tables(tables))
    for name, rows in zip(("pairs", "conflict"), statistics(folder, configs), strict=True):
        paths[name] = _write(folder / f"{name}.parquet", _pooled_table(rows, _schema(COLUMNS[name]), parameters))
    return paths


def _schema(columns: Iterable[Column]) -> pa.Schema:
    return pa.schema([pa.field(c.name, c.type, metadata={"doc": c.doc}) for c in columns])


def _write(path: Path, table: pa.Table) -> Path:
    with atomic(path) as temporary:
        pq.write_table(table, temporary)
    return path


def _pooled_table(rows: Sequence[Row], schema: pa.Schema, parameters: dict[str, list[tuple]]) -> pa.Table:
    """Parameters are those of the row's run, or of the group's first run without what its runs do not share."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    values = {run: {key: value for key, value, _ in found} for run, found in parameters.items()}
    for key, _, kind in next(iter(parameters.values())):
        own = [
            None if key == "seed" and row["n_runs"] > 1 else values[row["run"] or row["first_run"]][key] for row in rows
        ]
        table = table.append_column(pa.field(key, kind), pa.array(own, kind))
    return table


def flatten(config: Row, prefix: str = "") -> Row:
    """Nested config to dotted keys. Lists and empty mappings have no column and are left out."""
    flat: Row = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            flat[prefix + key] = value
    return flat


def _table(
    rows_of_run: Callable, folder: Path, run: str, config: Row, schema: pa.Schema, parameters: list[tuple]
) -> pa.Table:
    try:
        rows = [{"run": run} | row for row in rows_of_run(folder, run, config)]
        table = pa.Table.from_pylist(rows, schema=schema)
    except (KeyError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"run {run}: expected files as docs/ARCHITECTURE.md describes; found {what} in {folder / 'runs' / run}. "
            "Make the run again."
        ) from error
    for key, value, kind in parameters:
        table = table.append_column(pa.field(key, kind), pa.repeat(pa.scalar(value, kind), len(table)))
    return table


def _sample_columns(configs: Iterable[Row]) -> tuple[Column, ...]:
    labels = sorted({k for config in configs for k, objective in config["objectives"].items() if objective["enabled"]})
    return tuple(
        Column(f"{name}/{label}", kind, f"{name} of {label}; null where it does not apply.")
        for name, kind in PER_OBJECTIVE_SAMPLE.values()
        for label in labels
    )


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
