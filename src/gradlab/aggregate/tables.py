"""Rows of all runs to Parquet, with each run's parameters as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradlab.aggregate.columns import COLUMNS, PER_OBJECTIVE_SAMPLE, Column
from gradlab.aggregate.rows import BUILDERS, Row, read
from gradlab.store import atomic, read_json


def aggregate(results: str | Path, sweep: str, runs: Sequence[str] | None = None) -> dict[str, Path]:
    """Write `results/<sweep>/{metrics,cosines,evals,samples}.parquet`; returns their paths.

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
        columns = COLUMNS[name] + (_sample_columns(configs.values()) if name == "samples" else ())
        schema = pa.schema([pa.field(c.name, c.type, metadata={"doc": c.doc}) for c in columns])
        tables = [_table(rows_of_run, folder, run, configs[run], schema, parameters[run]) for run in runs]
        paths[name] = folder / f"{name}.parquet"
        with atomic(paths[name]) as temporary:
            pq.write_table(pa.concat_tables(tables), temporary)
    return paths


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
