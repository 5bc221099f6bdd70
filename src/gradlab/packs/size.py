"""How many runs of a shape share a process: what was asked, what was measured here, or a rule of thumb. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.config import BaseConfig
from gradlab.gpu.devices import Gpu
from gradlab.gpu.shapes import shape_of
from gradlab.gpu.slots import Capacity
from gradlab.packs.planner import alike, plan, shape_name, waiting
from gradlab.store import read_json
from gradlab.sweep import Run
from gradlab.sweep_file import Pack

OVERHEAD_BOUND = {"cpu": 2e7, "gpu": 1e9}
"""Rows of a step times parameters, up to which a step costs more in overhead than in arithmetic. On one core of a CPU
packs of 8 gain 1.9 up to 5e6, 1.25 to 1.45 at 1e7, 1.3 at 2e7, 1.1 at 4e7 (`python benchmarks/packs.py`, RESULTS.md
there); on a GPU it was not measured."""

LARGEST = {"cpu": 8, "gpu": 64}
"""Of the rule of thumb. On a CPU 16 gain at most a tenth over 8 (same command); on a GPU it was not measured."""


@dataclass(frozen=True)
class Sizing:
    """The most runs of one shape in a process.

    asked       `pack` of the sweep or the call
    cores       of the call
    capacity    the GPUs of the call
    measured    by `shape_name`, of this machine (scripts/calibrate.py)
    base        the model made here that a run starts from
    """

    asked: Pack
    cores: int
    capacity: Capacity
    measured: Mapping[str, int]
    base: Callable[[Run], BaseConfig | None]

    def __call__(self, group: Sequence[Run]) -> int:
        """1 for a shape that gains nothing. `auto` leaves no core and no GPU without a pack."""
        best = self.measured.get(shape_name(group[0].config))
        if best is None:
            best = LARGEST[self._device()] if self.overhead_bound(group[0]) else 1
        if self.asked != "auto":
            return self.asked if best > 1 else 1
        at_once = len(self.capacity.gpus) or max(1, self.cores // group[0].config.placement.threads)
        size = min(best, math.ceil(len(group) / at_once))
        while size > 1 and not self.capacity.fits([run.config for run in group[:size]], self.base(group[0])):
            size -= 1
        return size

    def overhead_bound(self, run: Run) -> bool:
        """By the rule of thumb. A model whose size nothing tells counts as large."""
        try:
            parameters = shape_of(run.config.model, self.base(run)).parameters
        except ValueError:
            return False
        return run.config.rollout.batch_size * parameters <= OVERHEAD_BOUND[self._device()]

    def _device(self) -> str:
        return "gpu" if self.capacity.gpus or self.capacity.cluster else "cpu"


def machine(gpus: Sequence[Gpu]) -> dict[str, Any]:
    """What a measurement is tied to: other processors, or other GPUs, measure anew."""
    return {"cpu": _processor(), "cpus": os.cpu_count(), "gpus": [gpu.memory_mib for gpu in gpus]}


def measured(path: Path, gpus: Sequence[Gpu]) -> dict[str, int]:
    """The sizes that `scripts/calibrate.py` suggested by shape; none if it did not run, or not on this machine.

    Raises ValueError naming the file when it is not what that program writes.
    """
    if not path.is_file():
        return {}
    found = read_json(path)
    try:
        return {shape["shape"]: int(shape["pack"]) for shape in found["shapes"] if found["machine"] == machine(gpus)}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected what scripts/calibrate.py writes; found another file ({error}). "
            "Measure again: snakemake --forcerun calibrate_sweep -- calibrate, or remove it."
        ) from None


def plan_sweep(runs: Iterable[Run], size: Sizing, results: Path, work: Path) -> dict[str, list[Run]]:
    """Packs of those `runs` that still need training, by name. `results`, `work`: the sweep's folders."""
    packs: dict[str, list[Run]] = {}
    if size.asked == 1:
        return packs
    for group in alike(run for run in runs if waiting(run, results / "runs" / run.id, work)):
        packs |= plan(group, size(group), work)
    return packs


def suggest(runs_per_second: Mapping[int, float]) -> int:
    """The smallest pack within a tenth of the fastest, if that gains at least a tenth; else 1."""
    best = max(runs_per_second.values())
    if best < 1.1 * runs_per_second[1]:
        return 1
    return min(size for size, speed in runs_per_second.items() if speed >= 0.9 * best)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
