"""Make a base model from scratch: tokenizer, pretraining, and the base rates that prove it useful.

Plain next-token training (AdamW, cosine) on documents packed into rows of fixed length; a document
never sees its neighbours in a row. Prompts are given, never generated, so the loss reads completions
only. The same seed and number of threads give the same bits.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from gradlab.base_rates import base_rates, check_bands, check_names
from gradlab.config import BaseConfig
from gradlab.data import load_split
from gradlab.models import wrap
from gradlab.store import digest, read_jsonl, write_json
from gradlab.tokenizer import encode_document, train_tokenizer

_FAMILIES = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
}


def make_base(config: BaseConfig, out: str | Path) -> dict[str, Any]:
    """Train the model of `config` and write it, its tokenizer and `base.json` into the folder `out`.

    Returns what `base.json` holds. `base.json` comes last: a folder without it is not a base.
    Raises ValueError for bad rows, a document longer than a row, and a base rate outside its band;
    nothing is written then.
    """
    check_names(config.bands)
    texts = documents(config.corpus)
    heldout = [example for file in load_split(config.heldout) for example in file] if config.heldout else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tokenizer = train_tokenizer((prompt + completion for prompt, completion in texts), config.vocab_size)
        model = build_model(config, tokenizer)
        loss = pretrain(model, [encode_document(tokenizer, *text) for text in texts], config)
    rates = base_rates(wrap(model, tokenizer), heldout, config.seed)
    summary = {
        "family": config.family,
        "parameters": model.num_parameters(),
        "final_loss_nats_per_token": loss,
        "rates": {name: {**rate, "band": config.bands.get(name)} for name, rate in rates.items()},
        "config": config.model_dump(mode="json"),
        "config_digest": digest(config.model_dump(mode="json")),
        "threads": torch.get_num_threads(),
    }
    for name, rate in rates.items():
        print(f"{name:26s} {rate['value']:8.3f}  n={rate['n']:<6d} band {config.bands.get(name, 'none')}")
    check_bands(rates, config.bands)
    _write(Path(out), model, tokenizer, summary)
    return summary


def documents(paths: Sequence[str | Path]) -> list[tuple[str, str]]:
    """(prompt, completion) of every document; a preference pair gives two."""
    texts = []
    for path in paths:
        for number, row in enumerate(read_jsonl(path), start=1):
            found = [row[key] for key in ("completion", "chosen", "rejected") if key in row]
            if "prompt" not in row or not found:
                raise ValueError(
                    f"{path}:{number}: expected `prompt` with `completion`, or with `chosen` and `rejected`; "
                    f"found {', '.join(row)}. Add the key, or take the file out of `corpus`."
                )
            texts += [(row["prompt"], completion) for completion in found]
    return texts


def build_model(config: BaseConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Random weights (from torch's global generator) in the shape of `config`, float32, embeddings tied."""
    special = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    shape = _FAMILIES[config.family](
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.hidden_size // config.num_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=True,
        **special,
    )
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(**special)
    return model


def pack(docs: Sequence[tuple[list[int], int]], row_tokens: int, pad_id: int, order: Iterator[int]) -> Iterator[Tensor]:
    """Rows (3, row_tokens) of ids, targets, positions; `docs` are (ids, prompt length), each whole, in `order`.

    Positions start anew with each document, by which transformers keeps their attention apart. Targets
    are the tokens of completions with their EOS; where the next token is prompt or padding, -100.
    """
    row: list[tuple[int, int, int]] = []
    for index in order:
        doc, n_prompt = docs[index]
        if len(doc) > row_tokens:
            raise ValueError(f"row_tokens: expected at least the longest document, {len(doc)}; found {row_tokens}.")
        if len(row) + len(doc) > row_tokens:
            yield torch.tensor(row + [(pad_id, -100, 0)] * (row_tokens - len(row))).T
            row = []
        targets = [-100] * (n_prompt - 1) + doc[n_prompt:] + [-100]
        row += zip(doc, targets, range(len(doc)), strict=True)


def _shuffled(n: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()


def pretrain(model: PreTrainedModel, docs: Sequence[tuple[list[int], int]], config: BaseConfig) -> float | None:
    """Train in place for `config.steps`. Returns the mean loss of the last tenth, nats per token; None: no steps."""
    rows = pack(docs, config.row_tokens, model.config.pad_token_id, _shuffled(len(docs), config.seed))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95))
    warmup = max(1, config.steps // 20)
    losses = []
    model.train()
    with tqdm(total=config.steps, desc="pretrain", unit="step", mininterval=2.0) as progress:
        for step in range(config.steps):
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / config.steps)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(1.0, (step + 1) / warmup) * (0.1 + 0.9 * cosine)
            batch = torch.stack([next(rows) for _ in range(config.batch_tokens // config.row_tokens)])
            ids_BT, target_BT, position_BT = batch.unbind(1)
            logits_BTV = model(input_ids=ids_BT, position_ids=position_BT, use_cache=False).logits
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise ValueError(
                    f"lr: expected a finite loss; found {losses[-1]} at step {step}. Lower lr={config.lr}."
                )
            progress.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            progress.update()
    model.eval()
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last) if last else None


def _write(out: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, summary: dict[str, Any]) -> None:
    """Write beside `out`, then move in file by file, base.json last."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        out.mkdir(parents=True, exist_ok=True)
        (out / "base.json").unlink(missing_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(out / file.name)
        write_json(out / "base.json", summary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
