"""One sweep file to its runs. No torch: a dry run is fast."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.config import BaseConfig, RunConfig
from gradlab.explain import validate
from gradlab.identity import run_id, specification, varying
from gradlab.registry import unknown
from gradlab.requirements import check_installed
from gradlab.sweep_file import SweepConfig, check_keys, nest, override, read_yaml


@dataclass(frozen=True)
class Run:
    """One point of a sweep. `varies`: its values of the keys that the sweep mentions in grid or variants."""

    id: str
    config: RunConfig
    varies: dict[str, Any]
    spec: str

    @property
    def base(self) -> str | None:
        """Name of the model made here that it starts from; None for a path or a hub id."""
        return _base_name(self.config)


@dataclass(frozen=True)
class Sweep:
    name: str
    config: SweepConfig
    runs: dict[str, Run]

    def __getitem__(self, run: str) -> Run:
        if run not in self.runs:
            raise ValueError(f"sweep {self.name}: {unknown('run', run, list(self.runs))}")
        return self.runs[run]

    def table(self) -> dict[str, Any]:
        """Content of `results/<sweep>/sweep.json`, which aggregation and the report read."""
        return {
            "name": self.name,
            "title": self.config.title or self.name,
            "description": self.config.description,
            "runs": [{"run": run.id, "varies": run.varies} for run in self.runs.values()],
        }


def load(
    name: str, fixed: Mapping[str, Any] | None = None, grid: Mapping[str, Any] | None = None, folder: str = "config"
) -> Sweep:
    """The sweep of `<folder>/sweeps/<name>.yaml`, its values replaced by `fixed` and `grid`.

    Raises ValueError naming the file and each wrong parameter.
    """
    path = Path(folder) / "sweeps" / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(unknown("sweeps", name, sorted(p.stem for p in path.parent.glob("*.yaml"))))
    try:
        check_name(name)
        sweep = override(validate(SweepConfig, read_yaml(path)), fixed or {}, grid or {})
        return Sweep(name, sweep, {run.id: run for run in expand(sweep, Path(folder) / "bases")})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_name(name: str) -> None:
    """Raises ValueError for what no sweep may be called: it is a folder, and part of a wildcard."""
    if name == "base" or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(
            f"name of a sweep: expected letters, digits, _ and -, and not `base`, which holds models; found {name!r}. "
            "Rename it."
        )


def load_base(name: str, base_dir: str | Path = "config/bases") -> BaseConfig:
    """The model made here that `base/<name>` means. Raises ValueError naming file and each wrong parameter."""
    path = Path(base_dir) / f"{name}.yaml"
    if not path.is_file():
        known = sorted(f"base/{p.stem}" for p in path.parent.glob("*.yaml"))
        raise ValueError(f"{unknown('model.id', f'base/{name}', known)} Or write {path}.")
    try:
        base = validate(BaseConfig, read_yaml(path))
        _check_files("corpus", base.corpus)
        return base
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def expand(sweep: SweepConfig, base_dir: str | Path = "config/bases") -> list[Run]:
    """Every run, validated: variants, then the grid's Cartesian product, in the order of the file.

    Raises ValueError naming parameter, expected, found and mend.
    """
    check_keys(sweep)
    base_of = functools.cache(lambda name: load_base(name, base_dir))  # thousands of runs share a few files
    mentioned = {*sweep.grid, *(key for values in sweep.variants.values() for key in values)}
    runs: dict[str, Run] = {}
    for variant, values in sweep.variants.items() or [("", {})]:
        for point in itertools.product(*sweep.grid.values()):
            chosen = {**values, **dict(zip(sweep.grid, point, strict=True))}
            try:
                config = validate(RunConfig, nest({**sweep.fixed, **chosen}))
                spec = _check(config, base_of)
            except ValueError as error:
                where = ", ".join([variant] * bool(variant) + [f"{key}={value}" for key, value in chosen.items()])
                raise ValueError(f"{error} (at {where})" if where else str(error)) from None
            varies = ({"variant": variant} if variant else {}) | varying(config, mentioned)
            run = Run(run_id(config, variant, varies, spec), config, varies, spec)
            if spec in runs:
                raise ValueError(
                    f"grid: expected points that differ in what is trained; found {runs[spec].id} and {run.id}, "
                    "which are the same run. Remove one value."
                )
            runs[spec] = run
    return list(runs.values())


def _base_name(config: RunConfig) -> str | None:
    return config.model.id.removeprefix("base/") if config.model.id.startswith("base/") else None


def _check(config: RunConfig, base_of: Callable[[str], BaseConfig]) -> str:
    """The specification of a run whose objectives, base, files and weighting's packages all exist."""
    check_installed(config)
    for key in ("train", "heldout"):
        _check_files(f"data.{key}", getattr(config.data, key))
    model = config.model.id
    if model.startswith(("./", "../", "/")) and not Path(model).is_dir():
        raise ValueError(f"model.id: expected a folder; found nothing at {model!r}. Check the path.")
    base = _base_name(config)
    return specification(config, base_of(base) if base else None)


def _check_files(key: str, paths: tuple[str, ...]) -> None:
    for path in paths:
        if not Path(path).is_file():
            known = sorted(str(p) for p in Path(path).parent.glob("*.jsonl"))
            raise ValueError(unknown(key, path, known) if known else f"{key}: expected a file; found no {path!r}.")
