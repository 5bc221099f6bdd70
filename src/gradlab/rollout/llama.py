"""Fast decode of Llama-shaped models (Llama, Mistral, Qwen2, Qwen3), equal to the model's own forward.

What it saves: adapters merged once a rollout, q/k/v and gate/up fused into one product each, each
unique prompt prefilled once, one preallocated cache tensor a layer, no left padding. Prompts lie in
slots [0, P), completions in [P, P + C) for every row; positions are the row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.adapters import Adapter
from gradlab.models import LanguageModel

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_ROPE = ("default", "linear", "llama3", "yarn")  # those whose angles do not depend on the length seen


@dataclass(frozen=True)
class _Layer:
    """Weights of one block with the adapter merged; matrices are (R, I, O), or (1, I, O) when shared."""

    norm1: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


class LlamaDecoder:
    """One rollout's decoder; build a new one after each update."""

    @staticmethod
    def fits(lm: LanguageModel, context: int) -> bool:
        """Whether this path computes what the model does: float32, known shape, no window in reach."""
        config = lm.model.config
        window = getattr(config, "sliding_window", None)
        if config.model_type == "qwen2" or config.model_type == "qwen3":
            window = window if config.use_sliding_window else None
        return (
            config.model_type in _FAMILIES
            and not getattr(lm.model, "is_quantized", False)
            and lm.head_weight.dtype == torch.float32
            and (window is None or window >= context)
            and config.hidden_act == "silu"
            and not getattr(config, "mlp_bias", False)
            and config.rope_parameters["rope_type"] in _ROPE
        )

    def __init__(self, adapter: Adapter) -> None:
        self.lm, self.runs = adapter.lm, adapter.runs
        config = self.lm.model.config
        core: Any = self.lm.backbone  # torch types a submodule as Tensor | Module
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps, self.embed, self.norm = config.rms_norm_eps, core.embed_tokens.weight, core.norm.weight
        self.rotary = core.rotary_emb
        self.layers = [self._merge(adapter, block) for block in core.layers]

    def _merge(self, adapter: Adapter, block: Any) -> _Layer:
        attention, mlp = block.self_attn, block.mlp

        def fused(*linears: nn.Module) -> Tensor:
            parts = [adapter.weight(linear) for linear in linears]
            runs = max(part.shape[0] for part in parts)
            return torch.cat([part.expand(runs, -1, -1) for part in parts], dim=2).contiguous()

        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        biases = [_bias(linear) for linear in (q, k, v)]
        return _Layer(
            norm1=block.input_layernorm.weight,
            qkv=fused(q, k, v),
            qkv_bias=None if biases[0] is None else torch.cat([b for b in biases if b is not None]),
            q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
            k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
            out=fused(o),
            out_bias=_bias(o),
            norm2=block.post_attention_layernorm.weight,
            gate_up=fused(mlp.gate_proj, mlp.up_proj),
            down=fused(mlp.down_proj),
        )

    def prefill(self, prompts: Sequence[Sequence[int]], num_generations: int, max_new_tokens: int) -> Tensor:
        device = self.lm.device
        length = torch.tensor([len(p) for p in prompts])
        longest = int(length.max())
        ids = torch.full((len(prompts), longest), self.lm.pad_id)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        ids = ids.to(device)
        slots = longest + max_new_tokens
        positions = torch.arange(slots, device=device)[None]
        cos, sin = self.rotary(self.embed[:1, None], positions)
        self.cos, self.sin = cos[0], sin[0]

        rows = len(prompts) * num_generations
        shape = (rows, self.kv_heads, slots, self.width)
        self.keys, self.values = ([torch.empty(shape, device=device) for _ in self.layers] for _ in range(2))
        self.filled, self.longest = longest, longest
        x = F.embedding(ids, self.embed)
        for index, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x, self.cos[:longest], self.sin[:longest])
            # Padding stands on the right: a causal mask alone hides it from every real token.
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            self.keys[index][:, :, :longest] = k.repeat_interleave(num_generations, 0)
            self.values[index][:, :, :longest] = v.repeat_interleave(num_generations, 0)
            x = self._rest(layer, x, mixed)
        last = x[torch.arange(len(prompts), device=device), length.to(device) - 1]
        self.position = length.to(device).repeat_interleave(num_generations)
        # Slots that a row's queries may see: its own prompt, and all completion slots filled so far.
        slot = torch.arange(slots, device=device)
        self.visible = (slot < self.position[:, None]) | (slot >= longest)
        self.even = bool((length == longest).all())
        return self._logits(last).repeat_interleave(num_generations, 0)

    def step(self, tokens_N: Tensor) -> Tensor:
        slot = self.filled
        x = F.embedding(tokens_N, self.embed)[:, None]
        cos, sin = self.cos[self.position][:, None, None], self.sin[self.position][:, None, None]
        mask = None if self.even else self.visible[:, None, None, : slot + 1]
        for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            q, k, v = self._qkv(layer, x, cos, sin)
            keys[:, :, slot : slot + 1] = k
            values[:, :, slot : slot + 1] = v
            # The queries of one key-value head stand side by side as the "tokens" of one attention.
            grouped = q.view(q.shape[0], self.kv_heads, -1, self.width)
            mixed = F.scaled_dot_product_attention(
                grouped, keys[:, :, : slot + 1], values[:, :, : slot + 1], attn_mask=mask
            )
            x = self._rest(layer, x, mixed.reshape(q.shape))
        self.filled, self.position = slot + 1, self.position + 1
        return self._logits(x[:, 0])

    def keep(self, index: Tensor) -> None:
        for cache in (self.keys, self.values):
            for layer, tensor in enumerate(cache):
                cache[layer] = tensor[index]
        self.position, self.visible = self.position[index], self.visible[index]

    def _matmul(self, x: Tensor, weight_RIO: Tensor) -> Tensor:
        """(N, T, I) rows laid out run by run, times each run's matrix."""
        if weight_RIO.shape[0] == 1:
            return x @ weight_RIO[0]
        return torch.bmm(x.reshape(self.runs, -1, x.shape[-1]), weight_RIO).view(*x.shape[:-1], -1)

    def _qkv(self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed = self._matmul(F.rms_norm(x, x.shape[-1:], layer.norm1, self.eps), layer.qkv)
        if layer.qkv_bias is not None:
            mixed = mixed + layer.qkv_bias
        heads = mixed.view(*x.shape[:2], -1, self.width).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if layer.q_norm is not None:
            q = F.rms_norm(q, q.shape[-1:], layer.q_norm, self.eps)
            k = F.rms_norm(k, k.shape[-1:], layer.k_norm, self.eps)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v

    def _rest(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        out = self._matmul(mixed.transpose(1, 2).reshape(*x.shape[:2], -1), layer.out)
        x = x + (out if layer.out_bias is None else out + layer.out_bias)
        gate, up = self._matmul(F.rms_norm(x, x.shape[-1:], layer.norm2, self.eps), layer.gate_up).chunk(2, -1)
        return x + self._matmul(F.silu(gate) * up, layer.down)

    def _logits(self, x_NH: Tensor) -> Tensor:
        return F.rms_norm(x_NH, x_NH.shape[-1:], self.norm, self.eps) @ self.lm.head_weight.mT


def _bias(linear: Any) -> Tensor | None:
    return getattr(linear, "base", linear).bias


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves convention (arXiv 2104.09864)."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
