"""AdamW (arXiv 1711.05101, alg. 2) for R runs at once: one flat buffer, a few kernels a step.

Each run has its own learning rate, schedule, betas and clip; nothing couples the rows. Parameters and
gradients are views of flat buffers, parameter by parameter, so that a backward pass accumulates in
place; the update itself is done on (R, P) matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gradlab.checkpoint import fit
from gradlab.config import OptimizerConfig


class StackedAdamW:
    """Owns theta, gradient and the two moments; `state` and `restore` are exact. `updates` counts steps of all runs."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        stacked: bool,
        configs: Sequence[OptimizerConfig],
        steps: Sequence[int],
    ) -> None:
        runs, device = len(configs), parameters[0].device
        self.configs, self.total_steps, self.updates = configs, steps, 0
        assert stacked or runs == 1, (stacked, runs)
        self.theta = torch.cat([p.detach().flatten() for p in parameters])
        self.grad = torch.zeros_like(self.theta)
        starts = [0, *torch.tensor([p.numel() for p in parameters]).cumsum(0).tolist()]
        for parameter, start, end in zip(parameters, starts, starts[1:], strict=False):
            parameter.data = self.theta[start:end].view(parameter.shape)
            parameter.grad = self.grad[start:end].view(parameter.shape)
        self.m_RP, self.v_RP = (torch.zeros(runs, self.theta.numel() // runs, device=device) for _ in range(2))
        # Where entry [r, p] lies in the flat buffers: parameter by parameter, run by run inside.
        blocks = [torch.arange(a, b, device=device).view(runs, -1) for a, b in pairwise(starts)]
        self._parameters, self._starts, self._stacked = list(parameters), starts, stacked
        self._order_RP = torch.cat(blocks, dim=1) if runs > 1 else None
        self._beta1, self._beta2, self._eps, self._decay, self._clip = (
            torch.tensor(column, dtype=torch.float32, device=device).view(-1, 1)
            for column in zip(
                *(
                    (*c.betas, c.eps, c.weight_decay, c.max_grad_norm if c.max_grad_norm is not None else float("inf"))
                    for c in configs
                ),
                strict=True,
            )
        )

    def learning_rates(self, step: int) -> list[float]:
        """The R learning rates of rollout `step` (0-based)."""
        return [scheduled_lr(c, step, total) for c, total in zip(self.configs, self.total_steps, strict=True)]

    def by_run(self, flat: Tensor) -> Tensor:
        """(R, P) of a flat buffer."""
        return flat.view(1, -1) if self._order_RP is None else flat[self._order_RP]

    def zero_grad(self) -> None:
        self.grad.zero_()

    def gradient_norms(self) -> Tensor:
        """(R) norms before clipping."""
        return self.by_run(self.grad).norm(dim=1)

    @torch.no_grad()
    def step(self, step: int, norm_R: Tensor) -> None:
        """Clip each run to its own max_grad_norm (as torch.nn.utils.clip_grad_norm_) and update."""
        self.updates += 1
        lr = torch.tensor(self.learning_rates(step), device=self.theta.device).view(-1, 1)
        grad = self.by_run(self.grad) * (self._clip / (norm_R.view(-1, 1) + 1e-6)).clamp(max=1.0)
        self.m_RP.lerp_(grad, 1 - self._beta1)
        self.v_RP.mul_(self._beta2).add_((1 - self._beta2) * grad * grad)
        correction1 = 1 - self._beta1**self.updates
        correction2 = 1 - self._beta2**self.updates
        denominator = (self.v_RP / correction2).sqrt_().add_(self._eps)
        theta = self.by_run(self.theta)
        updated = theta * (1 - lr * self._decay) - lr / correction1 * self.m_RP / denominator
        if self._order_RP is None:
            self.theta.copy_(updated[0])
        else:
            self.theta[self._order_RP] = updated

    def preconditioner(self) -> dict[nn.Parameter, Tensor]:
        """1 / (sqrt(v) + eps), bias-corrected as in the last step: what multiplies each entry's momentum."""
        assert self.updates, "before the first step there is none"
        scale_RP = 1 / ((self.v_RP / (1 - self._beta2**self.updates)).sqrt() + self._eps)
        flat = scale_RP.flatten()
        if self._order_RP is not None:
            flat = torch.empty_like(flat).index_put_((self._order_RP,), scale_RP)
        pieces = zip(self._parameters, pairwise(self._starts), strict=True)
        return {parameter: flat[a:b].view(parameter.shape) for parameter, (a, b) in pieces}

    def state(self, run: int) -> dict[str, Tensor]:
        """One run's parameters and moments, by the parameters' position, as views."""
        return {f"{kind}/{i}": view for kind, views in self._views(run).items() for i, view in enumerate(views)}

    def restore(self, run: int, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave, in this pack or in another whose largest rank is not the same."""
        for kind, views in self._views(run).items():
            for i, view in enumerate(views):
                fit(view, state[f"{kind}/{i}"])

    def _views(self, run: int) -> dict[str, list[Tensor]]:
        runs = len(self.configs)
        shapes = [p.shape[1:] if self._stacked else p.shape for p in self._parameters]
        pieces = [(a // runs, b // runs, shape) for (a, b), shape in zip(pairwise(self._starts), shapes, strict=True)]
        views = {
            k: [row[a:b].view(s) for a, b, s in pieces] for k, row in (("m", self.m_RP[run]), ("v", self.v_RP[run]))
        }
        return {"theta": [p.data[run] if self._stacked else p.data for p in self._parameters], **views}


def scheduled_lr(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then constant, or linear to 0 after the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    return config.lr * (steps - step) / max(1, steps - config.warmup_steps)
