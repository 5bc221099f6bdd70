"""The sampling loop: one uniform a token, inverse CDF, ended rows dropped from the batch.

Noise is a function of (seed, step, row), drawn before the loop for the original rows, so that neither
dropping rows, nor a pack's other runs, nor a resume changes what a row draws. No top-p, top-k or
penalty: the sampled distribution is the trained one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gradlab.adapters import Adapter
from gradlab.rollout.decoder import Decoder
from gradlab.rollout.hf import HFDecoder
from gradlab.rollout.llama import LlamaDecoder
from gradlab.types import Rollout

COMPACT_EVERY = 8  # tokens between droppings of ended rows; each costs a copy of the cache


def uniforms(seed: int, purpose: int, step: int, rows: int, tokens: int) -> np.ndarray:
    """(rows, tokens) uniforms in [0, 1): Philox keyed by (seed, purpose), counted from `step`."""
    bits = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64), counter=[0, 0, 0, step])
    return np.random.Generator(bits).random((rows, tokens), dtype=np.float32)


def decoder_for(adapter: Adapter, context: int) -> Decoder:
    """The fast path where it is exact, else the model's own forward."""
    return LlamaDecoder(adapter) if LlamaDecoder.fits(adapter.lm, context) else HFDecoder(adapter)


@torch.no_grad()
def sample(
    adapter: Adapter,
    prompts_RU: Sequence[Sequence[Sequence[int]]],
    num_generations: int,
    max_new_tokens: int,
    temperature_R: Sequence[float],
    noise_NC: np.ndarray,
    decoder: Decoder | None = None,
) -> Rollout:
    """Completions of R runs, U prompts each, `num_generations` of every prompt; N = R U G rows.

    Row order: run, then prompt, then generation. `noise_NC` is `uniforms(...)` of each run, stacked.
    The EOS that ends a row is kept and scored; a row cut at `max_new_tokens` has none.
    """
    lm, runs = adapter.lm, adapter.runs
    device = lm.device
    flat = [ids for prompts in prompts_RU for ids in prompts]
    longest = max(map(len, flat))
    decoder = decoder or decoder_for(adapter, longest + max_new_tokens)
    rows = len(flat) * num_generations
    assert noise_NC.shape == (rows, max_new_tokens), (noise_NC.shape, rows, max_new_tokens)
    noise = torch.from_numpy(noise_NC).to(device)
    temperature = torch.tensor(temperature_R, device=device).repeat_interleave(rows // runs)[:, None]
    eos = torch.tensor(lm.eos_ids, device=device)

    new_ids = torch.full((rows, max_new_tokens), lm.pad_id, device=device)
    new_logp = torch.zeros(rows, max_new_tokens, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    length = torch.zeros(rows, dtype=torch.long, device=device)
    row = torch.arange(rows, device=device)  # original rows still decoded, equally many for each run

    logits = decoder.prefill(flat, num_generations, max_new_tokens)
    for c in range(max_new_tokens):
        tokens, logp = draw(logits / temperature[row], noise[row, c])
        was_live = ~ended[row]
        new_ids[row, c] = torch.where(was_live, tokens, lm.pad_id)
        new_logp[row, c] = torch.where(was_live, logp, 0.0)
        length[row] += was_live
        ended[row] |= was_live & torch.isin(tokens, eos)
        if c == max_new_tokens - 1:
            break
        if c % COMPACT_EVERY == COMPACT_EVERY - 1:
            kept = _live_first(ended[row].view(runs, -1))
            if kept.shape[1] == 0:
                break
            if kept.shape[1] < row.shape[0] // runs:
                index = (kept + torch.arange(runs, device=device)[:, None] * (row.shape[0] // runs)).flatten()
                decoder.keep(index)
                row, tokens = row[index], tokens[index]
        logits = decoder.step(tokens)
    return _assemble(flat, num_generations, lm.pad_id, new_ids, new_logp, length, ended)


def draw(logits_NV: Tensor, noise_N: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sample of each row and its log-prob; one uniform a row.

    The uniform is scaled by the rounded total, so that the last entry is not favoured.
    """
    p = torch.softmax(logits_NV, -1)
    cdf = p.cumsum(-1)
    tokens = torch.searchsorted(cdf, noise_N[:, None] * cdf[:, -1:], right=True).clamp_(max=p.shape[-1] - 1)
    lse = logits_NV.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()
    return tokens.squeeze(-1), (logits_NV.gather(-1, tokens) - lse).squeeze(-1)


def _live_first(ended_RB: Tensor) -> Tensor:
    """Indices (R, B') of the rows to keep, B' the most live rows of any run, in their order.

    A run with fewer live rows keeps some ended ones as filler; what they draw is discarded.
    """
    keep = int((~ended_RB).sum(1).max())
    return ended_RB.int().argsort(dim=1, stable=True)[:, :keep]


def _assemble(
    prompts: list[Sequence[int]],
    num_generations: int,
    pad: int,
    new_ids: Tensor,
    new_logp: Tensor,
    length: Tensor,
    ended: Tensor,
) -> Rollout:
    """Prompt and completion side by side, padding on the right, cut to the longest row."""
    device = new_ids.device
    prompt_len = torch.tensor([len(p) for p in prompts]).repeat_interleave(num_generations)
    total = prompt_len.to(device) + length
    width = int(total.max())
    ids = torch.full((new_ids.shape[0], width), pad, device=device)
    for index, prompt in enumerate(prompts):
        rows = slice(index * num_generations, (index + 1) * num_generations)
        room = min(width - len(prompt), new_ids.shape[1])
        ids[rows, : len(prompt)] = torch.tensor(prompt, device=device)
        ids[rows, len(prompt) : len(prompt) + room] = new_ids[rows, :room]
    logp = new_logp[:, : int(length.max())]
    return Rollout(ids, prompt_len.to(device), total, logp, ended)
