"""The probe: per-row scores of the probed parameters, their Gram, and cosines of the objectives.

On policy, objective k's policy gradient is sum_b a_bk s_b with s_b = sum_t w_bt d log pi(token bt):
w_bt are the loss's own token weights, so the gradient measured is the one that trains. One backward
of the unit gradient through the probed blocks yields every s_b; K enters only through small matrix
products, gram_KK = a^T (s s^T) a. Clipping and KL belong to no objective and are left out.

The inner product is that of the trained parameters (`gradient`), of the changes of the weights that a step
along the scores makes (`update`), or of the scores after AdamW's preconditioner (`preconditioned`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradlab.adapters import Adapter, ProbedLinear, inner_products

Array = NDArray[np.float64]


class _Tap(torch.autograd.Function):
    """The identity, which shows its gradient to `receive` in every backward pass.

    The value does not depend on `source`, but a backward pass asked for the gradient of `source` alone goes to the
    taps and no further, and lets each gradient go as soon as it was received.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, source: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        ctx.receive = receive
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
        ctx.receive(dy)
        return dy, None, None


class Probe:
    """Collects the scores of one rollout, microbatch by microbatch.

    `space` is that of the inner products, as files name it: `factors` or `weights` for the gradient.

    Rows of different microbatches have products too: scores are held until `measure`. Where one microbatch is the
    whole rollout, each linear's products are formed during the backward pass and its scores let go, unless
    `keep_scores` asks for them or the space, `preconditioned`, is not known before the optimizer's step.
    """

    def __init__(self, adapter: Adapter, scope: str, space: str = "gradient", keep_scores: bool = False) -> None:
        self.runs, self.scope = adapter.runs, scope
        self.space = adapter.space if space == "gradient" else space
        self.linears = adapter.probed(scope)
        self._hold = keep_scores or space == "preconditioned"
        self._gram_RLBB: Tensor | None = None
        self._products: dict[str, Tensor] = {}
        self._scores: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._source = torch.zeros((), requires_grad=True)
        self.seconds = 0.0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Within: a forward pass leaves each probed linear's input here and a tap behind the linear."""

        def tap(linear: ProbedLinear):
            def hook(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                self._inputs[linear.name] = inputs[0].detach()
                return _Tap.apply(output, self._source, partial(self._receive, linear))

            return hook

        handles = [linear.module.register_forward_hook(tap(linear)) for linear in self.linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def collect(self, hidden_MH: Tensor, unit_MH: Tensor, weight_M: Tensor, rows: Tensor, total_rows: int) -> None:
        """Backward of sum_m weight_m log pi_m as far as the probed linears, and their per-row scores.

        hidden_MH   hidden states with a graph, from a forward under `watch`
        unit_MH     d log pi / d hidden of each token (`token_logp`)
        weight_M    the loss's token weights
        rows        the microbatch's rows in the rollout of `total_rows`
        """
        start = time.perf_counter()
        self._place = (rows, total_rows)
        upstream = unit_MH * weight_M[:, None].to(unit_MH.dtype)
        torch.autograd.grad(hidden_MH, self._source, upstream, retain_graph=True, allow_unused=True)
        assert not self._inputs, f"no gradient came to {sorted(self._inputs)}"
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def _receive(self, linear: ProbedLinear, dy_NTO: Tensor) -> None:
        x_NTI = self._inputs.pop(linear.name, None)
        if x_NTI is None:  # the backward pass of the loss, after ours
            return
        rows, total_rows = self._place
        part = linear.score(x_NTI, dy_NTO)
        if linear.name not in self._scores:
            self._scores[linear.name] = part.new_zeros(total_rows, part.shape[1])
        self._scores[linear.name][rows] = part
        if len(rows) == total_rows and not self._hold:
            self._products[linear.name] = self._inner_products(linear)
            del self._scores[linear.name]

    def parts(self) -> dict[str, list[ProbedLinear]]:
        """The linears of each entry of axis L: `last`, `all`, a block's index, or that and the half: `3.attention`."""
        found: dict[str, list[ProbedLinear]] = {}
        for linear in sorted(self.linears, key=lambda x: (x.layer, x.part if self.scope == "per_module" else "")):
            name = {
                "last_block": "last",
                "adapter": "all",
                "per_layer": f"{linear.layer}",
                "per_module": f"{linear.layer}.{linear.part}",
            }[self.scope]
            found.setdefault(name, []).append(linear)
        return found

    def layers(self) -> list[str]:
        """Names along axis L."""
        return list(self.parts())

    def score(self, linear: ProbedLinear) -> Tensor:
        """(R, B, P) per-row scores of one linear."""
        return self._scores[linear.name].view(self.runs, -1, self._scores[linear.name].shape[1])

    def measure(self, preconditioner: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        """Form the Gram from the scores, once, and let them go. `update` reads the parameters: before they move.

        preconditioner    what multiplies each trained entry, for the space `preconditioned`
        """
        if self._gram_RLBB is not None:
            return
        for linear in self.linears:
            if linear.name not in self._products:
                self._products[linear.name] = self._inner_products(linear, preconditioner)
                del self._scores[linear.name]
        grams = [torch.stack([self._products[x.name] for x in part]).sum(dim=0) for part in self.parts().values()]
        self._gram_RLBB = torch.stack(grams, dim=1)
        self._products.clear()

    @torch.no_grad()
    def _inner_products(
        self, linear: ProbedLinear, preconditioner: Mapping[nn.Parameter, Tensor] | None = None
    ) -> Tensor:
        score_RBP = self.score(linear)
        if self.space == "update":
            return linear.update_gram(score_RBP)
        if preconditioner is not None:
            scales = [preconditioner[parameter].reshape(self.runs, -1) for parameter in linear.parameters]
            score_RBP = score_RBP * torch.cat(scales, dim=1)[:, None]
        return inner_products(score_RBP)

    def gram(self) -> Array:
        """gram_RLBB in float64."""
        self.measure()
        assert self._gram_RLBB is not None
        return self._gram_RLBB.double().cpu().numpy()


@dataclass(frozen=True)
class Conflict:
    """What a K x K Gram of gradients says. NaN: no signal."""

    cosine_KK: Array
    norm_K: Array
    synergy_K: Array
    conflict_fraction: float
    undefined_pairs: int


def objective_gram(gram_BB: Array, advantages_BK: Array) -> Array:
    """gram_KK = a^T G a: inner products of the objectives' gradients.

    A diagonal entry that is only rounding (below 1e-7 of what its rows could add up to) is set to NaN
    with its row and column: that objective has no gradient here.
    """
    gram_KK = advantages_BK.T @ gram_BB @ advantages_BK
    gram_KK = (gram_KK + gram_KK.T) / 2
    reach_K = np.abs(advantages_BK).T @ np.sqrt(np.clip(np.diag(gram_BB), 0, None))
    silent = np.diag(gram_KK) <= 1e-7 * reach_K**2
    gram_KK[silent, :] = np.nan
    gram_KK[:, silent] = np.nan
    return gram_KK


def conflict(gram_KK: Array, tau: float) -> Conflict:
    """Cosines, norms, net synergy (mean cosine to the others) and the share of pairs below -tau."""
    norm_K = np.sqrt(np.diag(gram_KK))
    cosine = np.clip(gram_KK / np.outer(norm_K, norm_K), -1, 1)
    others = np.where(np.eye(len(norm_K), dtype=bool), np.nan, cosine)
    pairs = cosine[np.triu_indices(len(norm_K), 1)]
    defined = pairs[~np.isnan(pairs)]
    count_K = (~np.isnan(others)).sum(axis=1)
    with np.errstate(invalid="ignore"):
        synergy_K = np.nansum(others, axis=1) / count_K
    return Conflict(
        cosine_KK=cosine,
        norm_K=norm_K,
        synergy_K=synergy_K,
        conflict_fraction=float((defined < -tau).mean()) if len(defined) else float("nan"),
        undefined_pairs=len(pairs) - len(defined),
    )


def numbers(values: Sequence[float] | Array) -> list[float | None]:
    """JSON has no NaN: undefined is null."""
    return [None if np.isnan(v) else float(v) for v in values]
