"""The on-policy loop: sample, score, credit, probe, update; for one run or a pack of R.

GRPO, RLOO and REINFORCE differ in `credit` alone. Against TRL's trainers it leaves out: iterable
datasets, gradient accumulation across rollouts, vLLM, mixed precision, callbacks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
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
from gradlab.credit import CreditState, Dominance, credit
from gradlab.gradients import Array, Probe
from gradlab.guards import check_gate, check_pack
from gradlab.journal import probed, write_probe, write_step
from gradlab.microbatch import plan
from gradlab.objectives.base import build
from gradlab.optimizer import StackedAdamW
from gradlab.rollout import sample, uniforms
from gradlab.runlog import RunLog
from gradlab.scoring import score
from gradlab.stopping import Stopped
from gradlab.store import write_json
from gradlab.types import Example, Rollout, ScoredRollout
from gradlab.update import Batch, Gradient, accumulate
from gradlab.weighting import Mixing
from gradlab.weighting import build as build_weighting
from gradlab.workfolder import LOG

NOISE = 0  # purpose of the training rollouts' random numbers


class RunFailed(RuntimeError):
    """One run cannot go on; its neighbours in the pack can, from their checkpoints. `run`: its position."""

    def __init__(self, run: int, message: str) -> None:
        super().__init__(message)
        self.run = run


class TrainingDiverged(RunFailed):
    """A loss or gradient that is not finite. The state before the update is kept."""


class Unscorable(RunFailed):
    """An objective refused a completion. The state before the step is saved."""


class Trainer:
    """R runs on one base. `train()` does all steps; between steps the state is whole."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        stamps: Sequence[str],
        work: Sequence[Path],
        lm: models.LanguageModel,
    ) -> None:
        check_pack(configs)
        self.configs, self.stamps, self.work, self.lm, self.shape = configs, stamps, work, lm, configs[0]
        self.objectives = [{k: build(k, o) for k, o in c.enabled_objectives.items()} for c in configs]
        self.weightings = [build_weighting(c) for c in configs]
        self.files = [data.load_split(c.data.train) for c in configs]
        for config, files in zip(configs, self.files, strict=True):
            data.check_disjoint(files, data.load_split(config.data.heldout))
        for objectives, files in zip(self.objectives, self.files, strict=True):
            for objective in objectives.values():
                for example in (e for file in files for e in file if objective.applies(e)):
                    objective.check(example)  # a missing field stops the run here, not at the step that meets it
        # By run: two runs' files may use one id for different prompts.
        self.prompt_ids = [
            {e.id: models.encode_prompt(lm, e, self.shape.model.chat_template) for file in files for e in file}
            for files in self.files
        ]
        for ids in self.prompt_ids:
            models.check_context(lm, ids, self.shape.rollout.max_new_tokens)
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
        self.dominances = [Dominance() for _ in configs]
        self.gate_open = False
        self._start()

    def _start(self) -> None:
        """Go on at the newest step that all runs have a checkpoint of, or begin."""
        runs = [folder.name for folder in self.work]
        together = [checkpoint.steps(folder, stamp) for folder, stamp in zip(self.work, self.stamps, strict=True)]
        self.next_step = max(set.intersection(*together), default=0)
        self.histories: list[list[dict[str, Any]]] = [[] for _ in runs]
        self.logs = []
        saved = [checkpoint.load(folder, self.next_step) if self.next_step else None for folder in self.work]
        for r, (folder, found) in enumerate(zip(self.work, saved, strict=True)):
            checkpoint.keep(folder, self.next_step)  # before the log is cut back
            self.logs.append(RunLog(folder / LOG, found.sizes if found else None))
            if found:
                self._restore(r, found)
                self.logs[r].text(f"resumed at step {self.next_step}")
            if not found or (found.history[-1]["runs"] != runs and self.next_step < self.shape.steps):
                self.histories[r].append({"from_step": self.next_step, "runs": runs})

    def train(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Every remaining step, with checkpoints; `stop` is asked after each.

        Raises RunFailed for the run that can not go on, ValueError at the gate, Stopped when `stop` says so.
        """
        total = self.shape.steps
        # A terminal gets a live bar; a log file gets a line now and then.
        interval = 0.5 if sys.stderr.isatty() else 15.0
        if self.next_step == 0 and len(self.configs) > 1:
            self.save()  # killed between the files of the next checkpoint, all have this step in common
        for step in tqdm(range(self.next_step, total), initial=self.next_step, total=total, mininterval=interval):
            self.step(step)
            self.next_step = step + 1
            asked = stop()
            if asked or self.next_step % self.shape.placement.checkpoint_every == 0 or self.next_step == total:
                self.save()
            if asked and self.next_step < total:
                raise Stopped(f"stopped after {self.next_step} of {total} steps. The same command continues.")

    def step(self, step: int) -> None:
        """One rollout and its `inner_epochs` updates."""
        clock = Clock(self.lm.device)
        rollout, prompts = self._sample(step)
        clock.lap("sample")
        # Baselines and weightings advance on copies: until the update is done, the state is that of the last step.
        states, mixing = [replace(state) for state in self.credit_states], Mixing(step, self.configs, self.weightings)
        scored = self._score(step, rollout, prompts, states, mixing.weights)
        clock.lap("score")
        measured, spec = probed(self.shape, step), self.shape.probe
        probe = Probe(self.adapter, spec.scope, spec.space) if measured or mixing.needs_gram else None
        microbatches = plan(rollout, len(self.configs), self.shape.placement.microbatch_tokens)
        advantage_N = torch.zeros(len(rollout.ids_NT)) if mixing.needs_gram else mixing.advantage(scored, None)
        batch = Batch.of(rollout, microbatches, advantage_N.to(self.lm.device), self.configs)
        total = self._update(step, batch, probe, scored, mixing)
        clock.lap("forward_backward")
        mixing.observe(scored, probe.gram() if probe is not None and measured else None)
        self.credit_states, self.weightings = states, mixing.weightings
        if probe is not None:
            if measured:
                write_probe(step, probe, self.configs, scored, self.logs)
            clock.lap("probe")
            clock.move("forward_backward", "probe", probe.seconds)
        clock.move("forward_backward", "weigh", mixing.seconds)
        rates = self.optimizer.learning_rates(step)
        write_step(step, self.configs, scored, mixing.combined, total, rates, clock, self.logs, self.dominances)

    def _update(
        self, step: int, batch: Batch, probe: Probe | None, scored: list[ScoredRollout], mixing: Mixing
    ) -> Gradient:
        """`inner_epochs` optimizer steps; the gate and the divergence check stand before each."""

        def weigh() -> torch.Tensor:
            assert probe is not None, "weights that wait for the Gram need a probe"
            return mixing.advantage(scored, probe.gram()).to(self.lm.device)

        total: Gradient | None = None
        for inner in range(self.shape.algorithm.inner_epochs):
            self.optimizer.zero_grad()
            if inner == 0:
                stats_SR, gap_R = accumulate(self.adapter, batch, True, probe, weigh if mixing.needs_gram else None)
            else:
                stats_SR, gap_R = accumulate(self.adapter, batch, False, None)
            found = Gradient(stats_SR, gap_R, self.optimizer.gradient_norms())
            if (run := found.first_unsound()) is not None:
                raise self._diverged(step, inner, run, found, scored[run])
            if not self.gate_open:
                check_gate(step, float(gap_R.max()), self.lm.head_weight.dtype)
                self.gate_open = True
            if probe is not None and probe.space != "preconditioned":
                probe.measure()
            self.optimizer.step(step, found.norm_R)
            if probe is not None and probe.space == "preconditioned":
                probe.measure(self.optimizer.preconditioner())
            total = found if total is None else total.with_epoch(found)
        assert total is not None
        return total

    def _sample(self, step: int) -> tuple[Rollout, list[tuple[list[Example], int]]]:
        shape = self.shape.rollout
        prompts = [
            data.prompts_at(files, step, shape.batch_size // shape.num_generations, c.seed)
            for c, files in zip(self.configs, self.files, strict=True)
        ]
        noise = [uniforms(c.seed, NOISE, step, shape.batch_size, shape.max_new_tokens) for c in self.configs]
        rollout = sample(
            self.adapter,
            [[ids[e.id] for e in examples] for ids, (examples, _) in zip(self.prompt_ids, prompts, strict=True)],
            shape.num_generations,
            shape.max_new_tokens,
            [c.rollout.temperature for c in self.configs],
            np.concatenate(noise),
        )
        return rollout, prompts

    def _score(
        self,
        step: int,
        rollout: Rollout,
        prompts: list[tuple[list[Example], int]],
        states: list[CreditState],
        weights: list[Array],
    ) -> list[ScoredRollout]:
        texts = self.lm.decode(rollout)
        size, generations = self.shape.rollout.batch_size, self.shape.rollout.num_generations
        group_B = np.repeat(np.arange(size // generations), generations)
        lengths_N, ended_N = rollout.completion_len_N.cpu().numpy(), rollout.ended_N.cpu().numpy()
        scored = []
        for r, (config, (examples, epoch)) in enumerate(zip(self.configs, prompts, strict=True)):
            rows = [examples[g] for g in group_B]
            part = slice(r * size, (r + 1) * size)
            try:
                scores = score(self.objectives[r], rows, texts[part])
            except ValueError as error:
                self.save()
                raise Unscorable(r, f"step {step}: {error}. The state before is in {self.work[r]}.") from error
            advantages = credit(scores.rewards_BK, group_B, weights[r], config.algorithm, states[r])
            scored.append(
                ScoredRollout(rows, texts[part], group_B, lengths_N[part], ended_N[part], scores, advantages, epoch)
            )
        return scored

    def _diverged(self, step: int, inner: int, run: int, found: Gradient, scored: ScoredRollout) -> TrainingDiverged:
        """Keep the state and the rows, and say so."""
        if inner == 0:  # later inner epochs have moved the parameters: the last checkpoint stays
            self.save()
        rows = zip(scored.examples, scored.texts, strict=True)
        write_json(
            self.work[run] / "diverged.json",
            {"step": step, "inner_epoch": inner, "rows": [{"example": e.id, "completion": t} for e, t in rows]},
        )
        return TrainingDiverged(
            run,
            f"step {step}: expected a finite loss and gradient; found loss {float(found.stat_R('loss')[run]):.4g} and "
            f"gradient norm {float(found.norm_R[run]):.4g}. Lower optimizer.lr, or clip by optimizer.max_grad_norm. "
            f"The step's rows are in {self.work[run]}/diverged.json.",
        )

    def save(self) -> None:
        """One checkpoint a run, in its own work folder."""
        checkpoint.save(self.work, [self._checkpoint(r) for r in range(len(self.configs))])

    def _checkpoint(self, r: int) -> checkpoint.Checkpoint:
        tensors = self.optimizer.state(r)
        tensors["updates"] = torch.tensor(self.optimizer.updates)
        tensors["baseline_K"] = torch.from_numpy(self.credit_states[r].baseline_K)
        tensors["dominance"] = torch.tensor(self.dominances[r].state)
        tensors |= {f"weighting/{k}": torch.from_numpy(array) for k, array in self.weightings[r].memory.items()}
        return checkpoint.Checkpoint(self.next_step, tensors, self.logs[r].sizes(), self.stamps[r], self.histories[r])

    def _restore(self, r: int, found: checkpoint.Checkpoint) -> None:
        self.optimizer.restore(r, found.tensors)
        self.optimizer.updates = int(found.tensors["updates"])
        self.credit_states[r].baseline_K = found.tensors["baseline_K"].numpy().copy()
        self.dominances[r] = Dominance(*found.tensors["dominance"].tolist())
        self.weightings[r].memory = {
            name.removeprefix("weighting/"): tensor.numpy().copy()
            for name, tensor in found.tensors.items()
            if name.startswith("weighting/")
        }
        self.histories[r] = list(found.history)
