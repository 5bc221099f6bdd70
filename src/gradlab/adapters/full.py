"""Every weight is trained; the reference is a frozen copy. One run a process: nothing is shared."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from gradlab.adapters.base import ADAPTERS, Adapter, ProbedLinear, inner_products, layer_of
from gradlab.config import AdapterConfig
from gradlab.models import LanguageModel


def linear_score(linear: nn.Linear, x_NTI: Tensor, dy_NTO: Tensor) -> Tensor:
    """Per-row gradients of an ordinary linear: weight (O, I), then bias (O) if there is one."""
    parts = [torch.bmm(dy_NTO.mT, x_NTI).flatten(1)]
    if linear.bias is not None:
        parts.append(dy_NTO.sum(1))
    return torch.cat(parts, dim=1)


@ADAPTERS.register("full")
class Full(Adapter):
    """Full fine-tuning. A probe covers weights and biases of the blocks' linears, not norms or embeddings."""

    space = "weights"
    stacked = False

    def __init__(self, lm: LanguageModel, configs: Sequence[AdapterConfig], seeds: Sequence[int]) -> None:
        super().__init__(lm, configs, seeds)
        if len(configs) != 1:
            raise ValueError(f"adapter.kind: expected one `full` run a process; found a pack of {len(configs)}")
        lm.model.requires_grad_(True)
        self._reference: LanguageModel | None = None

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.lm.model.named_parameters())

    def keep_reference(self) -> None:
        self._reference = replace(self.lm, model=copy.deepcopy(self.lm.model).requires_grad_(False))

    @contextlib.contextmanager
    def reference(self) -> Iterator[LanguageModel]:
        assert self._reference is not None, "keep_reference() was not called before training"
        yield self._reference

    def weight(self, linear: nn.Module) -> Tensor:
        return linear.weight.mT.unsqueeze(0)  # type: ignore[operator]

    def linears(self) -> list[ProbedLinear]:
        return [
            ProbedLinear(name, layer_of(name), m, partial(linear_score, m), tuple(m.parameters()), inner_products)
            for name, m in self.lm.model.named_modules()
            if isinstance(m, nn.Linear) and layer_of(name) >= 0
        ]

    def save(self, run: int, folder: Path) -> None:
        """A whole model in transformers' format, tokenizer included."""
        self.lm.model.save_pretrained(folder)
        self.lm.tokenizer.save_pretrained(folder)

    def load(self, run: int, folder: Path) -> None:
        try:
            load_model(self.lm.model, folder / "model.safetensors")
        except RuntimeError as error:  # names or shapes differ
            raise ValueError(f"{folder}: expected the weights of this model; found others. {error}") from error
