"""Tiny random models of every family, a tokenizer for them, and rollouts to measure them on.

Weights are drawn wide, biases and norms too, so that no term of a forward pass is close to its
identity and distributions are not flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from gradlab import models
from gradlab.adapters import Adapter, attach
from gradlab.config import AdapterConfig, RunConfig
from gradlab.rollout import sample, uniforms
from gradlab.tokenizer import train_tokenizer
from gradlab.types import Rollout

torch.set_num_threads(1)

FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM, {"head_dim": 8, "sliding_window": 8}),
}
FAST = ("llama", "mistral", "qwen2", "qwen3")
TEXTS = [
    f"question: what is {a} plus {b}? answer: {a + b}. the happy dog and the small cat saw a big tree."
    for a in range(10)
    for b in range(10)
]


@cache
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def model(family: str = "llama", std: float = 0.2, seed: int = 0, **changes: Any) -> PreTrainedModel:
    config, kind, own = FAMILIES[family]
    tokens = tokenizer()
    torch.manual_seed(seed)
    made = kind(
        config(
            **{
                "vocab_size": len(tokens),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "initializer_range": std,
                "eos_token_id": tokens.eos_token_id,
                "pad_token_id": tokens.pad_token_id,
                "bos_token_id": None,
                **own,
                **changes,
            }
        )
    )
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:  # biases and norms
                parameter.add_(std * torch.randn_like(parameter))
    return made.eval()


def lm(family: str = "llama", **changes: Any) -> models.LanguageModel:
    return models.wrap(model(family, **changes), tokenizer())


def lora(base: models.LanguageModel, ranks: Sequence[int] = (4,), std: float = 0.2, **changes: Any) -> Adapter:
    """LoRA of several runs, each with its own B, drawn the same whatever the neighbours are."""
    adapter = attach(base, [AdapterConfig(rank=r, **changes) for r in ranks], [100 + r for r in ranks])
    for run, rank in enumerate(ranks):
        generator = torch.Generator().manual_seed(rank)
        for module in adapter.modules.values():
            module.B_ROr.data[run, :, :rank] = std * torch.randn(module.B_ROr.shape[1], rank, generator=generator)
    return adapter


def prompts(runs: int, per_run: int, seed: int = 0, longest: int = 14) -> list[list[list[int]]]:
    """Random ids of different lengths, none of them special."""
    draw = np.random.default_rng(seed)
    return [
        [draw.integers(5, 259, size=draw.integers(2, longest)).tolist() for _ in range(per_run)] for _ in range(runs)
    ]


def rollout(adapter: Adapter, generations: int = 4, new_tokens: int = 12, temperature: float = 1.0) -> Rollout:
    """Two prompts a run."""
    runs = adapter.runs
    noise = np.concatenate([uniforms(seed, 0, 0, 2 * generations, new_tokens) for seed in range(runs)])
    return sample(adapter, prompts(runs, 2), generations, new_tokens, [temperature] * runs, noise)


def config(**changes: Any) -> RunConfig:
    """A valid run; nested dictionaries replace whole sections."""
    return RunConfig.model_validate(
        {
            "model": {"id": "tiny"},
            "algorithm": {"name": "grpo"},
            "objectives": {"brevity": {"params": {"target_words": 1, "max_words": 8}}, "happy_count": {}},
            "data": {"train": ["train.jsonl"], "heldout": ["heldout.jsonl"]},
            "rollout": {"batch_size": 8, "num_generations": 4, "max_new_tokens": 12},
            "adapter": {"rank": 4},
            "optimizer": {"lr": 1e-2},
            "steps": 4,
            **changes,
        }
    )
