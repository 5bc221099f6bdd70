"""One optimizer step's gradient on a rollout: forward, loss, backward, microbatch by microbatch.

On the first inner epoch it also recomputes the old and the reference log-probs, checks them against
the sampler's, and feeds the probe if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradlab.adapters import Adapter
from gradlab.config import RunConfig
from gradlab.gradients import Probe
from gradlab.logprob import reference_logp, token_logp
from gradlab.loss import policy_loss, token_weights
from gradlab.microbatch import Microbatch
from gradlab.types import Rollout

STATS = ("tokens", "loss", "kl", "entropy", "clipped", "ratio")


@dataclass
class Batch:
    """A scored rollout ready to train on; `*_N` are rows of all runs, run by run.

    old_logp_NC, reference_logp_NC are filled by the first inner epoch.
    """

    rollout: Rollout
    microbatches: list[Microbatch]
    advantage_N: Tensor
    weight_N: Tensor
    temperature_N: Tensor
    clip_epsilon_N: Tensor
    beta_N: Tensor
    old_logp_NC: Tensor
    reference_logp_NC: Tensor | None

    @staticmethod
    def of(
        rollout: Rollout, microbatches: list[Microbatch], advantage_N: Tensor, configs: Sequence[RunConfig]
    ) -> Batch:
        length_RB = rollout.completion_len_N.view(len(configs), -1)
        weight = [
            token_weights(length_B, c.algorithm.loss_type, c.rollout.max_new_tokens)
            for length_B, c in zip(length_RB, configs, strict=True)
        ]

        def rows(values: list[float]) -> Tensor:
            return torch.tensor(values, device=length_RB.device).repeat_interleave(length_RB.shape[1])

        return Batch(
            rollout=rollout,
            microbatches=microbatches,
            advantage_N=advantage_N,
            weight_N=torch.cat(weight),
            temperature_N=rows([c.rollout.temperature for c in configs]),
            clip_epsilon_N=rows([c.algorithm.clip_epsilon for c in configs]),
            beta_N=rows([c.algorithm.beta for c in configs]),
            old_logp_NC=torch.zeros_like(rollout.logp_NC),
            reference_logp_NC=(torch.zeros_like(rollout.logp_NC) if any(c.algorithm.beta for c in configs) else None),
        )


@dataclass(frozen=True)
class Gradient:
    """What one inner epoch found: sums over completion tokens (see `STATS`), sampler gap, gradient norm."""

    stats_SR: Tensor
    gap_R: Tensor
    norm_R: Tensor

    def stat_R(self, name: str) -> Tensor:
        return self.stats_SR[STATS.index(name)]

    def first_unsound(self) -> int | None:
        """The first run whose loss or gradient is not finite."""
        unsound_R = ~(torch.isfinite(self.stat_R("loss")) & torch.isfinite(self.norm_R))
        return int(unsound_R.nonzero()[0]) if bool(unsound_R.any()) else None

    def with_epoch(self, later: Gradient) -> Gradient:
        """Clip fraction and ratio add up over inner epochs; all else is of the first, where ratio is 1."""
        over_epochs = torch.tensor([name in ("clipped", "ratio") for name in STATS], device=self.stats_SR.device)
        return replace(self, stats_SR=self.stats_SR + over_epochs[:, None] * later.stats_SR)


@dataclass(frozen=True)
class Forward:
    """One microbatch's log-probs with their graph, and entropies, of its M completion tokens."""

    micro: Microbatch
    logp_M: Tensor
    entropy_M: Tensor


def accumulate(
    adapter: Adapter,
    batch: Batch,
    first: bool,
    probe: Probe | None,
    advantage: Callable[[], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the loss's gradient to the parameters' `.grad`.

    `advantage` is for weights that depend on what the probe finds in this very batch: it is called between
    the forward passes and the backward passes and gives `batch.advantage_N`. All graphs are alive by then,
    so that memory grows with the batch; without it each microbatch's graph is freed before the next.

    Returns the sums over completion tokens named in `STATS` (S, R) and, on the first inner epoch, the
    largest gap (R) between the sampler's log-probs and the recomputed ones (else zeros).
    """
    passes: Iterable[Forward] = _forwards(adapter, batch, first, probe)
    if advantage is not None:
        passes = list(passes)
        batch.advantage_N = advantage()
    runs, device = adapter.runs, batch.weight_N.device
    rows_per_run = batch.weight_N.shape[0] // runs
    stats_SR = torch.zeros(len(STATS), runs, device=device)
    gap_R = torch.zeros(runs, device=device)
    for done in passes:
        row, column, logp_M = done.micro.row_M, done.micro.column_M, done.logp_M
        run_M = row // rows_per_run
        if first:
            gap_M = (logp_M.detach() - batch.rollout.logp_NC[row, column]).abs()
            gap_R.scatter_reduce_(0, run_M, gap_M, "amax")
        loss = policy_loss(
            logp_M,
            batch.old_logp_NC[row, column],
            batch.advantage_N[row],
            batch.weight_N[row],
            batch.clip_epsilon_N[row],
            batch.beta_N[row],
            None if batch.reference_logp_NC is None else batch.reference_logp_NC[row, column],
        )
        loss.loss_M.sum().backward()
        columns = [torch.ones_like(logp_M), loss.loss_M, loss.kl_M, done.entropy_M, loss.clipped_M, loss.ratio_M]
        values = torch.stack([torch.zeros_like(logp_M) if c is None else c.detach().float() for c in columns])
        stats_SR.index_add_(1, run_M, values)
    return stats_SR, gap_R


def _forwards(adapter: Adapter, batch: Batch, first: bool, probe: Probe | None) -> Iterator[Forward]:
    """Microbatch by microbatch; on the first inner epoch with the old and the reference log-probs."""
    for micro in batch.microbatches:
        row, column = micro.row_M, micro.column_M
        if first and batch.reference_logp_NC is not None:
            with adapter.reference() as reference, torch.no_grad():
                batch.reference_logp_NC[row, column] = reference_logp(
                    micro.hidden(reference), reference.head_weight, micro.target_M, batch.temperature_N[row]
                )
        if probe is None:
            hidden_MH = micro.hidden(adapter.lm)
        else:
            with probe.watch():
                hidden_MH = micro.hidden(adapter.lm)
        logp_M, entropy_M, unit_MH = token_logp(
            hidden_MH, adapter.lm.head_weight, micro.target_M, batch.temperature_N[row]
        )
        if first:
            batch.old_logp_NC[row, column] = logp_M.detach()
        if probe is not None:
            # A row's score counts its share of the mean over the run's rows, as the loss does.
            probe.collect(hidden_MH, unit_MH, batch.weight_N[row], micro.rows, batch.weight_N.shape[0])
        yield Forward(micro, logp_M, entropy_M)
