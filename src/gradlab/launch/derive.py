"""A sweep made from another by replacing values, as a file that Snakemake can make without whoever wrote it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gradlab.explain import validate
from gradlab.launch.assignments import read_assignments
from gradlab.registry import unknown
from gradlab.store import digest, write_text
from gradlab.sweep import Sweep, check_name, expand, load
from gradlab.sweep_file import SweepConfig, override, read_yaml


def derive(
    base: str,
    grid: Sequence[str] = (),
    fixed: Sequence[str] = (),
    variants: Sequence[str] = (),
    name: str | None = None,
    pack: int | str | None = None,
    folder: str = "config",
) -> Sweep:
    """The sweep `base` with axes and values replaced by `key=value` texts, every run validated.

    variants  which of the base's variants to keep; none named: all
    name      of the new sweep. None: the base's, and a digest of the changes where there are any
    pack      placement only: changes neither the name nor what a file of that name must contain

    Raises ValueError naming option, expected, found and mend.
    """
    old = load(base, folder=folder)
    labels = sorted({label for run in old.runs.values() for label in run.config.objectives})
    axes = read_assignments("--grid", grid, labels)
    values = {key: _one(key, found) for key, found in read_assignments("--fixed", fixed, labels).items()}
    if both := sorted(axes.keys() & values.keys()):
        raise ValueError(f"{both[0]}: expected in --grid or in --fixed; found in both. Remove one.")
    for variant in variants:
        if variant not in old.config.variants:
            raise ValueError(unknown("--variants", variant, list(old.config.variants)))
    changes = {"grid": axes, "fixed": values} | ({"variants": sorted(variants)} if variants else {})
    texts = [*grid, *fixed, *variants]
    name = name if name is not None else f"{base}_{digest(changes)}" if texts else base
    check_name(name)
    config = old.config
    if name != base or texts:
        kept = {key: value for key, value in config.variants.items() if key in variants or not variants}
        # Two sweeps of one heading could not be told apart in the list of all.
        title = f"{config.title or base}: {', '.join(texts) or name}"
        config = override(config.model_copy(update={"variants": kept, "title": title}), values, axes)
    if pack is not None:
        config = validate(SweepConfig, config.model_dump() | {"pack": pack})
    return expanded(name, config, folder)


def expanded(name: str, config: SweepConfig, folder: str = "config") -> Sweep:
    """Every run of the sweep, validated, whether or not its file exists."""
    return Sweep(name, config, {run.id: run for run in expand(config, Path(folder) / "bases")})


def write(sweep: Sweep, command: Sequence[str], folder: str = "config") -> Path:
    """config/sweeps/<name>.yaml. One with the same runs stands as it is; raises ValueError where it has others."""
    path = Path(folder) / "sweeps" / f"{sweep.name}.yaml"
    if path.is_file():
        found = validate(SweepConfig, read_yaml(path))
        if different := _differences(found, sweep.config):
            raise ValueError(
                f"{path}: expected the sweep of this command, or no file; found another one, which differs in "
                f"{', '.join(different)}. Choose another --name, or remove the file."
            )
        return path
    head = (
        f"# Written by: {shlex.join(command)}\n"
        f"# Make it or continue it: snakemake --cores all --config sweeps={sweep.name}\n"
    )
    parts = sweep.config.model_dump(exclude_defaults=True)
    write_text(
        path, head + yaml.safe_dump(parts, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    )
    return path


def _one(key: str, values: Sequence[Any]) -> Any:
    if len(values) != 1:
        raise ValueError(
            f"--fixed {key}: expected one value; found {len(values)}, {values}. Several values to try: --grid. "
            f"One value that is a list: {key}=[...]."
        )
    return values[0]


def _differences(one: SweepConfig, other: SweepConfig) -> list[str]:
    """Keys whose values differ, of those that make runs."""
    keys: list[str] = []
    for part in ("fixed", "grid", "variants"):
        left: Mapping[str, Any] = getattr(one, part)
        right: Mapping[str, Any] = getattr(other, part)
        keys += [f"{part}.{key}" for key in sorted({*left, *right}) if left.get(key) != right.get(key)]
    return keys
