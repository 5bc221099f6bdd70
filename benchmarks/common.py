"""What the benchmarks share: a policy of the SimpleStories-1.25M shape, prompts, a cheap reward, interleaved timing.

Weights are random and built so that EOS has a chosen probability at every position, for whoever
samples: nothing outside the weights tells the two sides of a comparison when to stop.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def settle() -> None:
    """Start this program again with one thread and with glibc's allocator keeping its memory.

    Call before torch is imported: both are read at process start. `--plain-allocator` leaves glibc's
    defaults, which give large tensors back to the system and fault their pages in again.
    """
    wanted = {**OFFLINE, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if "--plain-allocator" not in sys.argv:
        wanted |= ALLOCATOR
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


if __name__ != "__main__":
    settle()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pydantic import Field  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from gradlab import clock as clock_module  # noqa: E402
from gradlab import engine, models  # noqa: E402
from gradlab.config import RunConfig  # noqa: E402
from gradlab.objectives.base import OBJECTIVES, Objective  # noqa: E402
from gradlab.tokenizer import train_tokenizer  # noqa: E402
from gradlab.types import Example, Score  # noqa: E402

torch.set_num_threads(1)
clock = time.process_time  # one thread: CPU seconds are wall seconds of an idle machine
clock_module.time = SimpleNamespace(perf_counter=clock)  # the phases of a step by the same clock

VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS = 4096, 128, 344, 4, 4, 2
LETTERS = "aeioubkm"


@OBJECTIVES.register("letter_share", version=1)
class LetterShare(Objective):
    """Share of one letter in the completion: a reward that costs next to nothing."""

    letter: str = Field("a", min_length=1, max_length=1)
    """The letter."""

    def score(self, completion: str, example: Example) -> Score:
        return Score(completion.count(self.letter) / len(completion), "graded")


def corpus(seed: int = 0, lines: int = 3000) -> list[str]:
    """Sentences of made-up words: enough of them for 4096 byte-pair entries."""
    rng = np.random.default_rng(seed)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(6000)]
    return [" ".join(rng.choice(words, rng.integers(8, 24))) for _ in range(lines)]


_TOKENIZER: list[Any] = []


def tokenizer() -> Any:
    if not _TOKENIZER:
        _TOKENIZER.append(train_tokenizer(corpus(), VOCABULARY))
        assert len(_TOKENIZER[0]) == VOCABULARY, len(_TOKENIZER[0])
    return _TOKENIZER[0]


@torch.no_grad()
def policy(eos_probability: float, seed: int = 0) -> LlamaForCausalLM:
    """Random weights of 1.25M parameters whose EOS has `eos_probability` at every position; 0: never.

    Channel 0 of the residual stream is the constant 1 for every token: no block writes to it. Its
    share in the EOS row of the tied embedding is therefore a bias on the logit of EOS.
    """
    torch.manual_seed(seed)
    tok = tokenizer()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval()
    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = 1.0
    embedding[tok.pad_token_id, 0] = -1e4
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    embedding[tok.eos_token_id] = 0.0
    embedding[tok.eos_token_id, 0] = -1e4
    if eos_probability:
        ids = torch.tensor([tok(line)["input_ids"][:32] for line in corpus()[:64] if len(tok(line)["input_ids"]) >= 32])
        others = model(input_ids=ids).logits.logsumexp(-1)
        constant = model.model(input_ids=ids).last_hidden_state[..., 0]
        wanted = others + math.log(eos_probability / (1 - eos_probability))
        embedding[tok.eos_token_id, 0] = (wanted / constant).mean()
    return model


def write_prompts(folder: Path, count: int = 64, tokens: int = 32) -> dict[str, Path]:
    """Prompt files of exactly `tokens` tokens a prompt, no two alike."""
    tok, files = tokenizer(), {}
    prompts = []
    for line in corpus(seed=1):
        ids = tok(line)["input_ids"][:tokens]
        text = tok.decode(ids)
        if len(ids) == tokens and tok(text)["input_ids"] == ids:
            prompts.append(text)
    for split, part in (("train", prompts[:count]), ("heldout", prompts[count : count + 4])):
        files[split] = folder / f"{split}.jsonl"
        rows = [{"id": f"{split}-{i}", "task": "stories", "prompt": text} for i, text in enumerate(part)]
        files[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def objectives(count: int) -> dict[str, Any]:
    return {f"letter_{c}": {"kind": "letter_share", "params": {"letter": c}} for c in LETTERS[:count]}


def run_config(files: Mapping[str, Path], **changes: Any) -> RunConfig:
    """GRPO with LoRA rank 8 on all linears, beta 0.04, 32 rows of 16 generations, 128 new tokens."""
    values: dict[str, Any] = {
        "model": {"id": "benchmark"},
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16},
        "algorithm": {"name": "grpo", "beta": 0.04},
        "objectives": objectives(1),
        "data": {"train": [str(files["train"])], "heldout": [str(files["heldout"])]},
        "rollout": {"batch_size": 32, "num_generations": 16, "max_new_tokens": 128},
        "optimizer": {"lr": 1e-4},
        "probe": {"every": 0},
        "logging_steps": 10,
        "steps": 100,
    }
    return RunConfig.model_validate({**values, **changes})


def trainer(configs: Sequence[RunConfig], folder: Path, model: LlamaForCausalLM) -> engine.Trainer:
    """A Trainer of these runs on its own model, in a fresh work folder."""
    work = [Path(tempfile.mkdtemp(dir=folder)) for _ in configs]
    return engine.Trainer(configs, [str(w) for w in work], work, models.wrap(model, tokenizer()))


def interleaved(sides: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each side, called in turn, `rounds` times; each side returns what its call took."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + rounds):
        for name, call in sides.items():
            took = call()
            if turn >= warmup:
                seconds[name].append(took)
    return seconds


def stepper(trainer: engine.Trainer) -> Callable[[], float]:
    """A function that takes the trainer's next step and returns its seconds."""
    steps = itertools.count()

    def step() -> float:
        start = clock()
        trainer.step(next(steps))
        return clock() - start

    return step


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and the range of the middle half."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratio of each pair of neighbours in time: what the machine did to one it did to the other."""
    return [a / b for a, b in zip(above, below, strict=True)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def last_metrics(trainer: engine.Trainer, run: int = 0) -> dict[str, Any]:
    """The newest row of a run's metrics.jsonl."""
    return json.loads((trainer.logs[run].folder / "metrics.jsonl").read_text().splitlines()[-1])
