"""The LM head and log-softmax in one op that also yields the unit gradient d log pi / d h.

log pi(id | h) has gradient (W[id] - p W) / temperature with respect to the hidden state h, where p is
the softmax. One product with p, made chunk by chunk while the logits are in cache, serves every loss
that is linear in log-probs at the point of evaluation: policy gradient, clipped ratio and KL all reduce
to one coefficient a token. The (N, V) logits are never kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 20  # logits in flight: 4 MiB of float32 stays in a CPU's last-level cache
_CHUNK_ELEMENTS_CUDA = 1 << 27


def _chunk(device: torch.device, vocabulary: int) -> int:
    return max(1, (_CHUNK_ELEMENTS_CUDA if device.type == "cuda" else _CHUNK_ELEMENTS) // vocabulary)


def _pieces(h_NH: Tensor, weight_VH: Tensor, ids_N: Tensor, temperature_N: Tensor):
    """Yield (slice, probabilities, log-prob, log-normalizer of the tempered logits), chunk by chunk."""
    step = _chunk(h_NH.device, weight_VH.shape[0])
    for start in range(0, h_NH.shape[0], step):
        part = slice(start, start + step)
        logits = (h_NH[part] @ weight_VH.mT).float().div_(temperature_N[part, None])
        target = logits.gather(-1, ids_N[part, None])
        p = torch.softmax(logits, -1)
        # The largest probability never underflows. `amax`: on a CPU `max` is ten times slower.
        lse = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
        yield part, p, (target - lse).squeeze(-1), lse.squeeze(-1)


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h_NH: Tensor, weight_VH: Tensor, ids_N: Tensor, temperature_N: Tensor):
        logp_N = torch.empty(h_NH.shape[0], device=h_NH.device)
        entropy_N = torch.empty_like(logp_N)
        unit_NH = torch.empty_like(h_NH)
        for part, p, logp, lse in _pieces(h_NH, weight_VH, ids_N, temperature_N):
            mean_head = p.to(weight_VH.dtype) @ weight_VH
            logp_N[part] = logp
            # H = lse - E[logit] and E[logit] = h . (p W) / temperature: no pass over the vocabulary.
            entropy_N[part] = lse - (h_NH[part] * mean_head).sum(-1).float() / temperature_N[part]
            unit_NH[part] = (weight_VH[ids_N[part]] - mean_head) / temperature_N[part, None].to(h_NH.dtype)
        ctx.save_for_backward(h_NH, weight_VH, ids_N, temperature_N, unit_NH)
        ctx.mark_non_differentiable(entropy_N, unit_NH)
        return logp_N, entropy_N, unit_NH

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, *_: Any):  # type: ignore[override]
        h_NH, weight_VH, ids_N, temperature_N, unit_NH = ctx.saved_tensors
        dh = grad_N[:, None].to(unit_NH.dtype) * unit_NH
        dW = None
        if ctx.needs_input_grad[1]:  # full fine-tuning: recompute p rather than keep it
            dW = torch.zeros_like(weight_VH)
            for part, p, _logp, _lse in _pieces(h_NH, weight_VH, ids_N, temperature_N):
                dlogits = p.mul_(-grad_N[part, None])
                dlogits.scatter_add_(-1, ids_N[part, None], grad_N[part, None])
                dW += (dlogits / temperature_N[part, None]).to(h_NH.dtype).mT @ h_NH[part]
        return dh, dW, None, None


def token_logp(h_NH: Tensor, weight_VH: Tensor, ids_N: Tensor, temperature_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob and entropy (nats) of each token, and the unit gradient of the log-prob.

    h_NH             hidden state that predicts the token, N tokens
    weight_VH        LM head
    ids_N            the tokens
    temperature_N    the logits are divided by it first

    Returns (logp_N, entropy_N, unit_NH); only logp_N carries a gradient, to h and to the head.
    """
    return _TokenLogp.apply(h_NH, weight_VH, ids_N, temperature_N)


@torch.no_grad()
def reference_logp(h_NH: Tensor, weight_VH: Tensor, ids_N: Tensor, temperature_N: Tensor) -> Tensor:
    """Log-probs alone, (N): half the products of `token_logp`."""
    logp_N = torch.empty(h_NH.shape[0], device=h_NH.device)
    for part, _p, logp, _lse in _pieces(h_NH, weight_VH, ids_N, temperature_N):
        logp_N[part] = logp
    return logp_N
