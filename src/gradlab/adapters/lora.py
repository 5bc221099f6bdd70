"""LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3) for R runs at once on one frozen base.

Each factor has a leading run axis and is applied with `bmm` to rows laid out run by run. Ranks are
padded with zeros to the largest: a zero row of A beside a zero column of B has zero gradient, so
padding never trains. No dropout, no bias, no merging in place: the base is never written.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradlab.adapters.base import ADAPTERS, Adapter, ProbedLinear, layer_of
from gradlab.config import AdapterConfig
from gradlab.models import LanguageModel
from gradlab.registry import unknown
from gradlab.store import atomic, write_json


class _LowRank(torch.autograd.Function):
    """y + scale x A^T B^T. By hand for the layout: with the rank as rows, the products of the backward pass,
    which on a CPU cost as much as the base's own when the rank is a column, are three times faster.
    """

    @staticmethod
    def forward(ctx: Any, y_RNO: Tensor, x_RNI: Tensor, A_RrI: Tensor, B_ROr: Tensor, scale_R11: Tensor) -> Tensor:
        z_RrN = torch.bmm(A_RrI, x_RNI.mT) * scale_R11
        ctx.save_for_backward(x_RNI, A_RrI, B_ROr, scale_R11, z_RrN)
        return torch.baddbmm(y_RNO, z_RrN.mT, B_ROr.mT)

    @staticmethod
    def backward(ctx: Any, dy_RNO: Tensor):  # type: ignore[override]
        x_RNI, A_RrI, B_ROr, scale_R11, z_RrN = ctx.saved_tensors
        q_RrN = torch.bmm(B_ROr.mT, dy_RNO.mT) * scale_R11
        dx_RNI = torch.bmm(q_RrN.mT, A_RrI) if ctx.needs_input_grad[1] else None
        return dy_RNO, dx_RNI, torch.bmm(q_RrN, x_RNI), torch.bmm(z_RrN, dy_RNO).mT, None


class LoRALinear(nn.Module):
    """y = base(x) + scale_r * x A_r^T B_r^T for the rows of run r.

    A_RrI, B_ROr in float32 whatever the base's type; `scale_R` is alpha / rank of each run.
    """

    scale_R11: Tensor

    def __init__(self, base: Any, ranks: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__()
        self.base, self.enabled = base, True
        runs, rank, device = len(ranks), max(ranks), base.weight.device
        self.A_RrI = nn.Parameter(torch.zeros(runs, rank, base.in_features, device=device))
        self.B_ROr = nn.Parameter(torch.zeros(runs, base.out_features, rank, device=device))
        self.register_buffer("scale_R11", torch.tensor(scales, device=device).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.enabled:
            return y
        runs = self.A_RrI.shape[0]
        x_RNI = x.reshape(runs, -1, x.shape[-1]).to(self.A_RrI.dtype)
        y_RNO = y.reshape(runs, -1, y.shape[-1]).to(self.A_RrI.dtype)
        return _LowRank.apply(y_RNO, x_RNI, self.A_RrI, self.B_ROr, self.scale_R11).view(y.shape).to(y.dtype)

    def score(self, x_NTI: Tensor, dy_NTO: Tensor) -> Tensor:
        """Per-row gradients (N, P) of A then B, given the row's input and output gradient."""
        runs, rank, width = self.A_RrI.shape
        rows, tokens = x_NTI.shape[:2]
        x, dy = x_NTI.to(self.A_RrI.dtype), dy_NTO.to(self.A_RrI.dtype)

        def by_row(factor_RrN: Tensor) -> Tensor:  # the rank as rows, as in `_LowRank`
            scaled = (factor_RrN * self.scale_R11).view(runs, rank, -1, tokens)
            return scaled.transpose(1, 2).reshape(rows, rank, tokens)

        z = by_row(torch.bmm(self.A_RrI, x.reshape(runs, -1, width).mT))
        q = by_row(torch.bmm(self.B_ROr.mT, dy.reshape(runs, -1, dy.shape[-1]).mT))
        return torch.cat([torch.bmm(q, x).flatten(1), torch.bmm(z, dy).mT.flatten(1)], dim=1)

    def update_gram(self, score_RBP: Tensor) -> Tensor:
        """(R, B, B) inner products of the rows' first-order changes of the weight, dW_b = s (dB_b A + B dA_b).

        <dW_b, dW_c> / s^2 = <dB_b A A^T, dB_c> + <B^T B dA_b, dA_c> + <P_b, Q_c> + <Q_b, P_c> with P_b = B^T dB_b and
        Q_c = dA_c A^T, all of size rank: no (O, I) matrix is made.
        """
        A_RrI, B_ROr = self.A_RrI.detach(), self.B_ROr.detach()
        dA, dB = score_RBP.split([A_RrI[0].numel(), B_ROr[0].numel()], dim=2)
        dA, dB = dA.unflatten(2, A_RrI.shape[1:]), dB.unflatten(2, B_ROr.shape[1:])
        P = torch.einsum("rop,rboq->rbpq", B_ROr, dB).flatten(2)
        Q = torch.einsum("rbpi,rqi->rbpq", dA, A_RrI).flatten(2)
        dB_AA = torch.einsum("rbop,rpq->rboq", dB, A_RrI @ A_RrI.mT).flatten(2)
        BB_dA = torch.einsum("rpq,rbqi->rbpi", B_ROr.mT @ B_ROr, dA).flatten(2)
        mixed = torch.bmm(P, Q.mT)
        alone = torch.bmm(dB_AA, dB.flatten(2).mT) + torch.bmm(BB_dA, dA.flatten(2).mT)
        return (alone + mixed + mixed.mT) * self.scale_R11**2


def target_names(lm: LanguageModel, targets: Sequence[str] | str) -> list[str]:
    """Full names of the linears that `adapter.targets` selects.

    A target matches as PEFT's `target_modules` does: the whole name or a dotted suffix. Raises
    ValueError when one matches nothing or is the LM head.
    """
    head = lm.model.get_output_embeddings()
    # bitsandbytes' linears derive from nn.Linear.
    linears = [n for n, m in lm.model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    if targets == "all-linear":
        return linears
    known = sorted({name.rsplit(".", 1)[-1] for name in linears})
    chosen: set[str] = set()
    for target in targets:
        found = [name for name in linears if name == target or name.endswith("." + target)]
        if not found:
            raise ValueError(unknown("adapter.targets", target, known))
        chosen.update(found)
    return [name for name in linears if name in chosen]


@ADAPTERS.register("lora")
class LoRA(Adapter):
    """Stacked LoRA in place of the targeted linears. A is drawn as PEFT draws it, B is zero."""

    space = "factors"
    stacked = True

    def __init__(self, lm: LanguageModel, configs: Sequence[AdapterConfig], seeds: Sequence[int]) -> None:
        super().__init__(lm, configs, seeds)
        if len({config.targets for config in configs}) != 1:
            raise ValueError("adapter.targets: expected the same for all runs of a pack; found several")
        self.modules: dict[str, LoRALinear] = {}
        for name in target_names(lm, configs[0].targets):
            parent, _, child = name.rpartition(".")
            owner = lm.model.get_submodule(parent)
            module = LoRALinear(getattr(owner, child), [c.rank for c in configs], [c.alpha / c.rank for c in configs])
            setattr(owner, child, module)
            self.modules[name] = module
        for run, (config, seed) in enumerate(zip(configs, seeds, strict=True)):
            self._initialize(run, config.rank, seed)

    @torch.no_grad()
    def _initialize(self, run: int, rank: int, seed: int) -> None:
        # kaiming_uniform(a=sqrt(5)) of an (r, I) matrix is uniform in +-1/sqrt(I). numpy's generator
        # gives the same numbers on every device.
        generator = np.random.default_rng([seed, 1])
        for module in self.modules.values():
            width = module.A_RrI.shape[-1]
            bound = 1 / math.sqrt(width)
            draw = generator.uniform(-bound, bound, size=(rank, width)).astype(np.float32)
            module.A_RrI[run, :rank] = torch.from_numpy(draw).to(module.A_RrI.device)

    def named_parameters(self) -> dict[str, nn.Parameter]:
        named = {}
        for name, module in self.modules.items():
            named[f"{name}.lora_A"], named[f"{name}.lora_B"] = module.A_RrI, module.B_ROr
        return named

    @contextlib.contextmanager
    def reference(self) -> Iterator[LanguageModel]:
        """The base: LoRA starts as the identity, so the policy before training is the base itself."""
        for module in self.modules.values():
            module.enabled = False
        try:
            yield self.lm
        finally:
            for module in self.modules.values():
                module.enabled = True

    def weight(self, linear: Any) -> Tensor:
        if not isinstance(linear, LoRALinear):
            return linear.weight.mT.unsqueeze(0)
        base: Any = linear.base
        base_IO = base.weight.mT
        if not linear.enabled:
            return base_IO.unsqueeze(0)
        return torch.baddbmm(base_IO.unsqueeze(0), linear.A_RrI.mT * linear.scale_R11, linear.B_ROr.mT)

    def linears(self) -> list[ProbedLinear]:
        return [
            ProbedLinear(name, layer_of(name), module, module.score, (module.A_RrI, module.B_ROr), module.update_gram)
            for name, module in self.modules.items()
        ]

    def save(self, run: int, folder: Path) -> None:
        """PEFT's own file format, so that PEFT and vLLM load it."""
        config = self.configs[run]
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name, module in self.modules.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = module.A_RrI[run, : config.rank]
            tensors[f"base_model.model.{name}.lora_B.weight"] = module.B_ROr[run, :, : config.rank]
        with atomic(folder / "adapter_model.safetensors") as path:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
        write_json(
            folder / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": self.lm.model.name_or_path,
                "r": config.rank,
                "lora_alpha": config.alpha,
                "lora_dropout": 0.0,
                "bias": "none",
                "fan_in_fan_out": False,
                "target_modules": sorted(self.modules),
                "inference_mode": True,
            },
        )

    @torch.no_grad()
    def load(self, run: int, folder: Path) -> None:
        """Read one run's factors from a PEFT folder. Raises ValueError when names or shapes differ."""
        found = load_file(folder / "adapter_model.safetensors")
        rank = self.configs[run].rank
        expected = {f"base_model.model.{name}.lora_{x}.weight" for name in self.modules for x in "AB"}
        saved_rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if set(found) != expected or saved_rank != rank:
            raise ValueError(
                f"{folder}: expected LoRA of rank {rank} on {len(self.modules)} linears; found rank {saved_rank} "
                f"and tensors that differ in {sorted(set(found) ^ expected)[:4]}. Use the run's own config.json."
            )
        for name, module in self.modules.items():
            module.A_RrI[run, :rank] = found[f"base_model.model.{name}.lora_A.weight"].to(module.A_RrI)
            module.B_ROr[run, :, :rank] = found[f"base_model.model.{name}.lora_B.weight"].to(module.B_ROr)
