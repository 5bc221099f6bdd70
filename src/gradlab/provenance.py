"""Where a result comes from: versions, commit, code digest, configuration digest, device."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "bitsandbytes", "gradlab")


def provenance(spec_digest: str, seed: int, device: torch.device) -> dict[str, Any]:
    """A JSON object; `git_commit` is null outside a checkout.

    `gpu_slots` are those this process holds of its GPU and `mps` what the workflow found; null where neither was set.
    """
    return {
        "config_digest": spec_digest,
        "seed": seed,
        "versions": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "git_commit": git_commit(),
        "code_digest": code_digest(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "device_uuid": f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None,
        "gpu_slots": int(held) if (held := os.environ.get("GRADLAB_HELD_SLOTS")) else None,
        "mps": os.environ.get("GRADLAB_MPS"),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_commit() -> str | None:
    """The commit of the checkout the library lies in, with `-dirty` when files differ from it."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None  # no git, or installed outside a checkout: a fact, recorded as null
    return found.stdout.strip()


def code_digest() -> str:
    """12 hex digits over the library's Python files, in order of their paths."""
    here = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(str(path.relative_to(here)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
