"""Load a frozen base model and its tokenizer; encode prompts.

Correctness gates stand here, at the border: the LM head must be a plain linear of the last hidden
state, prompts carry no EOS, and completion masks never depend on token values (pad may equal EOS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from gradlab.bases import resolve
from gradlab.config import ModelConfig
from gradlab.types import Example, Rollout

# Families whose last-hidden-state-times-LM-head form and module names are tested here.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM cut in two: `backbone` (ids to last hidden states) and the LM head's weight.

    model       the whole transformers model
    tokenizer   its tokenizer
    eos_ids     every id that ends a completion
    pad_id      filler in right-padded rows; never read as a mask
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    pad_id: int

    @property
    def backbone(self) -> nn.Module:
        return self.model.base_model

    @property
    def head_weight(self) -> Tensor:
        """(V, H)"""
        return self.model.get_output_embeddings().weight

    @property
    def device(self) -> torch.device:
        return self.head_weight.device

    def hidden(self, ids_NT: Tensor) -> Tensor:
        """Last hidden states (N, T, H) of right-padded rows.

        Without an attention mask: padding stands on the right, so causal attention never sees it.
        """
        return self.backbone(input_ids=ids_NT, use_cache=False).last_hidden_state

    def decode(self, rollout: Rollout) -> list[str]:
        """Completion texts without EOS and other special tokens; one transfer for all rows."""
        ids, first, last = rollout.ids_NT.tolist(), rollout.prompt_len_N.tolist(), rollout.length_N.tolist()
        parts = [row[a:b] for row, a, b in zip(ids, first, last, strict=True)]
        return self.tokenizer.batch_decode(parts, skip_special_tokens=True)


def load(config: ModelConfig, bases: str | Path = "results/base", device: str = "auto") -> LanguageModel:
    """Model in evaluation mode with every weight frozen, and its tokenizer.

    Raises ValueError when the LM head is not plain, an unknown architecture family is asked for
    quantization, or the tokenizer has no EOS.
    """
    place = pick_device(device)
    source = resolve(config.id, bases)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        revision=config.revision,
        dtype=getattr(torch, config.dtype),
        attn_implementation="sdpa",
        quantization_config=_quantization(config),
        **({"device_map": {"": place}} if config.quantize != "none" else {}),
    )
    if config.quantize == "none":
        model.to(place)  # type: ignore[arg-type]  # the decorated method loses its type
    return wrap(model, tokenizer)


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """Freeze `model`, check its LM head and collect its special tokens."""
    model.eval().requires_grad_(False)
    _keep_differentiable(model)
    check_head(model)
    eos = model.generation_config.eos_token_id if model.generation_config is not None else None
    eos = eos if eos is not None else tokenizer.eos_token_id
    if eos is None:
        raise ValueError("tokenizer: expected an EOS token, which ends completions; found none. Set eos_token.")
    eos_ids = tuple(eos) if isinstance(eos, Sequence) else (int(eos),)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    return LanguageModel(model, tokenizer, eos_ids, int(pad_id))


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ValueError for `cuda` without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("placement.device: expected a CUDA device; found none. Use `cpu` or `auto`.")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use_cuda else "cpu")


def _quantization(config: ModelConfig) -> BitsAndBytesConfig | None:
    if config.quantize == "none":
        return None
    if config.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Put bitsandbytes' linears alone into training mode, which for them only chooses a kernel.

    In evaluation mode on a CPU, the first forward without gradients repacks NF4 weights for a kernel that
    has no backward: the gradient through the base is lost, and numbers depend on what ran before.
    """
    if getattr(model, "is_quantized", False):
        from bitsandbytes.nn import Linear4bit, Linear8bitLt  # here: importing it takes a second

        for module in model.modules():
            if isinstance(module, Linear4bit | Linear8bitLt):
                module.train()


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise ValueError unless logits are `last_hidden_state @ head.weight.T`, nothing added.

    The fused LM head computes that and no more; soft-capping, a bias or a logit scale would be
    dropped silently. The head's output is made large first: a soft cap is the identity on small logits.
    """
    head = model.get_output_embeddings()
    ids = torch.arange(4, device=head.weight.device).unsqueeze(0)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    found = (hidden.to(head.weight.dtype) @ head.weight.T).float()
    gain = 1000 / found.abs().max().clamp(min=1e-6).item()
    handle = head.register_forward_hook(lambda _module, _inputs, output: gain * output)
    try:
        expected = model(input_ids=ids, use_cache=False).logits.float() / gain
    finally:
        handle.remove()
    if not torch.allclose(expected, found, rtol=1e-2, atol=1e-3 * found.abs().max().item()):
        raise ValueError(
            f"model: expected logits = last hidden state times LM head ({', '.join(FAMILIES)}); found a "
            f"{model.config.model_type} whose head adds something (bias, scale or soft cap). It is not supported."
        )


def encode_prompt(lm: LanguageModel, example: Example, chat_template: bool) -> list[int]:
    """Prompt ids without a trailing EOS (a tokenizer that appends one would end every prompt)."""
    if chat_template:
        if lm.tokenizer.chat_template is None:
            raise ValueError(
                "model.chat_template: expected a tokenizer with a chat template; found none. Set it to false."
            )
        templated: Any = lm.tokenizer.apply_chat_template(
            [{"role": "user", "content": example.prompt}], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        return list(templated)
    ids = list(lm.tokenizer(example.prompt)["input_ids"])
    while ids and ids[-1] in lm.eos_ids:
        ids.pop()
    if not ids:
        raise ValueError(f"prompt of example {example.id!r}: expected at least one token; found none")
    return ids


def check_context(lm: LanguageModel, prompts: dict[str, list[int]], max_new_tokens: int) -> None:
    """Raise ValueError naming the first example whose prompt and completion exceed the context."""
    context = lm.model.config.max_position_embeddings
    if max_new_tokens >= context:
        raise ValueError(
            f"rollout.max_new_tokens: expected less than the context of {context} tokens; found {max_new_tokens}."
        )
    for name, ids in prompts.items():
        if len(ids) + max_new_tokens > context:
            raise ValueError(
                f"prompt of example {name!r}: expected at most {context - max_new_tokens} tokens (context {context} "
                f"less rollout.max_new_tokens {max_new_tokens}); found {len(ids)}. "
                "Shorten the prompt or lower rollout.max_new_tokens."
            )
