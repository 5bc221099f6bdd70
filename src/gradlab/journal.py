"""What a step leaves in each run's log: metrics and samples, and the probe's Gram and cosines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradlab.clock import Clock
from gradlab.config import RunConfig
from gradlab.credit import Dominance
from gradlab.gradients import Array, Probe, conflict, objective_gram
from gradlab.records import metric_row, sample_line, sample_rows
from gradlab.runlog import RunLog
from gradlab.types import ScoredRollout
from gradlab.update import Gradient


def probed(config: RunConfig, step: int) -> bool:
    return config.probe.every > 0 and step % config.probe.every == 0


def write_probe(
    step: int,
    probe: Probe,
    configs: Sequence[RunConfig],
    scored: Sequence[ScoredRollout],
    logs: Sequence[RunLog],
) -> None:
    """The K x K cosines of each run and layer, and what they were made of; empties the probe."""
    layers = probe.layers()
    for gram_LBB, config, run, log in zip(probe.gram(), configs, scored, logs, strict=True):
        header = {
            "scope": config.probe.scope,
            "space": probe.space,
            "n_rows": len(run.texts),
            "objectives": list(config.enabled_objectives),
            "tau": config.probe.tau,
        }
        arrays = {
            "gram_LBB": gram_LBB.astype(np.float32),
            "advantages_BK": run.advantages_BK,
            "rewards_BK": run.scores.rewards_BK,
            "group_B": run.group_B,
        }
        conflicts = [conflict(objective_gram(gram_BB, run.advantages_BK), config.probe.tau) for gram_BB in gram_LBB]
        log.probe(step, header, layers, conflicts, arrays)


def write_step(
    step: int,
    configs: Sequence[RunConfig],
    scored: Sequence[ScoredRollout],
    combined: Sequence[Array],
    gradient: Gradient,
    learning_rates: Sequence[float],
    clock: Clock,
    logs: Sequence[RunLog],
    dominances: Sequence[Dominance],
) -> None:
    """A metrics row of each run; its samples every `logging_steps` and where the probe looked.

    combined    w_K of each run, what multiplied its advantages
    dominances  which objective owned the advantages of late; moved on by this step
    """
    stats_RS, norm_R, gap_R = gradient.stats_SR.T.tolist(), gradient.norm_R.tolist(), gradient.gap_R.tolist()
    for r, (config, run, log) in enumerate(zip(configs, scored, logs, strict=True)):
        names = list(config.enabled_objectives)
        if dominances[r].onset(run.advantages_BK, combined[r]):
            log.text(dominances[r].line(step, names))
        logged = step % config.logging_steps == 0
        if logged or probed(config, step):
            rows = sample_rows(step, names, run)
            log.samples(rows)
            if logged:
                log.text(sample_line(step, rows[0]))
        log.metrics(
            {
                "step": step,
                "epoch": run.epoch,
                **metric_row(names, run, config, combined[r], stats_RS[r]),
                "grad_norm": norm_R[r],
                "lr": learning_rates[r],
                "sampler_logp_gap_max_nats": gap_R[r],
                **clock.seconds(),
            }
        )
