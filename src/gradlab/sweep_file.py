"""The two files a user writes of sweeps, config/config.yaml and config/sweeps/<sweep>.yaml, as typed values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator

from gradlab.config import Frozen, RunConfig
from gradlab.explain import unknown_key, validate

Pack = Annotated[int, Field(ge=1)] | Literal["auto"]


class SweepConfig(Frozen):
    """config/sweeps/<sweep>.yaml."""

    title: str = ""
    """Heading of the report. Empty: the sweep's name."""
    description: str = ""
    """What the sweep asks, shown under the heading."""
    fixed: dict[str, Any] = {}
    """Values of all runs, as dotted keys (`optimizer.lr: 3e-4`) or nested mappings."""
    grid: dict[str, list[Any]] = {}
    """Dotted key to the list of its values; the runs are the Cartesian product."""
    variants: dict[str, dict[str, Any]] = {}
    """Name to the values that make it; multiplied with the grid. A variant's value replaces a fixed one."""
    pack: Pack = 1
    """Most runs that train together in one process, 1: each alone, or `auto` (docs/scaling.md). Changes no result."""

    @field_validator("fixed")
    @classmethod
    def _flat_fixed(cls, fixed: dict[str, Any]) -> dict[str, Any]:
        return _flat(fixed)

    @field_validator("variants")
    @classmethod
    def _flat_variants(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: _flat(values) for name, values in variants.items()}

    @field_validator("grid", mode="before")
    @classmethod
    def _lists(cls, grid: Any) -> Any:
        """Raises ValueError for an axis that is not a list of plain values, before pydantic says less."""
        for key, values in grid.items() if isinstance(grid, dict) else ():
            if not isinstance(values, list) or not values:
                mend = f"Did you mean [{values}]?" if values not in (None, []) else "Give it values or remove it."
                raise ValueError(f"{key}: expected a list of at least one value; found {values!r}. {mend}")
            if any(isinstance(value, dict) for value in values):
                raise ValueError(f"{key}: expected plain values; found a mapping. Values that go together: `variants`.")
        return grid


class WorkflowConfig(Frozen):
    """config/config.yaml, with what `snakemake --config` replaces of it."""

    sweeps: tuple[str, ...]
    """Sweeps to make: names of files in config/sweeps, without .yaml. `--config sweeps=a,b` names several."""
    results: str = "results"
    """Folder of all results."""
    fixed: dict[str, Any] = {}
    """Replaces values of every sweep above; an axis of a grid is narrowed to this one value."""
    grid: dict[str, Any] = {}
    """Replaces axes of every sweep above, or adds them."""
    pack: Pack | None = None
    """Replaces `pack` of every sweep above. None: as the sweep says."""
    gpu_slot_gib: float | None = Field(None, gt=0)
    """GPU memory of one slot, in GiB. None: a GPU's memory over the slots it offers; 4 where jobs run on a cluster."""

    @field_validator("sweeps", mode="before")
    @classmethod
    def _names(cls, sweeps: Any) -> Any:
        return [name.strip() for name in sweeps.split(",")] if isinstance(sweeps, str) else sweeps

    @field_validator("results")
    @classmethod
    def _folder(cls, results: str) -> str:
        """One spelling of one folder, since Snakemake knows files by their names: `./mine/` is `mine`."""
        if not re.fullmatch(r"[\w./@+=,:][\w./@+=,:-]*", results):  # it stands in shell commands and file patterns
            raise ValueError(
                f"expected a path of letters, digits and . / _ - @ + = , : only; found {results!r}. Choose another, "
                "or make a link."
            )
        return str(Path(results))

    @field_validator("fixed", "grid", mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:
        """Snakemake's --config hands over every nested value as a string, an empty mapping as None."""
        return {} if values is None else _from_strings(values)


def check_keys(sweep: SweepConfig) -> None:
    """Raises ValueError with every key that does not exist or is given twice."""
    lines = []
    for variant, values in sweep.variants.items():
        if not re.fullmatch(r"[A-Za-z0-9.-]+", variant):
            lines.append(f"variants: expected a name of letters, digits, . and -; found {variant!r}. Rename it.")
        lines += [f"variants.{variant}.{m}" for key in values if (m := unknown_key(key, RunConfig))]
        for key in sweep.grid.keys() & values.keys():
            lines.append(f"{key}: expected in grid or in a variant; found in both (variant {variant}). Remove one.")
    for part, keys in (("fixed", sweep.fixed), ("grid", sweep.grid)):
        lines += [f"{part}.{message}" for key in keys if (message := unknown_key(key, RunConfig))]
    for key in sweep.grid.keys() & sweep.fixed.keys():
        lines.append(f"{key}: expected in fixed or in grid; found in both. Remove one.")
    if lines:
        raise ValueError("\n".join(sorted(lines)))


def override(sweep: SweepConfig, fixed: Mapping[str, Any], grid: Mapping[str, Any]) -> SweepConfig:
    """The sweep with values replaced; an axis or a variant's value yields to `fixed`, so that it wins everywhere."""
    fixed = _flat(fixed)
    axes = {**sweep.grid, **grid}
    axes |= {key: [value] for key, value in fixed.items() if key in axes}
    chosen = {**sweep.fixed, **fixed}
    replaced = {
        "fixed": {key: value for key, value in chosen.items() if key not in {*grid, *(fixed.keys() & axes.keys())}},
        "grid": axes,
        "variants": {
            name: {key: fixed.get(key, value) for key, value in values.items()}
            for name, values in sweep.variants.items()
        },
    }
    return validate(SweepConfig, sweep.model_dump() | replaced)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested mappings. An empty mapping is a value: `objectives.brevity: {}`."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError for a key that is given both dotted and nested."""
    flat: dict[str, Any] = {}
    for key, value in flatten(values):
        if key in flat:
            raise ValueError(f"{key}: expected once; found {flat[key]!r} and {value!r}. Remove one.")
        flat[key] = value
    return flat


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings of dotted keys. Raises ValueError where a key is both a value and a mapping."""
    tree: dict[str, Any] = {}
    for key, value in sorted(values.items()):  # `objectives.brevity: {}` before `objectives.brevity.weight`
        *parents, last = key.split(".")
        node = tree
        for depth, part in enumerate(parents, start=1):
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                whole = ".".join(parents[:depth])
                raise ValueError(f"{whole}: expected a mapping, since {key} is set; found {node!r}. Remove one.")
        node[last] = {} if value == {} else value
    return tree


class _Loader(yaml.SafeLoader):
    """YAML without the silent loss of a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML mapping. Raises ValueError naming line and reason."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML; found {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a mapping of keys to values; found {values!r}. See config/README.md.")
    return values


def _from_strings(value: Any) -> Any:
    """Lists, mappings and null inside strings; numbers stay strings, which the typed models read."""
    if isinstance(value, str) and (value.startswith(("[", "{")) or value == "null"):
        try:
            value = yaml.load(value, Loader=yaml.BaseLoader) if value != "null" else None
        except yaml.YAMLError as error:
            raise ValueError(f"expected JSON or YAML; found {value!r}, {' '.join(str(error).split())}") from None
    if isinstance(value, dict):
        return {key: _from_strings(item) for key, item in value.items()}
    return [_from_strings(item) for item in value] if isinstance(value, list) else value
