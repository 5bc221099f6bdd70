"""One file that continues a run exactly: parameters, moments, baselines, log lengths, next step.

Sampling noise and data order are functions of (seed, step) and need no state. Tensors are float32,
credit baselines float64; no pickle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradlab.store import atomic


@dataclass(frozen=True)
class Checkpoint:
    """next_step   first step not yet done
    tensors        the optimizer's and the credits' state
    sizes          per run, the length of each growing file
    specs          the runs' specifications: a checkpoint of others is not resumed
    """

    next_step: int
    tensors: dict[str, Tensor]
    sizes: list[dict[str, int]]
    specs: list[str]


def save(path: Path, checkpoint: Checkpoint) -> None:
    meta = {"next_step": checkpoint.next_step, "sizes": checkpoint.sizes, "specs": checkpoint.specs}
    with atomic(path) as temporary:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()},
            temporary,
            metadata={"gradlab": json.dumps(meta)},
        )


def load(path: Path, specs: list[str]) -> Checkpoint | None:
    """The checkpoint at `path` if there is one for exactly these runs, else None."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as handle:
        meta = json.loads(handle.metadata()["gradlab"])
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 not a dict
    if meta["specs"] != specs:
        return None
    return Checkpoint(meta["next_step"], tensors, meta["sizes"], meta["specs"])
