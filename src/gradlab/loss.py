"""The clipped policy loss with KL, token by token: PPO's objective (arXiv 1707.06347 eq. 7) on
sequence-level advantages, plus beta times the k3 estimate of KL to the reference (arXiv 2402.03300
eq. 4). Left out: value loss, entropy bonus, importance-sampling corrections.

The token weights decide what a mean over tokens is; the probe uses the same ones, so it measures the
gradient that trains.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def token_weights(length_N: Tensor, loss_type: str, max_new_tokens: int) -> Tensor:
    """Weight (N) of each token of a row in one run's loss; N = B rows of that run.

    grpo 1/(B T_b); dapo 1/sum_b T_b; dr_grpo 1/(B max_new_tokens); sequence 1/B.
    """
    rows, length_N = length_N.shape[0], length_N.float()
    if loss_type == "grpo":
        return 1 / (rows * length_N)
    if loss_type == "dapo":
        return torch.ones_like(length_N) / length_N.sum()
    if loss_type == "dr_grpo":
        return torch.full_like(length_N, 1 / (rows * max_new_tokens))
    assert loss_type == "sequence", loss_type
    return torch.full_like(length_N, 1 / rows)


@dataclass(frozen=True)
class TokenLoss:
    """Sums over tokens, still one entry a token (M): the caller adds them up by run."""

    loss_M: Tensor
    kl_M: Tensor | None
    clipped_M: Tensor
    ratio_M: Tensor


def policy_loss(
    logp_M: Tensor,
    old_logp_M: Tensor,
    advantage_M: Tensor,
    weight_M: Tensor,
    clip_epsilon_M: Tensor,
    beta_M: Tensor,
    reference_logp_M: Tensor | None,
) -> TokenLoss:
    """Weighted loss of M completion tokens; every argument has one entry a token.

    `reference_logp_M` is None when no run has beta > 0.
    """
    ratio = torch.exp(logp_M - old_logp_M)
    clipped = torch.clamp(ratio, 1 - clip_epsilon_M, 1 + clip_epsilon_M)
    surrogate = torch.minimum(ratio * advantage_M, clipped * advantage_M)
    loss = -surrogate
    kl = None
    if reference_logp_M is not None:
        gap = reference_logp_M - logp_M
        kl = torch.exp(gap) - gap - 1
        loss = loss + beta_M * kl
    acted = (clipped * advantage_M < ratio * advantage_M).detach()
    return TokenLoss(loss * weight_M, None if kl is None else kl.detach(), acted, ratio.detach())
