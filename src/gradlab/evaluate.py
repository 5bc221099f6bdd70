"""Fresh samples on held-out prompts, policy beside base, with intervals and a degeneracy verdict.

Both models draw with the same random numbers for the same prompt, so that differences are paired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradlab import data, models
from gradlab.adapters import Adapter, attach
from gradlab.config import RunConfig
from gradlab.diversity import diversity
from gradlab.objectives.base import Objective, build
from gradlab.records import OUTCOMES, completion_row
from gradlab.rollout import sample, uniforms
from gradlab.scoring import score
from gradlab.staged_evaluation import stamp
from gradlab.statistics import bootstrap_difference, bootstrap_mean
from gradlab.store import atomic_folder, canonical, read_jsonl, write_json, write_jsonl, write_text
from gradlab.types import Example, Scores
from gradlab.workfolder import EVALUATED, FINISHED

NOISE = 1  # purpose of the evaluation's random numbers: never those of training
ROWS = 128  # completions sampled at once


def evaluate(config: RunConfig, run_dir: str | Path, bases: str | Path) -> dict[str, Any]:
    """Write `eval.json` and `eval_samples.jsonl` of a trained run; returns the former's content.

    Raises ValueError when the adapter does not fit the configuration or a held-out prompt was trained on.
    """
    run_dir = Path(run_dir)
    return _evaluate(config, run_dir, run_dir, bases, {})


def evaluate_pack(runs: Mapping[Path, RunConfig], bases: str | Path) -> list[ValueError]:
    """Evaluate the runs staged in the work folders `runs`, for their own jobs to fetch (`staged_evaluation`).

    The base is sampled once for all runs that ask the same of it. A run that can not be evaluated is left to its own
    job; the errors are returned.
    """
    seen: dict[str, _Completions] = {}
    errors = []
    for work, config in runs.items():
        try:
            with atomic_folder(work / EVALUATED) as folder:
                _evaluate(config, work / FINISHED, folder, bases, seen)
                write_text(folder / "stamp", stamp(config, work / FINISHED, bases))
        except ValueError as error:
            errors.append(error)
    return errors


def _evaluate(
    config: RunConfig, run_dir: Path, out: Path, bases: str | Path, seen: dict[str, _Completions]
) -> dict[str, Any]:
    """`run_dir` holds adapter and metrics, `out` receives the files, `seen` keeps what the bases said."""
    torch.set_num_threads(config.placement.threads)
    lm = models.load(config.model, bases, config.placement.device)
    heldout = data.load_split(config.data.heldout)
    data.check_disjoint(data.load_split(config.data.train), heldout)
    in_turn = (e for e in chain.from_iterable(zip_longest(*heldout)) if e is not None)
    examples = list(islice(in_turn, config.evaluation.num_prompts))
    objectives = {label: build(label, o) for label, o in config.enabled_objectives.items()}

    adapter = attach(lm, [config.adapter], [config.seed])
    asked = _asked_of_the_base(config)
    if asked not in seen:
        seen[asked] = _Completions(adapter, config, examples, objectives)  # a fresh adapter changes nothing
    base = seen[asked]
    adapter.load(0, run_dir / "adapter")
    policy = _Completions(adapter, config, examples, objectives)

    result = _summary(config, objectives, policy, base, read_jsonl(run_dir / "metrics.jsonl"))
    write_jsonl(out / "eval_samples.jsonl", [*policy.rows("policy", objectives), *base.rows("base", objectives)])
    write_json(out / "eval.json", result)
    return result


def _asked_of_the_base(config: RunConfig) -> str:
    """All that its completions and their scores depend on."""
    kept = {"model", "objectives", "data", "rollout", "evaluation"}
    return canonical(config.model_dump(mode="json", include=kept, exclude={"evaluation": {"bootstrap"}}))


class _Completions:
    """`samples_per_prompt` completions of every held-out prompt, scored; N rows, prompt by prompt."""

    def __init__(
        self, adapter: Adapter, config: RunConfig, examples: list[Example], objectives: dict[str, Objective]
    ) -> None:
        lm, per_prompt, tokens = adapter.lm, config.evaluation.samples_per_prompt, config.rollout.max_new_tokens
        ids = {e.id: models.encode_prompt(lm, e, config.model.chat_template) for e in examples}
        models.check_context(lm, ids, tokens)
        self.examples = [e for e in examples for _ in range(per_prompt)]
        self.texts: list[str] = []
        lengths, ended = [], []
        at_once = max(1, ROWS // per_prompt)
        for start in range(0, len(examples), at_once):
            part = examples[start : start + at_once]
            noise = [uniforms(config.evaluation.seed, NOISE, start + i, per_prompt, tokens) for i in range(len(part))]
            rollout = sample(
                adapter,
                [[ids[e.id] for e in part]],
                per_prompt,
                tokens,
                [config.rollout.temperature],
                np.concatenate(noise),
            )
            self.texts += lm.decode(rollout)
            lengths.append(rollout.completion_len_N.cpu().numpy())
            ended.append(rollout.ended_N.cpu().numpy())
        self.length_N, self.ended_N = np.concatenate(lengths), np.concatenate(ended)
        self.scores: Scores = score(objectives, self.examples, self.texts)

    def rows(self, model: str, objectives: dict[str, Objective]) -> list[dict[str, Any]]:
        names, columns = list(objectives), zip(self.examples, self.texts, self.length_N, self.ended_N, strict=True)
        return [{"model": model, **completion_row(n, names, self.scores, *row)} for n, row in enumerate(columns)]

    def outcomes(self, objectives: dict[str, Objective]) -> dict[str, dict[str, int]]:
        counts = [Counter(str(row[k]) for row in self.scores.outcomes_BK) for k in range(len(objectives))]
        return {label: {o: count[o] for o in OUTCOMES} for label, count in zip(objectives, counts, strict=True)}


def _summary(
    config: RunConfig,
    objectives: dict[str, Objective],
    policy: _Completions,
    base: _Completions,
    metrics: list[dict[str, Any]],
) -> dict[str, Any]:
    prompt_N = [e.id for e in policy.examples]
    tasks, prompts = [e.task for e in policy.examples], [e.prompt for e in policy.examples]
    options = {"resamples": config.evaluation.bootstrap, "seed": config.evaluation.seed}
    estimates: dict[str, Any] = {}
    for k, label in enumerate(objectives):
        policy_N, base_N = policy.scores.rewards_BK[:, k], base.scores.rewards_BK[:, k]
        found = {
            "policy": bootstrap_mean(policy_N, prompt_N, **options),
            "base": bootstrap_mean(base_N, prompt_N, **options),
            "difference": bootstrap_difference(policy_N, base_N, prompt_N, **options),
        }
        estimates[label] = {name: None if e is None else asdict(e) for name, e in found.items()}
    sides = {"policy": policy, "base": base}
    keys = ["step", "reward_mean", *(f"reward_mean/{label}" for label in objectives)]
    return {
        "n_prompts": len(set(prompt_N)),
        "samples_per_prompt": config.evaluation.samples_per_prompt,
        "n_samples": len(prompt_N),
        "seed": config.evaluation.seed,
        "objectives": estimates,
        "outcomes": {name: side.outcomes(objectives) for name, side in sides.items()},
        "diversity": {
            "policy": diversity(policy.texts, prompts, tasks, reference=base.texts),
            "base": diversity(base.texts, prompts, tasks),
        },
        "completion_tokens_mean": {name: float(side.length_N.mean()) for name, side in sides.items()},
        "ended_fraction": {name: float(side.ended_N.mean()) for name, side in sides.items()},
        "reward_history": [{key: row[key] for key in keys} for row in metrics],
    }
