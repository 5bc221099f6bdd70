"""`algorithm` of a run: how rewards become a gradient."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gradlab.config.frozen import Frozen


class AlgorithmBase(Frozen):
    beta: float = Field(0.0, ge=0)
    """Weight of KL(policy || reference), per-token k3 estimator; 0 needs no reference model."""
    clip_epsilon: float = Field(0.2, gt=0, lt=1)
    """The ratio's clip range is [1 - clip_epsilon, 1 + clip_epsilon]; it acts from the second inner epoch on."""
    inner_epochs: int = Field(1, ge=1)
    """Optimizer steps on each rollout."""
    loss_type: Literal["grpo", "dapo", "dr_grpo", "sequence"] = "grpo"
    """Token weights. grpo: mean over tokens, then rows; dapo: over all tokens of the batch;
    dr_grpo: over rows * max_new_tokens; sequence: sum over tokens, mean over rows."""


class GRPO(AlgorithmBase):
    """Group-relative policy optimization (Shao et al. 2024, arXiv 2402.03300)."""

    name: Literal["grpo"]
    scale_rewards: Literal["group", "none"] = "group"
    """group: divide by the group's standard deviation (ddof 1, eps 1e-6); none: centre only (Dr. GRPO)."""
    normalize: Literal["sum", "objective"] = "sum"
    """sum: one scale, that of the weighted reward's sum; objective: each objective by its own deviation in the group,
    then the weighted sum by its deviation over the batch (GDPO, arXiv 2601.05242)."""


class RLOO(AlgorithmBase):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740)."""

    name: Literal["rloo"]


class Reinforce(AlgorithmBase):
    """REINFORCE (Williams 1992) with a baseline."""

    name: Literal["reinforce"]
    baseline: Literal["ema", "zscore"] = "ema"
    """ema: running mean of earlier steps, one per objective; zscore: centre and scale over the batch."""
    ema_decay: float = Field(0.9, ge=0, lt=1)
    """Weight of the past in the running mean."""


Algorithm = Annotated[GRPO | RLOO | Reinforce, Field(discriminator="name")]
