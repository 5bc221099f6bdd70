"""AdamW (arXiv 1711.05101, alg. 2) for R runs at once: one flat (R, P) buffer, a few kernels a step.

Each run has its own learning rate, schedule, betas and clip; nothing couples the rows. Parameters
become views of the buffer, so a backward pass accumulates straight into `grad_RP`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradlab.config import OptimizerConfig


class StackedAdamW:
    """Holds theta_RP, grad_RP and the two moments; `state()` and `restore()` are exact."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], stacked: bool, configs: Sequence[OptimizerConfig], steps: Sequence[int]
    ) -> None:
        runs, device = len(configs), parameters[0].device
        self.configs, self.total_steps, self.updates = configs, steps, 0
        shapes = [p.shape[1:] if stacked else p.shape for p in parameters]
        size = sum(shape.numel() for shape in shapes)
        self.theta_RP = torch.empty(runs, size, device=device)
        self.grad_RP, self.m_RP, self.v_RP = (torch.zeros_like(self.theta_RP) for _ in range(3))
        offset = 0
        for parameter, shape in zip(parameters, shapes, strict=True):
            part = slice(offset, offset + shape.numel())
            self.theta_RP[:, part] = parameter.detach().reshape(runs, -1)
            parameter.data = self.theta_RP[:, part].view(parameter.shape)
            parameter.grad = self.grad_RP[:, part].view(parameter.shape)
            offset += shape.numel()
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

    def zero_grad(self) -> None:
        self.grad_RP.zero_()

    def gradient_norms(self) -> Tensor:
        """(R) norms before clipping."""
        return self.grad_RP.norm(dim=1)

    @torch.no_grad()
    def step(self, step: int, norm_R: Tensor) -> None:
        """Clip each run to its own max_grad_norm (as torch.nn.utils.clip_grad_norm_) and update."""
        self.updates += 1
        lr = torch.tensor(self.learning_rates(step), device=self.theta_RP.device).view(-1, 1)
        grad = self.grad_RP * (self._clip / (norm_R.view(-1, 1) + 1e-6)).clamp(max=1.0)
        self.theta_RP.mul_(1 - lr * self._decay)
        self.m_RP.lerp_(grad, 1 - self._beta1)
        self.v_RP.mul_(self._beta2).add_((1 - self._beta2) * grad * grad)
        correction1 = 1 - self._beta1**self.updates
        correction2 = 1 - self._beta2**self.updates
        denominator = (self.v_RP / correction2).sqrt_().add_(self._eps)
        self.theta_RP.sub_(lr / correction1 * self.m_RP / denominator)

    def state(self) -> dict[str, Tensor]:
        updates = torch.tensor([self.updates])
        return {"theta_RP": self.theta_RP, "m_RP": self.m_RP, "v_RP": self.v_RP, "updates": updates}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name in ("theta_RP", "m_RP", "v_RP"):
            getattr(self, name).copy_(state[name])
        self.updates = int(state["updates"])


def scheduled_lr(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then constant, or linear to 0 after the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    return config.lr * (steps - step) / max(1, steps - config.warmup_steps)
