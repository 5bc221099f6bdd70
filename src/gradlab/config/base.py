"""A model made here: config/bases/<name>.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gradlab.config.frozen import Frozen, nearest_multiple


class BaseConfig(Frozen):
    """A model made here from scratch: config/bases/<name>.yaml."""

    family: Literal["llama", "mistral", "qwen2", "qwen3", "gemma3"] = "llama"
    """Architecture."""
    vocab_size: int = Field(1024, ge=64)
    """Most entries of the tokenizer that is trained on the corpus."""
    hidden_size: int = Field(128, ge=8)
    """Width."""
    intermediate_size: int = Field(384, ge=8)
    """Width of the gated MLP."""
    num_layers: int = Field(4, ge=1)
    """Blocks."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    num_kv_heads: int = Field(2, ge=1)
    """Key-value heads."""
    context: int = Field(512, ge=32)
    """Longest sequence, prompt and completion."""
    corpus: tuple[str, ...]
    """JSONL files of documents to train on: `prompt` followed by `completion`, or by `chosen` and by `rejected`."""
    heldout: tuple[str, ...] = ()
    """JSONL files of prompts on which the base rates are measured."""
    steps: int = Field(1500, ge=0)
    """Optimizer steps; 0: random weights."""
    batch_tokens: int = Field(1024, ge=1)
    """Tokens a step, padding included. Must be a multiple of row_tokens."""
    row_tokens: int = Field(128, ge=2)
    """Length of a row, into which several whole documents are packed; none may be longer."""
    lr: float = Field(3e-3, gt=0)
    """Peak learning rate (AdamW, cosine to a tenth)."""
    seed: int = Field(0, ge=0)
    """Seed of weights, data order and of the sampling that measures the base rates."""
    bands: dict[str, tuple[float, float]] = {}
    """Base rates that the model must meet on held-out prompts, as name: [low, high]; outside: error."""

    @model_validator(mode="after")
    def _consistent(self) -> BaseConfig:
        for name, value, divisor_name, divisor in (
            ("hidden_size", self.hidden_size, "2 * num_heads", 2 * self.num_heads),
            ("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads),
            ("batch_tokens", self.batch_tokens, "row_tokens", self.row_tokens),
        ):
            if value % divisor:
                raise ValueError(
                    f"{name}: expected a multiple of {divisor_name}={divisor}; found {value}. "
                    f"Try {nearest_multiple(value, divisor)}."
                )
        if self.row_tokens > self.context:
            raise ValueError(f"row_tokens: expected at most context={self.context}; found {self.row_tokens}.")
        for name, (low, high) in self.bands.items():
            if low > high:
                raise ValueError(f"bands.{name}: expected [low, high] with low <= high; found [{low}, {high}].")
        return self
