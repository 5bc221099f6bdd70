"""Fast decode of Llama-shaped models (Llama, Mistral, Qwen2, Qwen3), equal to the model's own forward.

What it saves: adapters merged once a rollout, q/k/v and gate/up fused into one product each, each
unique prompt prefilled once, one preallocated cache tensor a layer, no left padding. Prompts lie in
slots [0, P), completions in [P, P + C) for every row; positions are the row's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    """Weights of one block with the adapter merged; matrices are (I, O), or (R, I, O) where runs differ.

    qk_norm   (heads + kv_heads, 1, width) or None
    """

    norm1: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    norm2: Tensor
    gate_up: Tensor
    down: Tensor


# (index of the layer, q, k, v), each (N, heads, T, width), to the heads' outputs (N * T, heads * width)
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


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
            whole = torch.cat([part.expand(runs, -1, -1) for part in parts], dim=2).contiguous()
            return whole[0] if runs == 1 else whole

        q, k, v, o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        biases = [_bias(linear) for linear in (q, k, v)]
        qk_norm = None
        if hasattr(attention, "q_norm"):
            counts = ((attention.q_norm, self.heads), (attention.k_norm, self.kv_heads))
            qk_norm = torch.cat([norm.weight.expand(count, 1, -1) for norm, count in counts])
        return _Layer(
            norm1=block.input_layernorm.weight,
            qkv=fused(q, k, v),
            qkv_bias=None if biases[0] is None else torch.cat([b for b in biases if b is not None]),
            qk_norm=qk_norm,
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
        slots = longest + max_new_tokens
        self.cos, self.sin = self._rotary_tables(slots)

        rows = len(prompts) * num_generations
        shape = (rows, self.kv_heads, slots, self.width)
        self.keys, self.values = ([torch.empty(shape, device=device) for _ in self.layers] for _ in range(2))
        self.filled = longest

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.keys[index][:, :, :longest] = k.repeat_interleave(num_generations, 0)
            self.values[index][:, :, :longest] = v.repeat_interleave(num_generations, 0)
            # Padding stands on the right: a causal mask alone hides it from every real token.
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return mixed.transpose(1, 2).reshape(len(prompts) * longest, -1)

        x = self._blocks(ids.to(device), self.cos[:longest], self.sin[:longest], attend)
        last = x.view(len(prompts), longest, -1)[torch.arange(len(prompts), device=device), length.to(device) - 1]
        self.position = length.to(device).repeat_interleave(num_generations)
        # Slots between a row's own prompt and the first completion slot are padding; added to attention scores.
        slot = torch.arange(slots, device=device)
        padding = (slot >= self.position[:, None]) & (slot < longest)
        self.mask = torch.zeros(rows, 1, 1, slots, device=device).masked_fill_(padding[:, None, None], -math.inf)
        self.even = bool((length == longest).all())
        return self._logits(last).repeat_interleave(num_generations, 0)

    def step(self, tokens_N: Tensor) -> Tensor:
        slot = self.filled
        mask = None if self.even else self.mask[..., : slot + 1]

        def attend(index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.keys[index], self.values[index]
            keys[:, :, slot : slot + 1] = k
            values[:, :, slot : slot + 1] = v
            # The queries of one key-value head stand side by side as the "tokens" of one attention.
            grouped = q.view(q.shape[0], self.kv_heads, -1, self.width)
            mixed = F.scaled_dot_product_attention(
                grouped, keys[:, :, : slot + 1], values[:, :, : slot + 1], attn_mask=mask
            )
            return mixed.reshape(q.shape[0], -1)

        cos, sin = self.cos[self.position][:, None, None], self.sin[self.position][:, None, None]
        x = self._blocks(tokens_N[:, None], cos, sin, attend)
        self.filled, self.position = slot + 1, self.position + 1
        return self._logits(x)

    def keep(self, index: Tensor) -> None:
        for cache in (self.keys, self.values):
            for layer, tensor in enumerate(cache):
                cache[layer] = tensor[index]
        self.position, self.mask = self.position[index], self.mask[index]

    def _rotary_tables(self, slots: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (slots, width), the sign of the halves convention in the sines (arXiv 2104.09864)."""
        cos, sin = self.rotary(self.embed[:1, None], torch.arange(slots, device=self.embed.device)[None])
        sign = torch.ones(self.width, device=sin.device)
        sign[: self.width // 2] = -1
        return cos[0], sin[0] * sign

    def _blocks(self, ids_NT: Tensor, cos: Tensor, sin: Tensor, attend: Attention) -> Tensor:
        """Residual stream (N * T, H) after all blocks. Written for few kernels: decoding is bound by their number."""
        rows, tokens = ids_NT.shape
        x = F.embedding(ids_NT, self.embed).view(rows * tokens, -1)
        rotated = self.heads + self.kv_heads
        for index, layer in enumerate(self.layers):
            qkv = self._product(self._normed(x, layer.norm1), layer.qkv)
            if layer.qkv_bias is not None:
                qkv = qkv + layer.qkv_bias
            heads = qkv.view(rows, tokens, -1, self.width).transpose(1, 2)
            qk = heads[:, :rotated]
            if layer.qk_norm is not None:
                qk = F.rms_norm(qk, (self.width,), None, self.eps) * layer.qk_norm
            qk = torch.addcmul(qk * cos, qk.roll(self.width // 2, -1), sin)
            mixed = attend(index, qk[:, : self.heads], qk[:, self.heads :], heads[:, rotated:])
            x = self._product(mixed, layer.out, x if layer.out_bias is None else x + layer.out_bias)
            gate, up = self._product(self._normed(x, layer.norm2), layer.gate_up).chunk(2, -1)
            x = self._product(F.silu(gate).mul_(up), layer.down, x)
        return x

    def _product(self, x_NI: Tensor, weight: Tensor, add_NO: Tensor | None = None) -> Tensor:
        """(N, I), rows laid out run by run, times (I, O) or each run's matrix; plus `add_NO`."""
        if weight.dim() == 2:
            return torch.mm(x_NI, weight) if add_NO is None else torch.addmm(add_NO, x_NI, weight)
        x_RNI = x_NI.view(self.runs, -1, x_NI.shape[1])
        if add_NO is None:
            return torch.bmm(x_RNI, weight).view(x_NI.shape[0], -1)
        return torch.baddbmm(add_NO.view(self.runs, -1, add_NO.shape[1]), x_RNI, weight).view(add_NO.shape)

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, self.eps)

    def _logits(self, x_NH: Tensor) -> Tensor:
        return self._normed(x_NH, self.norm) @ self.lm.head_weight.mT


def _bias(linear: Any) -> Tensor | None:
    return getattr(linear, "base", linear).bias
