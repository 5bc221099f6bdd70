"""What is trained, behind one face: parameters, reference, effective weights, probed linears, files."""

from __future__ import annotations

import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gradlab.config import AdapterConfig
from gradlab.models import LanguageModel
from gradlab.registry import Registry

ADAPTERS: Registry[type[Adapter]] = Registry("adapter.kind")


@dataclass(frozen=True)
class ProbedLinear:
    """One linear whose input and output gradient give the per-row scores of what trains in it.

    layer       index of its block, -1 outside the blocks
    module      the module to watch: input (N, T, I), output (N, T, O)
    score       (input, output gradient) to per-row gradients (N, P), rows laid out run by run
    parameters  what those P entries are, in order
    update_gram per-row gradients (R, B, P) to the inner products (R, B, B) of the changes of the linear's weight
                that a step along them makes
    """

    name: str
    layer: int
    module: nn.Module
    score: Callable[[Tensor, Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]
    update_gram: Callable[[Tensor], Tensor]

    @property
    def part(self) -> str:
        """attention, mlp, or other: from the names that transformers gives a block's halves."""
        return "attention" if ".self_attn." in self.name else "mlp" if ".mlp." in self.name else "other"


def inner_products(score_RBP: Tensor) -> Tensor:
    """(R, B, B): where the parameters are the weight itself, its update's Gram is that of its gradients."""
    return torch.bmm(score_RBP, score_RBP.mT)


def layer_of(name: str) -> int:
    """The block index in a module name such as `model.layers.3.mlp.up_proj`; -1 outside the blocks."""
    match = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


class Adapter(ABC):
    """The trained parameters of R runs on one frozen base.

    `stacked` says that every parameter has a leading run axis (R, ...).
    """

    space: str  # in which a gradient cosine is taken: "factors" or "weights"
    stacked: bool

    def __init__(self, lm: LanguageModel, configs: Sequence[AdapterConfig], seeds: Sequence[int]) -> None:
        self.lm, self.configs = lm, tuple(configs)

    @property
    def runs(self) -> int:
        return len(self.configs)

    @abstractmethod
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, in the order of axis P."""

    def keep_reference(self) -> None:  # noqa: B027 nothing to keep is the ordinary case
        """Called once before training when something is measured against the reference."""

    @abstractmethod
    def reference(self) -> contextlib.AbstractContextManager[LanguageModel]:
        """The model that KL is measured against: what the policy was before training."""

    @abstractmethod
    def weight(self, linear: nn.Module) -> Tensor:
        """Effective weight of a linear for the decoder, (R, I, O) with the adapter merged, or (1, I, O)."""

    @abstractmethod
    def linears(self) -> list[ProbedLinear]:
        """Every linear that trains, in order."""

    @abstractmethod
    def save(self, run: int, folder: Path) -> None:
        """Write one run's adapter for others to load."""

    @abstractmethod
    def load(self, run: int, folder: Path) -> None:
        """Read what `save` wrote. Raises ValueError when it does not fit."""

    def probed(self, scope: str) -> list[ProbedLinear]:
        """The linears of a probe scope; never empty.

        Raises ValueError when the scope matches nothing that is trained.
        """
        linears = self.linears()
        if scope == "last_block":
            last = self.lm.model.config.num_hidden_layers - 1
            linears = [linear for linear in linears if linear.layer == last]
        if not linears:
            raise ValueError(
                f"probe.scope: expected trained linears in {scope!r}; found none among adapter.targets. "
                "Widen adapter.targets or use probe.scope: adapter."
            )
        return linears
