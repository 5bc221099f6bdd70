"""Decode with the model's own transformers forward and cache: any causal LM, any quantization.

Prompts are padded on the left, so that distances in a sliding window are true distances; positions
are given explicitly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradlab.adapters import Adapter


class HFDecoder:
    """`adapter` is active in place: nothing is merged."""

    def __init__(self, adapter: Adapter) -> None:
        self.lm = adapter.lm

    def prefill(self, prompts: Sequence[Sequence[int]], num_generations: int, max_new_tokens: int) -> Tensor:
        device, longest = self.lm.device, max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.lm.pad_id, device=device)
        self.mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
            self.mask[row, longest - len(prompt) :] = 1
        position = (self.mask.cumsum(1) - 1).clamp(min=0)
        out = self.lm.model(
            input_ids=ids, attention_mask=self.mask, position_ids=position, use_cache=True, logits_to_keep=1
        )
        self.cache = out.past_key_values
        self.cache.batch_repeat_interleave(num_generations)
        self.mask = self.mask.repeat_interleave(num_generations, 0)
        self.position = position[:, -1:].repeat_interleave(num_generations, 0)
        return out.logits[:, -1].float().repeat_interleave(num_generations, 0)

    def step(self, tokens_N: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        self.position = self.position + 1
        out = self.lm.model(
            input_ids=tokens_N[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.logits[:, -1].float()

    def keep(self, index: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.mask, self.position = self.mask[index], self.position[index]
