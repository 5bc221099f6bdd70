"""What a run is: its specification, and a readable id that ends in the specification's digest. No torch.

The specification is the canonical JSON of all that affects what training writes: values that differ from
their defaults, the base model made here, and meaning versions above 1. So a new option with the old
behaviour as default renames nothing, and neither does placement, evaluation or the order of YAML keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import gradlab.objectives  # noqa: F401  (fills the registry)
from gradlab.config import BaseConfig, EvaluationConfig, ObjectiveConfig, PlacementConfig, RunConfig
from gradlab.objectives.base import OBJECTIVES, build
from gradlab.registry import unknown
from gradlab.store import canonical, digest

MEANING = {
    "adapter/full": 1,
    "adapter/lora": 1,
    "credit/grpo": 1,
    "credit/reinforce": 1,
    "credit/rloo": 1,
    "data": 1,
    "gradients": 1,
    "loss": 1,
    "optimizer": 1,
    "pretrain": 1,
    "rollout": 1,
    "weighting/aligned_mtl": 1,
    "weighting/cagrad": 1,
    "weighting/cosine": 1,
    "weighting/ctwa": 1,
    "weighting/dualproj": 1,
    "weighting/fairgrad": 1,
    "weighting/fixed": 1,
    "weighting/gradvac": 1,
    "weighting/imtl_g": 1,
    "weighting/krum": 1,
    "weighting/linear": 1,
    "weighting/mgda": 1,
    "weighting/nash_mtl": 1,
    "weighting/pcd": 1,
    "weighting/pcgrad": 1,
    "weighting/random": 1,
    "weighting/synergy": 1,
    "weighting/upgrad": 1,
}
"""What each engine part means, as a version bumped by hand when its results change. `kind/name` counts only for
the runs that use it. Version 1 is left out of specifications: a part that is added renames no run."""

EVALUATION_MEANING = 1
"""Likewise for evaluation: bumping it evaluates every run again and retrains none."""

SHORT = {
    "model.id": "",
    "weighting.name": "",
    "adapter.rank": "r",
    "adapter.alpha": "a",
    "optimizer.lr": "lr",
    "algorithm.beta": "b",
    "algorithm.clip_epsilon": "clip",
    "algorithm.inner_epochs": "inner",
    "rollout.temperature": "t",
    "rollout.batch_size": "B",
    "rollout.num_generations": "g",
    "rollout.max_new_tokens": "len",
    "steps": "n",
}
"""Short names in run ids, in this order; other keys follow by name, the seed is last."""

SLUG_LIMIT = 160  # characters; file systems allow 255 a name


def specification(config: RunConfig, base: BaseConfig | None) -> str:
    """The one string that decides whether two runs are the same. `base` is the model made here, if any.

    Raises ValueError naming an objective, or a parameter of one, that does not exist or is out of range.
    """
    objectives, versions = {}, {}
    for label, objective in config.enabled_objectives.items():
        kind = objective.kind or label
        if kind not in OBJECTIVES.names():
            raise ValueError(unknown(f"objectives.{label}", kind, OBJECTIVES.names()))
        params = build(label, objective).model_dump(mode="json", exclude_defaults=True)
        objectives[label] = ObjectiveConfig(
            kind=None if kind == label else kind, weight=objective.weight, params=params
        )
        versions[f"objective/{kind}"] = OBJECTIVES.version(kind)
    own = {f"adapter/{config.adapter.kind}", f"credit/{config.algorithm.name}", f"weighting/{config.weighting.name}"}
    own |= {"pretrain"} if base else set()
    versions |= {part: v for part, v in MEANING.items() if part in own or not ("/" in part or part == "pretrain")}
    trained = config.model_copy(
        update={"objectives": objectives, "placement": PlacementConfig(), "evaluation": EvaluationConfig()}
    )
    checks: dict[str, Any] = {"bands": {}, "heldout": ()}  # they judge the base and leave its weights alone
    spec = {
        "run": trained.model_dump(mode="json", exclude_defaults=True),
        "base": base.model_copy(update=checks).model_dump(mode="json", exclude_defaults=True) if base else None,
        "versions": {part: version for part, version in versions.items() if version != 1},
    }
    return canonical({key: value for key, value in spec.items() if value})


def parse(spec: str) -> RunConfig:
    """The configuration inside a specification, with default placement and evaluation."""
    return RunConfig.model_validate(json.loads(spec)["run"])


def varying(config: RunConfig, keys: Iterable[str]) -> dict[str, Any]:
    """Resolved plain values of dotted `keys`, in the order of run ids; keys this run does not have are left out."""
    order = [*SHORT]
    values = {}
    dumped = config.model_dump(mode="json")
    for key in sorted(keys, key=lambda k: (k == "seed", order.index(k) if k in order else len(order), k)):
        value: Any = dumped
        for part in key.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            values[key] = ",".join(map(str, value)) if isinstance(value, list) else value
    return values


def run_id(config: RunConfig, variant: str, varies: dict[str, Any], spec: str) -> str:
    """Like `grpo_lora_r4_lr3e-4_b0.02_s42-1a2b3c4d`, safe as a folder name."""
    shown = ("variant", "algorithm.name", "adapter.kind")
    parts = [config.algorithm.name, config.adapter.kind, *([variant] if variant else [])]
    parts += [_label(key) + _text(v) for key, v in varies.items() if key not in shown and v != variant]
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(parts))[:SLUG_LIMIT]
    return f"{slug}-{digest(json.loads(spec))}"


def _label(key: str) -> str:
    """The short name; an objective's keys carry its label, its weight nothing else; else the last component."""
    if key == "seed":
        return "s"
    if key.startswith("objectives."):
        parts = key.split(".")
        return "-".join([parts[1], *(part for part in parts[2:] if part not in ("params", "weight"))])
    return SHORT.get(key, key.split(".")[-1])


def _text(value: Any) -> str:
    if isinstance(value, float):
        mantissa, e, exponent = (f"{value:e}" if 0 < abs(value) < 0.01 else f"{value:g}").partition("e")
        # Without the sign of 1e+30, which a file name would turn into a minus.
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if e else mantissa
    return str(value).lower() if value in (True, None) else str(value)
