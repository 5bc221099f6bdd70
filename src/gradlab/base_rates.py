"""What a base model does before any training: how often it is right, refuses, follows a format.

An objective that the base always or never meets has no variance and teaches nothing, so a base must
stay within its bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from gradlab.adapters import attach
from gradlab.config import AdapterConfig
from gradlab.models import LanguageModel, encode_prompt
from gradlab.objectives import OBJECTIVES
from gradlab.registry import unknown
from gradlab.rollout import sample, uniforms
from gradlab.tokenizer import encode_document
from gradlab.types import Example

SAMPLES_PER_PROMPT = 4
MAX_NEW_TOKENS = 96
NOISE = 0xBA5E  # sets these random numbers apart from those of training and evaluation


@dataclass(frozen=True)
class Rate:
    """Share of completions that `objective` calls right, on the prompts of `task` with these `fields`."""

    objective: str
    task: str
    fields: Mapping[str, Any] = field(default_factory=dict)


RATES = {
    "arithmetic_exactness": Rate("exactness", "arithmetic"),
    "arithmetic_answer_format": Rate("answer_format", "arithmetic"),
    "format_exactness": Rate("exactness", "format"),
    "format_answer_format": Rate("answer_format", "format"),
    "unsafe_refused": Rate("refusal", "safety", {"unsafe": True}),
    "safe_answered": Rate("refusal", "safety", {"unsafe": False}),
    "happy_stories": Rate("happy_binary", "stories"),
}
PERPLEXITY = "story_perplexity"


def base_rates(lm: LanguageModel, heldout: Sequence[Example], seed: int) -> dict[str, dict[str, Any]]:
    """Name to `value` and `n` (completions; tokens for the perplexity), for all that `heldout` has prompts for.

    Completions are sampled at temperature 1, `SAMPLES_PER_PROMPT` a prompt.
    """
    rates = {}
    for task in sorted({rate.task for rate in RATES.values()}):
        examples = [example for example in heldout if example.task == task]
        completions = _complete(lm, examples, seed) if examples else []
        for name, rate in RATES.items():
            judge = OBJECTIVES[rate.objective]()
            chosen = [(e, text) for e, text in completions if rate.fields.items() <= e.fields.items()]
            if rate.task == task and chosen:
                right = sum(judge(text, example).outcome == "right" for example, text in chosen)
                rates[name] = {"value": right / len(chosen), "n": len(chosen)}
    if stories := [(e.prompt, e.fields["completion"]) for e in heldout if e.task == "stories"]:
        value, n = perplexity(lm, stories)
        rates[PERPLEXITY] = {"value": value, "n": n}
    return rates


def _complete(lm: LanguageModel, examples: Sequence[Example], seed: int) -> list[tuple[Example, str]]:
    prompts = [encode_prompt(lm, example, chat_template=False) for example in examples]
    noise = uniforms(seed, NOISE, 0, len(prompts) * SAMPLES_PER_PROMPT, MAX_NEW_TOKENS)
    untrained = attach(lm, [AdapterConfig(kind="full")], [seed])
    rollout = sample(untrained, [prompts], SAMPLES_PER_PROMPT, MAX_NEW_TOKENS, [1.0], noise)
    repeated = [example for example in examples for _ in range(SAMPLES_PER_PROMPT)]
    return list(zip(repeated, lm.decode(rollout), strict=True))


@torch.no_grad()
def perplexity(lm: LanguageModel, texts: Sequence[tuple[str, str]]) -> tuple[float, int]:
    """exp of the mean negative log-prob of the completions' tokens, EOS included; and how many they are."""
    total, n = 0.0, 0
    for prompt, completion in texts:
        ids, n_prompt = encode_document(lm.tokenizer, prompt, completion)
        ids_T = torch.tensor(ids, device=lm.device)
        logits_TV = lm.model(input_ids=ids_T[None], use_cache=False).logits[0, n_prompt - 1 : -1]
        total += F.cross_entropy(logits_TV, ids_T[n_prompt:], reduction="sum").item()
        n += len(ids) - n_prompt
    return math.exp(total / n), n


def check_names(bands: Mapping[str, Any]) -> None:
    """Raise ValueError for a band of a rate that does not exist."""
    known = [*RATES, PERPLEXITY]
    for name in bands:
        if name not in known:
            raise ValueError(unknown("bands", name, known))


def check_bands(rates: Mapping[str, Mapping[str, Any]], bands: Mapping[str, tuple[float, float]]) -> None:
    """Raise ValueError that names every band the model misses."""
    problems = []
    for name, (low, high) in bands.items():
        if name not in rates:
            problems.append(f"bands.{name}: expected held-out prompts to measure it on; found none. Extend `heldout`.")
        elif not low <= rates[name]["value"] <= high:
            problems.append(
                f"bands.{name}: expected a base rate in [{low}, {high}]; found {rates[name]['value']:.3f} "
                f"(n={rates[name]['n']}). Change steps, lr or seed, or the shares in the corpus; widen the band only "
                "if the rate still leaves something to learn."
            )
    if problems:
        raise ValueError("\n".join(problems))
