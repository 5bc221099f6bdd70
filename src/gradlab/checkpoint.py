"""Files that continue runs exactly, one a run: parameters, moments, baselines, log lengths, next step.

Sampling noise and data order are functions of (seed, step) and need no state. Tensors are float32,
credit baselines float64; no pickle. A run's file does not depend on its pack: ranks may be padded by its
neighbours, and `fit` takes the padding off. So a run interrupted in a pack can go on alone or in another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradlab.store import atomic, remove_files
from gradlab.workfolder import checkpoint_file, checkpoint_files

META = {"next_step", "sizes", "stamp", "history"}


@dataclass(frozen=True)
class Checkpoint:
    """next_step   first step not yet done
    tensors        the run's part of the optimizer, its credit and its weighting
    sizes          the length of each growing file
    stamp          what was trained; a checkpoint of anything else is not resumed
    history        who it was trained with: [{"from_step": int, "runs": [names]}, ...]
    """

    next_step: int
    tensors: dict[str, Tensor]
    sizes: dict[str, int]
    stamp: str
    history: list[dict[str, Any]]


def save(folders: Sequence[Path], checkpoints: Sequence[Checkpoint]) -> None:
    """Write every run's file, then remove older ones: whenever this stops, one step remains that all runs have."""
    for folder, checkpoint in zip(folders, checkpoints, strict=True):
        meta = {key: getattr(checkpoint, key) for key in sorted(META)}
        with atomic(checkpoint_file(folder, checkpoint.next_step)) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()},
                temporary,
                metadata={"gradlab": json.dumps(meta)},
            )
    for folder, checkpoint in zip(folders, checkpoints, strict=True):
        keep(folder, checkpoint.next_step)


def steps(folder: Path, stamp: str) -> set[int]:
    """The steps at which a run of this stamp can go on; only if there is none, 0: from the start."""
    return {step for step, path in checkpoint_files(folder).items() if _meta(path)["stamp"] == stamp} or {0}


def load(folder: Path, step: int) -> Checkpoint:
    """Raises ValueError when the file is not whole, or not of this version."""
    path = checkpoint_file(folder, step)
    meta = _meta(path)
    with safe_open(path, framework="pt") as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 not a dict
    return Checkpoint(tensors=tensors, **meta)


def keep(folder: Path, step: int) -> None:
    """Remove every other checkpoint. A newer one counts log lines that go when an older one is resumed."""
    remove_files([path for other, path in checkpoint_files(folder).items() if other != step])


@torch.no_grad()
def fit(target: Tensor, source: Tensor) -> None:
    """Write `source` into the leading corner of `target`, zeros elsewhere: padding is always zero."""
    corner = tuple(slice(0, min(a, b)) for a, b in zip(target.shape, source.shape, strict=True))
    target.zero_()
    target[corner] = source[corner].to(target)


def _meta(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as handle:
            meta: dict[str, Any] = json.loads((handle.metadata() or {}).get("gradlab", "{}"))
        problem = "" if set(meta) == META else "another version's"
    except SafetensorError as error:
        problem = str(error)
    if problem:
        raise ValueError(
            f"{path}: expected a checkpoint as this version writes it; found {problem}. Remove the file: the run goes "
            "on from an older one, or from the start."
        )
    return meta
