"""What must hold before an update: runs that may share a pack, a sampler that equals the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradlab.config import RunConfig
from gradlab.packs.planner import shared

# Largest difference between the sampler's log-prob of a token and the recomputed one.
# Half precision sums in another order for another batch shape; its tolerance covers that noise.
GATE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.1}


def check_gate(step: int, gap: float, dtype: torch.dtype) -> None:
    """Raise ValueError when recomputed log-probs differ from the sampler's by more than `GATE_NATS`."""
    limit = GATE_NATS[dtype]
    if not gap <= limit:
        raise ValueError(
            f"step {step}: expected the sampler's log-probs to equal the recomputed ones within {limit} nats; "
            f"found a gap of {gap:.3g}. Training would be off-policy without knowing. The model's cached "
            "decoding differs from its full forward: report the model id, or try model.dtype: float32."
        )


def check_pack(configs: Sequence[RunConfig]) -> None:
    """Raise ValueError naming the first parameter that the runs of a pack must share and do not."""

    for config in configs[1:]:
        for (name, expected), found in zip(shared(configs[0]).items(), shared(config).values(), strict=True):
            if found != expected:
                raise ValueError(
                    f"{name}: expected {expected} as in the pack's first run; found {found}. Do not pack them."
                )
