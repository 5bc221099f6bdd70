"""The on-policy loop: sample, score, credit, probe, update; for one run or a pack of R.

GRPO, RLOO and REINFORCE differ in `credit` alone. Against TRL's trainers it leaves out: iterable
datasets, gradient accumulation across rollouts, vLLM, mixed precision, callbacks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gradlab import checkpoint, data, models
from gradlab.adapters import attach
from gradlab.clock import Clock
from gradlab.config import RunConfig
from gradlab.credit import CreditState, credit
from gradlab.gradients import Probe, conflict, objective_gram
from gradlab.microbatch import plan
from gradlab.objectives.base import build
from gradlab.optimizer import StackedAdamW
from gradlab.records import metric_row, sample_line, sample_rows
from gradlab.rollout import sample, uniforms
from gradlab.runlog import RunLog
from gradlab.scoring import score
from gradlab.store import write_json
from gradlab.types import Example, Rollout, ScoredRollout
from gradlab.update import STATS, Batch, accumulate

NOISE = 0  # purpose of the training rollouts' random numbers

# Step-0 gate: largest difference between the sampler's log-prob of a token and the recomputed one.
# Half precision sums in another order for another batch shape; its tolerance covers that noise.
GATE_NATS = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


class TrainingDiverged(RuntimeError):
    """A loss or gradient that is not finite. The state before the update is saved."""


class Trainer:
    """R runs on one base. `train()` does all steps; between steps the state is whole."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        specs: Sequence[str],
        work: Sequence[Path],
        lm: models.LanguageModel,
    ) -> None:
        check_pack(configs)
        self.configs, self.specs, self.work, self.lm, self.shape = configs, list(specs), work, lm, configs[0]
        self.objectives = [{k: build(k, o) for k, o in c.enabled_objectives.items()} for c in configs]
        self.weights = [np.array([o.weight for o in c.enabled_objectives.values()]) for c in configs]
        self.files = [data.load_split(c.data.train) for c in configs]
        for config, files in zip(configs, self.files, strict=True):
            data.check_disjoint(files, data.load_split(config.data.heldout))
        self.prompt_ids = {
            e.id: models.encode_prompt(lm, e, self.shape.model.chat_template)
            for files in self.files
            for file in files
            for e in file
        }
        models.check_context(lm, self.prompt_ids, self.shape.rollout.max_new_tokens)
        self.adapter = attach(lm, [c.adapter for c in configs], [c.seed for c in configs])
        if any(c.algorithm.beta for c in configs):
            self.adapter.keep_reference()
        self.optimizer = StackedAdamW(
            list(self.adapter.named_parameters().values()),
            self.adapter.stacked,
            [c.optimizer for c in configs],
            [c.steps for c in configs],
        )
        self.credit_states = [CreditState() for _ in configs]
        self.next_step, self.gate_open = 0, False
        found = checkpoint.load(self.work[0] / "checkpoint.safetensors", self.specs)
        self.logs = [RunLog(w / "log", found.sizes[r] if found else None) for r, w in enumerate(work)]
        if found:
            self._restore(found)

    def train(self) -> None:
        """Every remaining step, with checkpoints. Raises TrainingDiverged, or ValueError at the gate."""
        total = self.shape.steps
        # A terminal gets a live bar; a log file gets a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        for step in tqdm(range(self.next_step, total), initial=self.next_step, total=total, mininterval=interval):
            self.step(step)
            self.next_step = step + 1
            if self.next_step % self.shape.placement.checkpoint_every == 0 or self.next_step == total:
                self.save()

    def step(self, step: int) -> None:
        """One rollout and its `inner_epochs` updates."""
        clock = Clock(self.lm.device)
        rollout, prompts = self._sample(step)
        clock.lap("sample")
        # Baselines advance on copies: until the update is done, the trainer's state is that of the last step.
        states = [replace(state) for state in self.credit_states]
        scored = self._score(step, rollout, prompts, states)
        clock.lap("score")
        combined = np.concatenate([s.advantages_BK @ w for s, w in zip(scored, self.weights, strict=True)])
        advantage_N = torch.from_numpy(combined).float().to(self.lm.device)
        microbatches = plan(rollout, len(self.configs), self.shape.placement.microbatch_tokens)
        batch = Batch.of(rollout, microbatches, advantage_N, self.configs)
        every = self.shape.probe.every
        probe = Probe(self.adapter, self.shape.probe.scope) if every and step % every == 0 else None
        for inner in range(self.shape.algorithm.inner_epochs):
            self.optimizer.zero_grad()
            found_SR, gap_R = accumulate(self.adapter, batch, first=inner == 0, probe=probe if inner == 0 else None)
            norm_R = self.optimizer.gradient_norms()
            if inner == 0:
                stats_SR, first_norm_R, first_gap_R = found_SR.clone(), norm_R, gap_R
            else:
                stats_SR[[STATS.index("clipped"), STATS.index("ratio")]] += found_SR[
                    [STATS.index("clipped"), STATS.index("ratio")]
                ]
            self._check(step, inner, found_SR, norm_R, gap_R, scored)
            self.optimizer.step(step, norm_R)
        clock.lap("forward_backward")
        self.credit_states = states
        if probe is not None:
            self._write_probe(step, probe, scored)
            clock.lap("probe")
            clock.move("forward_backward", "probe", probe.seconds)
        self._log(
            step, rollout, scored, stats_SR.cpu(), first_norm_R.cpu(), first_gap_R.cpu(), clock, probe is not None
        )

    def _sample(self, step: int) -> tuple[Rollout, list[tuple[list[Example], int]]]:
        shape = self.shape.rollout
        prompts = [
            data.prompts_at(files, step, shape.batch_size // shape.num_generations, c.seed)
            for c, files in zip(self.configs, self.files, strict=True)
        ]
        noise = [uniforms(c.seed, NOISE, step, shape.batch_size, shape.max_new_tokens) for c in self.configs]
        rollout = sample(
            self.adapter,
            [[self.prompt_ids[e.id] for e in examples] for examples, _ in prompts],
            shape.num_generations,
            shape.max_new_tokens,
            [c.rollout.temperature for c in self.configs],
            np.concatenate(noise),
        )
        return rollout, prompts

    def _score(
        self, step: int, rollout: Rollout, prompts: list[tuple[list[Example], int]], states: list[CreditState]
    ) -> list[ScoredRollout]:
        texts = self.lm.decode(rollout)
        size, generations = self.shape.rollout.batch_size, self.shape.rollout.num_generations
        group_B = np.repeat(np.arange(size // generations), generations)
        scored = []
        for r, (config, (examples, epoch)) in enumerate(zip(self.configs, prompts, strict=True)):
            rows = [examples[g] for g in group_B]
            own = texts[r * size : (r + 1) * size]
            try:
                scores = score(self.objectives[r], rows, own)
            except ValueError as error:
                self.save()
                raise ValueError(f"step {step}: {error}. The state before the step is in {self.work[0]}.") from error
            advantages = credit(scores.rewards_BK, group_B, self.weights[r], config.algorithm, states[r])
            scored.append(ScoredRollout(rows, own, group_B, scores, advantages, epoch))
        return scored

    def _check(self, step, inner, stats_SR, norm_R, gap_R, scored) -> None:
        """Stop before an update that is not finite, and before the first one if the sampler disagrees."""
        sound = torch.isfinite(stats_SR[STATS.index("loss")]) & torch.isfinite(norm_R)
        if not bool(sound.all()):
            run = int((~sound).nonzero()[0])
            if inner == 0:  # later inner epochs have moved the parameters: the last checkpoint stays
                self.save()
            rows = zip(scored[run].examples, scored[run].texts, strict=True)
            write_json(
                self.work[run] / "diverged.json",
                {"step": step, "inner_epoch": inner, "rows": [{"example": e.id, "completion": t} for e, t in rows]},
            )
            raise TrainingDiverged(
                f"step {step}, run {run} (seed {self.configs[run].seed}), rows 0 to {len(scored[run].texts) - 1}: "
                f"expected a finite loss and gradient; found loss {stats_SR[STATS.index('loss'), run]:.4g} and "
                f"gradient norm {norm_R[run]:.4g}. A checkpoint and the rows (diverged.json) are in {self.work[run]}. "
                "Lower optimizer.lr or optimizer.max_grad_norm."
            )
        if not self.gate_open:
            limit = GATE_NATS[self.lm.head_weight.dtype]
            gap = float(gap_R.max())
            if gap > limit:
                raise ValueError(
                    f"step {step}: expected the sampler's log-probs to equal the recomputed ones within {limit} nats; "
                    f"found a gap of {gap:.3g}. Training would be off-policy without knowing. The model's cached "
                    "decoding differs from its full forward: report the model id, or try model.dtype: float32."
                )
            self.gate_open = True

    def _write_probe(self, step: int, probe: Probe, scored: list[ScoredRollout]) -> None:
        layers = probe.layers()
        for gram_LBB, run, log, objectives, config in zip(
            probe.gram(), scored, self.logs, self.objectives, self.configs, strict=True
        ):
            conflicts = [conflict(objective_gram(gram_BB, run.advantages_BK), config.probe.tau) for gram_BB in gram_LBB]
            header = {
                "scope": config.probe.scope,
                "space": self.adapter.space,
                "n_rows": len(run.texts),
                "objectives": list(objectives),
                "tau": config.probe.tau,
            }
            log.probe(
                step,
                header,
                layers,
                conflicts,
                {
                    "gram_LBB": gram_LBB.astype(np.float32),
                    "advantages_BK": run.advantages_BK,
                    "rewards_BK": run.scores.rewards_BK,
                    "group_B": run.group_B,
                },
            )

    def _log(self, step, rollout, scored, stats_SR, norm_R, gap_R, clock, probed) -> None:
        size = self.shape.rollout.batch_size
        lengths, ended = rollout.completion_len_N.cpu().numpy(), rollout.ended_N.cpu().numpy()
        rates = self.optimizer.learning_rates(step)
        clock.lap("log")
        for r, (log, config, run) in enumerate(zip(self.logs, self.configs, scored, strict=True)):
            part = slice(r * size, (r + 1) * size)
            names, run_lengths, run_ended = list(self.objectives[r]), lengths[part], ended[part]
            if step % config.logging_steps == 0 or probed:
                rows = sample_rows(step, names, run, run_lengths, run_ended)
                log.samples(rows)
                if step % config.logging_steps == 0:
                    log.text(sample_line(step, rows[0]))
            log.metrics(
                {
                    "step": step,
                    "epoch": run.epoch,
                    **metric_row(names, run, self.weights[r], config, stats_SR[:, r], run_lengths, run_ended),
                    "grad_norm": float(norm_R[r]),
                    "lr": rates[r],
                    "sampler_logp_gap_max_nats": float(gap_R[r]),
                    **clock.seconds(),
                }
            )

    def save(self) -> None:
        """One checkpoint file in the first run's work folder; the pack's others stand in it too."""
        tensors = self.optimizer.state()
        for r, state in enumerate(self.credit_states):
            tensors[f"baseline_K/{r}"] = torch.from_numpy(state.baseline_K)
        checkpoint.save(
            self.work[0] / "checkpoint.safetensors",
            checkpoint.Checkpoint(self.next_step, tensors, [log.sizes() for log in self.logs], self.specs),
        )

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        self.optimizer.restore(found.tensors)
        for r, state in enumerate(self.credit_states):
            state.baseline_K = found.tensors[f"baseline_K/{r}"].numpy().copy()
        self.next_step = found.next_step
        for log in self.logs:
            log.text(f"resumed at step {self.next_step}")


def check_pack(configs: Sequence[RunConfig]) -> None:
    """Raise ValueError naming the first parameter that the runs of a pack must share and do not."""

    def shared(config: RunConfig) -> dict[str, Any]:
        return {
            "model": config.model,
            "adapter.kind": config.adapter.kind,
            "adapter.targets": config.adapter.targets,
            "steps": config.steps,
            "rollout.batch_size": config.rollout.batch_size,
            "rollout.num_generations": config.rollout.num_generations,
            "rollout.max_new_tokens": config.rollout.max_new_tokens,
            "algorithm.inner_epochs": config.algorithm.inner_epochs,
            "probe.every": config.probe.every,
            "probe.scope": config.probe.scope,
        }

    for config in configs[1:]:
        for (name, expected), found in zip(shared(configs[0]).items(), shared(config).values(), strict=True):
            if found != expected:
                raise ValueError(
                    f"{name}: expected {expected} as in the pack's first run; found {found}. Do not pack them."
                )
