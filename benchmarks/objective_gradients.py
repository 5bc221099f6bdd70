"""The K x K Gram of K objectives' policy gradients over the LoRA parameters: what each way to it costs.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/objective_gradients.py [--models toy qwen2] [--rounds 12]

Objective k's loss is -sum_b a_bk mean_t log pi(token bt). All methods make the same forward pass (backbone, fused
LM head) of the same rows, once, in their measured time:

    explicit          K calls of torch.autograd.grad, the graph kept for all but the last
    autojac           torchjd.autojac.jac of the K losses: all at once (vmap), or one at a time
    autogram K        torchjd.autogram's engine on the K losses (batch_dim=None)
    autogram B        the same engine on the B rows (batch_dim=0), then a^T G a
    score Gram        gradlab's Probe, then a^T G a; scope `adapter`, and `last_block`, which is another quantity

`batch_dim=0` calls each module under vmap, which the stacked adapter's hand-written backward does not allow: that row
runs on LoRA made of plain nn.Linear with the same weights, as PEFT's. So does `explicit, HF logits`, which is
what one writes without this library: the model's logits, log_softmax, gather.

Time: CPU seconds of one thread, all methods in turn, over those of one forward and one backward pass of the sum.
Memory: a fresh process for each method, in which tensors are mapped and unmapped by themselves
(MALLOC_MMAP_THRESHOLD_); high-water mark of resident memory (VmHWM, reset before each call) above what was resident
just before the call.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import common
import torch
from torch import Tensor, nn
from torchjd.autogram import Engine
from torchjd.autojac import jac
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from gradlab import models
from gradlab.adapters import Adapter, attach
from gradlab.config import AdapterConfig
from gradlab.gradients import Probe
from gradlab.logprob import token_logp
from gradlab.microbatch import Microbatch, plan
from gradlab.types import Rollout

KS = (3, 8)
BASELINE, REFERENCE, LAST = "one forward, one backward", "explicit", "explicit, last block"
WARMUP_TOKENS = 4
TOKENS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True}


def toy() -> PreTrainedModel:
    """The shape of the demo's base: 0.9M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1013,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            **TOKENS,
        )
    )


def qwen2() -> PreTrainedModel:
    """98M parameters."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=32000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=2,
            **TOKENS,
        )
    )


@dataclass(frozen=True)
class Shape:
    build: Callable[[], PreTrainedModel]
    rows: int
    prompt: int
    completion: int


SHAPES = {"toy": Shape(toy, 32, 20, 40), "qwen2": Shape(qwen2, 4, 16, 48)}


class PlainLoRA(nn.Module):
    """LoRA of two nn.Linear beside the base, with the weights of a stacked one."""

    def __init__(self, stacked: nn.Module) -> None:
        super().__init__()
        (_, rank, width), height = stacked.A_RrI.shape, stacked.B_ROr.shape[1]
        self.base, self.scale = stacked.base, float(stacked.scale_R11)
        self.a, self.b = nn.Linear(width, rank, bias=False), nn.Linear(rank, height, bias=False)
        with torch.no_grad():
            self.a.weight.copy_(stacked.A_RrI[0])
            self.b.weight.copy_(stacked.B_ROr[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x)) * self.scale


@dataclass
class Case:
    """A policy with LoRA rank 8 on all linears, away from its start, and rows of tokens to score."""

    adapter: Adapter
    micro: Microbatch
    weight_M: Tensor
    parameters: list[nn.Parameter]
    last_block: list[nn.Parameter]

    @property
    def rows(self) -> int:
        return len(self.micro.rows)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """hidden_MH, logp_M and the unit gradient of the fused head."""
        lm = self.adapter.lm
        hidden_MH = self.micro.hidden(lm)
        logp_M, _, unit_MH = token_logp(hidden_MH, lm.head_weight, self.micro.target_M, torch.ones_like(self.weight_M))
        return hidden_MH, logp_M, unit_MH

    def row_means(self) -> Tensor:
        return (self.forward()[1] * self.weight_M).view(self.rows, -1).sum(1)

    def row_means_of_logits(self) -> Tensor:
        logits = self.adapter.lm.model(input_ids=self.micro.ids_NT, use_cache=False).logits
        logp = torch.log_softmax(logits[self.micro.predict_NT], -1).gather(-1, self.micro.target_M[:, None])[:, 0]
        return (logp * self.weight_M).view(self.rows, -1).sum(1)


def case(name: str, plain: bool = False, completion: int | None = None) -> Case:
    shape = SHAPES[name]
    torch.manual_seed(0)
    lm = models.wrap(shape.build(), SimpleNamespace(eos_token_id=1, pad_token_id=0))
    adapter = attach(lm, [AdapterConfig(kind="lora", rank=8, alpha=16)], [0])
    with torch.no_grad():
        for module in adapter.modules.values():
            module.B_ROr.normal_(std=0.02)
    linears = dict(adapter.modules)
    if plain:
        for path, module in linears.items():
            linears[path] = PlainLoRA(module)
            lm.model.set_submodule(path, linears[path])
    last = f".{lm.model.config.num_hidden_layers - 1}."
    generator = torch.Generator().manual_seed(0)
    completion = completion or shape.completion
    tokens = shape.prompt + completion
    rollout = Rollout(
        ids_NT=torch.randint(2, lm.model.config.vocab_size, (shape.rows, tokens), generator=generator),
        prompt_len_N=torch.full((shape.rows,), shape.prompt),
        length_N=torch.full((shape.rows,), tokens),
        logp_NC=torch.zeros(shape.rows, completion),
        ended_N=torch.zeros(shape.rows, dtype=torch.bool),
    )
    (micro,) = plan(rollout, 1, 1_000_000)
    return Case(
        adapter=adapter,
        micro=micro,
        weight_M=torch.full((len(micro.row_M),), 1 / completion),
        parameters=[p for m in linears.values() for p in m.parameters() if p.requires_grad],
        last_block=[p for path, m in linears.items() if last in path for p in m.parameters() if p.requires_grad],
    )


def losses(row_means_B: Tensor, advantages_BK: Tensor) -> Tensor:
    return -(advantages_BK.T @ row_means_B)


def gram(jacobians: list[Tensor]) -> Tensor:
    """From each parameter's (K, ...) Jacobian; nothing is concatenated."""
    return torch.stack([j.flatten(1) @ j.flatten(1).T for j in jacobians]).sum(0)


def forward(case: Case, advantages_BK: Tensor) -> None:
    losses(case.row_means(), advantages_BK)


def baseline(case: Case, advantages_BK: Tensor) -> None:
    torch.autograd.grad(losses(case.row_means(), advantages_BK).sum(), case.parameters)


def explicit(case: Case, advantages_BK: Tensor, logits: bool = False, last_block: bool = False) -> Tensor:
    parameters = case.last_block if last_block else case.parameters
    loss_K = losses(case.row_means_of_logits() if logits else case.row_means(), advantages_BK)
    last = len(loss_K) - 1
    found = [torch.autograd.grad(loss, parameters, retain_graph=k < last) for k, loss in enumerate(loss_K)]
    return torch.stack([gram_row(own, found) for own in found])


def gram_row(own: Sequence[Tensor], others: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.stack([sum(torch.dot(a.flatten(), b.flatten()) for a, b in zip(own, x, strict=True)) for x in others])


def autojac(case: Case, advantages_BK: Tensor, chunk: int | None = None) -> Tensor:
    loss_K = losses(case.row_means(), advantages_BK)
    return gram(jac(loss_K, case.parameters, parallel_chunk_size=chunk))


def autogram_of_losses(case: Case, advantages_BK: Tensor) -> Tensor:
    engine = Engine(case.adapter.lm.model, batch_dim=None)
    return engine.compute_gramian(losses(case.row_means(), advantages_BK))


def autogram_of_rows(case: Case, advantages_BK: Tensor) -> Tensor:
    engine = Engine(case.adapter.lm.model, batch_dim=0)
    return advantages_BK.T @ engine.compute_gramian(case.row_means()) @ advantages_BK


def score_gram(case: Case, advantages_BK: Tensor, scope: str) -> Tensor:
    probe = Probe(case.adapter, scope)
    with probe.watch():
        hidden_MH, _, unit_MH = case.forward()
    probe.collect(hidden_MH, unit_MH, case.weight_M, case.micro.rows, case.rows)
    advantages = advantages_BK.double().numpy()
    return torch.from_numpy(advantages.T @ probe.gram()[0, 0] @ advantages)


@dataclass(frozen=True)
class Method:
    call: Callable[[Case, Tensor], Tensor | None]
    plain: bool = False
    reference: str | None = REFERENCE
    """The method that it must agree with."""


METHODS = {
    "forward alone": Method(forward, reference=None),
    BASELINE: Method(baseline, reference=None),
    REFERENCE: Method(explicit),
    "explicit, HF logits": Method(partial(explicit, logits=True), plain=True),
    "autojac, all at once": Method(autojac),
    "autojac, one at a time": Method(partial(autojac, chunk=1)),
    "autogram K losses": Method(autogram_of_losses),
    "autogram B rows": Method(autogram_of_rows, plain=True),
    "score Gram, adapter": Method(partial(score_gram, scope="adapter")),
    LAST: Method(partial(explicit, last_block=True), reference=LAST),
    "score Gram, last block": Method(partial(score_gram, scope="last_block"), reference=LAST),
}


def advantages(rows: int, count: int) -> Tensor:
    return torch.randn(rows, count, generator=torch.Generator().manual_seed(count))


def difference(found_KK: Tensor, reference_KK: Tensor) -> float:
    """Largest entry of the difference, in units of the norms of its row's and column's gradients."""
    norm_K = reference_KK.double().diagonal().sqrt()
    return float(((found_KK.double() - reference_KK.double()).abs() / torch.outer(norm_K, norm_K)).max())


def check(cases: dict[bool, Case], count: int) -> dict[str, float]:
    a = advantages(cases[False].rows, count)
    grams = {name: m.call(cases[m.plain], a) for name, m in METHODS.items() if m.reference}
    found = {name: difference(g, grams[METHODS[name].reference]) for name, g in grams.items()}
    assert max(found.values()) < 1e-4, found
    return found


def times(name: str, rounds: int) -> dict[tuple[str, int], list[float]]:
    """Ratios to the baseline of the same round."""
    cases, ratios = {plain: case(name, plain) for plain in (False, True)}, {}
    for count in KS:
        worst = check(cases, count)
        print(f"{name} K={count}: largest relative difference {max(worst.values()):.1e}", file=sys.stderr)
        a = advantages(cases[False].rows, count)

        def side(method: Method, a: Tensor = a) -> Callable[[], float]:
            def timed() -> float:
                start = common.clock()
                method.call(cases[method.plain], a)
                return common.clock() - start

            return timed

        seconds = common.interleaved({label: side(method) for label, method in METHODS.items()}, rounds)
        print(f"{name} K={count}: baseline {median(seconds[BASELINE]):.3f} s", file=sys.stderr)
        ratios |= {(label, count): common.ratios(seconds[label], seconds[BASELINE]) for label in METHODS}
    return ratios


def resident(field: str) -> float:
    """MiB, by the kernel's count of this process."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024


def peak(name: str, label: str) -> None:
    """In its own process: print the peak of each K, the median of three calls; few tokens first, to load libraries."""
    method = METHODS[label]
    for completion in (WARMUP_TOKENS, None):
        here = case(name, method.plain, completion)
        for count in KS:
            a, found = advantages(here.rows, count), []
            for _ in range(1 if completion else 3):
                gc.collect()
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident
                before = resident("VmRSS")
                method.call(here, a)
                found.append(resident("VmHWM") - before)
            if not completion:
                print(median(found))


def peaks(name: str, label: str) -> dict[tuple[str, int], float]:
    command = [sys.executable, __file__, "--plain-allocator", "--peak", name, label]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(f"{name} {label}: {' '.join(out.split())} MiB", file=sys.stderr)
    return {(label, count): float(line) for count, line in zip(KS, out.split(), strict=True)}


def report(name: str, rounds: int) -> str:
    memory: dict[tuple[str, int], float] = {}
    for label in METHODS:
        memory |= peaks(name, label)
    ratios = times(name, rounds)
    rows = [
        [label, *(common.spread(ratios[label, k]) for k in KS), *(f"{memory[label, k]:.1f}" for k in KS)]
        for label in METHODS
    ]
    return common.table([name, *(f"time K={k}" for k in KS), *(f"peak MiB K={k}" for k in KS)], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=12, help="rounds timed for toy; a third of them for qwen2")
    parser.add_argument("--plain-allocator", action="store_true", help="leave glibc's defaults")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap has no rule for CPU attention
    if arguments.peak:
        peak(*arguments.peak)
    else:
        for model in arguments.models:
            print(report(model, arguments.rounds if model == "toy" else max(2, arguments.rounds // 3)), end="\n\n")
