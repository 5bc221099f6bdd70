"""What the sampling loop needs of a model: prefill, one more token, and dropping rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Decoder(Protocol):
    """Float32 logits of the next token, with a key-value cache inside."""

    def prefill(self, prompts: Sequence[Sequence[int]], num_generations: int, max_new_tokens: int) -> Tensor:
        """Each prompt once; the cache then holds `num_generations` rows of each. Returns (N, V)."""

    def step(self, tokens_N: Tensor) -> Tensor:
        """Append one token to every row. Returns (N, V)."""

    def keep(self, index: Tensor) -> None:
        """Go on with these rows of the current batch only."""
