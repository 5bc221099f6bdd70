"""Which runs train together in one process. No torch.

A pack saves start-up and memory, and lets small runs share their steps' overhead. It changes no result and no
file: the planner packs only runs that still need training, whatever trains them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gradlab.config import RunConfig
from gradlab.store import digest
from gradlab.sweep import Run
from gradlab.workfolder import FINISHED, checkpoint_files

T = TypeVar("T")


def shared(config: RunConfig) -> dict[str, Any]:
    """What the runs of a pack must have in common, by the parameter's name."""
    return {
        "model": config.model,
        "adapter.kind": config.adapter.kind,
        "adapter.targets": config.adapter.targets,
        "steps": config.steps,
        "rollout.batch_size": config.rollout.batch_size,
        "rollout.num_generations": config.rollout.num_generations,
        "rollout.max_new_tokens": config.rollout.max_new_tokens,
        "algorithm.inner_epochs": config.algorithm.inner_epochs,
        "probe.every": config.probe.every,
        "probe.scope": config.probe.scope,
        "probe.space": config.probe.space,
    }


def shape_name(config: RunConfig) -> str:
    """One name for runs that may share a pack."""
    return digest(repr((shared(config), config.placement)))


def alike(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs, grouped by what may share a pack."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(shape_name(run.config), []).append(run)
    return list(groups.values())


def plan(runs: Iterable[Run], size: int, work: Path) -> dict[str, list[Run]]:
    """Packs of two to `size` runs, by name, of those `runs` that `waiting` says still need training.

    Runs that were interrupted at different steps are not packed together. Packs are as even as can be, in the
    order of the sweep.
    """
    packs = {}
    for same in alike(run for run in runs if run.config.adapter.kind != "full" and size > 1):
        for group in level((run, set(checkpoint_files(work / run.id)) or {0}) for run in same):
            for members in _even(group, size):
                if len(members) > 1:
                    packs[_name(members, work)] = list(members)
    return packs


def level(runs: Iterable[tuple[T, set[int]]]) -> list[list[T]]:
    """Groups of runs that can go on together, those that got furthest first: a step is in all their sets.

    A pack that was killed while it wrote or removed checkpoints has several of a run, and is one group again.
    """
    groups: list[tuple[list[T], set[int]]] = []
    for run, steps in runs:
        for members, common in groups:
            if common & steps:
                members.append(run)
                common &= steps
                break
        else:
            groups.append(([run], set(steps)))
    return [members for members, _ in sorted(groups, key=lambda group: -max(group[1]))]


def waiting(run: Run, run_dir: Path, work: Path) -> bool:
    """Whether the run is neither in its results folder nor staged for it."""
    return not (run_dir / "config.json").is_file() and not (work / run.id / FINISHED).is_dir()


def _even(group: Sequence[Run], size: int) -> Iterable[Sequence[Run]]:
    count = math.ceil(len(group) / size)
    ends = [round(len(group) * (i + 1) / count) for i in range(count)]
    return (group[a:b] for a, b in zip([0, *ends], ends, strict=False))


def _name(members: Sequence[Run], work: Path) -> str:
    """A name of its own for each attempt: the marker of an earlier one says nothing of this."""
    attempt = 0
    while (work / "packs" / (name := digest([[run.id for run in members], attempt]))).exists():
        attempt += 1
    return name
