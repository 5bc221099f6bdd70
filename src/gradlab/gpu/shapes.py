"""Sizes of a model told from its configuration alone, before there are weights. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from gradlab.config import BaseConfig, ModelConfig


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes. `linears` of one block: name to (in, out)."""

    parameters: int
    vocabulary: int
    width: int
    mlp: int
    layers: int
    kv_width: int
    context: int
    linears: dict[str, tuple[int, int]]

    @property
    def block_weights(self) -> int:
        """Weights of all blocks' linears: what quantization shrinks and sampling merges."""
        return min(self.parameters, self.layers * sum(i * o for i, o in self.linears.values()))


def shape_of(model: ModelConfig, base: BaseConfig | None) -> Shape:
    """Exact for a model made here, from config.json for a folder, from the size in its name for one of the hub.

    Raises ValueError naming `placement.gpu_slots` when neither tells.
    """
    if base is not None:
        heads = (base.num_heads, base.num_kv_heads, base.hidden_size // base.num_heads)
        sizes = (base.vocab_size, base.hidden_size, base.intermediate_size, base.num_layers)
        return _shape(base.family, sizes, heads, base.context, tied=True)
    if model.id.startswith(("./", "../", "/")):
        return _folder(Path(model.id) / "config.json")
    return _named(model.id)


def _shape(
    family: str, sizes: tuple[int, int, int, int], heads: tuple[int, int, int], context: int, tied: bool
) -> Shape:
    """A Llama-shaped model. sizes: vocabulary, width, MLP, layers; heads: queries', keys', width of one."""
    (vocabulary, width, mlp, layers), (query_heads, key_heads, head) = sizes, heads
    q, kv = query_heads * head, key_heads * head
    linears = {"q_proj": (width, q), "k_proj": (width, kv), "v_proj": (width, kv), "o_proj": (q, width)}
    linears |= {"gate_proj": (width, mlp), "up_proj": (width, mlp), "down_proj": (mlp, width)}
    small = {"qwen2": 2 * width + q + 2 * kv, "qwen3": 2 * width + 2 * head, "gemma3": 4 * width + 2 * head}
    block = sum(i * o for i, o in linears.values()) + small.get(family.removesuffix("_text"), 2 * width)
    parameters = layers * block + (1 if tied else 2) * vocabulary * width + width
    return Shape(parameters, vocabulary, width, mlp, layers, kv, context, linears)


def _folder(path: Path) -> Shape:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        width, heads = found["hidden_size"], found["num_attention_heads"]
        return _shape(
            found["model_type"],
            (found["vocab_size"], width, found["intermediate_size"], found["num_hidden_layers"]),
            (heads, found.get("num_key_value_heads") or heads, found.get("head_dim") or width // heads),
            found["max_position_embeddings"],
            tied=found.get("tie_word_embeddings", False),
        )
    except FileNotFoundError:
        raise _unknown(str(path.parent), "has no config.json") from None
    except json.JSONDecodeError as error:
        raise _unknown(str(path.parent), f"has a config.json that is no JSON ({error})") from None
    except KeyError as error:
        raise _unknown(str(path.parent), f"has no {error} in its config.json") from None


def _named(name: str) -> Shape:
    """Usual proportions: an MLP of 3 widths, one block and one head for every 64 of width, four heads to a key-value
    head, at most the largest common vocabulary.
    """
    found = re.findall(r"(?:(\d+)x)?(?<![\d.])(\d+(?:\.\d+)?)([mMbB])(?![A-Za-z])", name.rsplit("/", 1)[-1])
    sizes = [float(number) * int(times or 1) * (1e6 if unit in "mM" else 1e9) for times, number, unit in found]
    if not sizes:
        raise _unknown(name, "does not tell its size in its name")
    parameters = int(max(sizes))
    layers = max(1, round((parameters / (12 * 64**2)) ** (1 / 3)))
    width = 64 * layers
    vocabulary = min(152_000, max(256, parameters // (2 * width)))
    heads = (layers, max(1, layers // 4), 64)
    shape = _shape("llama", (vocabulary, width, 3 * width, layers), heads, context=32_768, tied=True)
    return replace(shape, parameters=parameters)


def _unknown(name: str, why: str) -> ValueError:
    return ValueError(
        f"placement.gpu_slots: expected a number for model.id {name!r}, which {why}; found auto. "
        "Give the GPU slots that one job takes, such as placement.gpu_slots: 1."
    )
