"""`lr=1e-4,3e-4` on a command line: a key, short as users of TRL know it or dotted, and values as YAML reads them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from gradlab.config import RunConfig
from gradlab.explain import dotted_keys, unknown_key

ALIASES = {
    "adam_epsilon": "optimizer.eps",
    "adapter": "adapter.kind",
    "algorithm": "algorithm.name",
    "alpha": "adapter.alpha",
    "beta": "algorithm.beta",
    "epsilon": "algorithm.clip_epsilon",
    "learning_rate": "optimizer.lr",
    "lora_alpha": "adapter.alpha",
    "lora_r": "adapter.rank",
    "lora_target_modules": "adapter.targets",
    "lr": "optimizer.lr",
    "lr_scheduler_type": "optimizer.schedule",
    "max_completion_length": "rollout.max_new_tokens",
    "max_steps": "steps",
    "model": "model.id",
    "model_name_or_path": "model.id",
    "num_iterations": "algorithm.inner_epochs",
    "per_device_train_batch_size": "rollout.batch_size",
    "r": "adapter.rank",
    "weighting": "weighting.name",
}
"""Names of TRL and PEFT, and endings that several keys share, to the key meant. Any other ending of one key alone
(`num_generations`, `probe.every`, `refusal.weight`) needs no entry."""


def read_assignments(option: str, texts: Iterable[str], labels: Sequence[str]) -> dict[str, list[Any]]:
    """Dotted key to its values, of `key=v1,v2` texts. A value that holds a comma stands in brackets or quotes.

    labels  the objectives' labels, which keys like `refusal.weight` begin with

    Raises ValueError naming option, expected, found and mend.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option}: expected key=value; found {text!r}. Write, for example, seed=1,2.")
        key = dotted_key(option, name.strip(), labels)
        if key in found:
            raise ValueError(f"{option} {name}: expected {key} once; found it again. Give all its values together.")
        found[key] = _values(f"{option} {name}", values)
    return found


def dotted_key(option: str, name: str, labels: Sequence[str] = ()) -> str:
    """The key that `name` means: itself, an alias, or the only key that ends so. Raises ValueError with the nearest."""
    keys = dict.fromkeys(
        key.replace("objectives.<name>", f"objectives.{label}")
        for key in dotted_keys(RunConfig)
        for label in (labels if key.startswith("objectives.") else ("",))
    )
    if name in ALIASES:
        return ALIASES[name]
    if name in keys or ("." in name and unknown_key(name, RunConfig) is None):
        return name
    ending = [key for key in keys if key.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise ValueError(f"{option} {name}: expected one key; found {' and '.join(ending)}. Give the whole key.")
    if "." in name:
        raise ValueError(f"{option} {unknown_key(name, RunConfig)}")
    short = ALIASES | {key.rpartition(".")[2]: key for key in keys if "<name>" not in key}
    near = [
        f"{word} ({short[word]})" if short[word] != word else word
        for word in difflib.get_close_matches(name, short, n=3)
    ]
    hint = f"Did you mean {' or '.join(near)}?" if near else "docs/CONFIG.md lists all keys."
    raise ValueError(f"{option} {name}: expected a known key; found {name!r}. {hint}")


def _values(what: str, text: str) -> list[Any]:
    try:
        values = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(
            f"{what}: expected values with commas between them; found {text!r}: {problem}. Quote what YAML reads "
            "as more than a value."
        ) from None
    if not isinstance(values, list) or not values:
        raise ValueError(f"{what}: expected at least one value; found none. Write {what.split()[-1]}=VALUE.")
    return values
