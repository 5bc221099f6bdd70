"""Kinds of adapter: importing this package registers them."""

from collections.abc import Sequence

from gradlab.adapters import full, lora
from gradlab.adapters.base import ADAPTERS, Adapter, ProbedLinear, inner_products
from gradlab.config import AdapterConfig
from gradlab.models import LanguageModel

__all__ = ["ADAPTERS", "Adapter", "ProbedLinear", "attach", "full", "inner_products", "lora"]


def attach(lm: LanguageModel, configs: Sequence[AdapterConfig], seeds: Sequence[int]) -> Adapter:
    """Put the runs' adapter on `lm`; its modules are changed in place, its frozen weights never."""
    kinds = {config.kind for config in configs}
    if len(kinds) != 1:
        raise ValueError(f"adapter.kind: expected one kind in a pack; found {sorted(kinds)}")
    return ADAPTERS[kinds.pop()](lm, configs, seeds)
