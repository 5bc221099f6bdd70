"""Any objective, scored afterwards on the completions of a probed run: its cosines with all trained ones.

The saved Gram is of completions, not of objectives, so a new column of advantages is all that is needed. The
column gets the run's own credit with weight 0: centred and scaled as the trained ones are. Only a running baseline
(reinforce, ema) differs: it sees the probed steps alone, not those between. No model is run and no torch imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.config import ObjectiveConfig, RunConfig
from gradlab.credit import CreditState, credit
from gradlab.data import load_split
from gradlab.grams import SavedGram, saved_grams
from gradlab.inference import Evidence, ProbedStep, estimate, evidence, merge, q_values, verdict
from gradlab.objectives.base import build
from gradlab.scoring import score
from gradlab.store import read_json, read_jsonl
from gradlab.types import Example

Row = dict[str, Any]


def posthoc(run_dir: str | Path, label: str, objective: ObjectiveConfig, data_root: str | Path = ".") -> list[Row]:
    """One row a layer and trained objective: `label`'s cosine with it, with the columns of `pairs.parquet`.

    label       what the objective is called; not one of the run's own
    data_root   folder that the run's data files are relative to

    Raises ValueError when the run, its completions or its data lack something, or `label` is taken.
    """
    run_dir = Path(run_dir)
    config = RunConfig.model_validate(read_json(run_dir / "config.json"))
    if label in config.enabled_objectives:
        raise ValueError(f"label: expected one that the run has not; found {label!r}. Choose another.")
    layers: dict[str, list[Evidence]] = {}
    labels: list[str] = []
    judged = 0
    for saved, advantages_BK, rewards_BK in _extended(run_dir, config, label, objective, Path(data_root)):
        labels = saved.objectives
        judged += int((~np.isnan(rewards_BK[:, -1])).sum())
        for index, layer in enumerate(saved.layers):
            step = ProbedStep(saved.gram_LBB[index], advantages_BK, saved.group_B, ~np.isnan(rewards_BK))
            generator = np.random.default_rng([saved.step, index])
            layers.setdefault(layer, []).append(evidence(step, generator, tau=config.probe.tau))
    if not judged:
        raise ValueError(
            f"objective {label!r}: expected one that judges a completion of the run; found that it applies to none. "
            f"Its tasks: {', '.join(sorted(build(label, objective).tasks or ()))}."
        )
    rows = []
    for layer, parts in layers.items():
        found = estimate(merge(parts), np.random.default_rng(0))
        names = ("cosine", "unbiased", "low", "high", "alignment", "alignment_low", "alignment_high", "p", "n_steps",
                 "n_tested")  # fmt: skip
        rows += [
            {"layer": layer, "objective": label, "trained": k}
            | {name: getattr(found, f"{name}_KK")[-1, i].item() for name in names}
            for i, k in enumerate(labels)
        ]
    for row, q in zip(rows, q_values(np.array([row["p"] for row in rows])).tolist(), strict=True):
        row |= {"q": q, "verdict": verdict(row["alignment"], q)}
    return [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()} for row in rows]


def _extended(
    run_dir: Path, config: RunConfig, label: str, objective: ObjectiveConfig, data_root: Path
) -> Iterator[tuple[SavedGram, np.ndarray, np.ndarray]]:
    """Each probed step with the new objective as the last column of advantages and rewards."""
    scorer = build(label, objective)
    examples = {e.id: e for file in load_split([data_root / path for path in config.data.train]) for e in file}
    samples: dict[int, list[Row]] = {}
    for row in read_jsonl(run_dir / "samples.jsonl"):
        samples.setdefault(row["step"], []).append(row)
    state = CreditState()
    for saved in saved_grams(run_dir, list(config.enabled_objectives)):
        rows = sorted(samples.get(saved.step, []), key=lambda row: row["row"])
        if [row["row"] for row in rows] != list(range(len(saved.group_B))):
            raise ValueError(
                f"{run_dir}: samples.jsonl: step {saved.step}: expected all {len(saved.group_B)} completions of the "
                f"probed step; found {len(rows)}. Train the run again."
            )
        asked = [_example(examples, row, run_dir) for row in rows]
        new_B = score({label: scorer}, asked, [row["completion"] for row in rows]).rewards_BK
        rewards_BK = np.concatenate([saved.rewards_BK, new_B], axis=1)
        weights_K = np.array([o.weight for o in config.enabled_objectives.values()] + [0.0])
        columns_BK = credit(rewards_BK, saved.group_B, weights_K, config.algorithm, state)
        # The trained columns are those that trained: a running baseline has seen the steps between probes.
        yield saved, np.concatenate([saved.advantages_BK, columns_BK[:, -1:]], axis=1), rewards_BK


def _example(examples: dict[str, Example], row: Row, run_dir: Path) -> Example:
    found = examples.get(row["example"])
    if found is None or found.prompt != row["prompt"]:
        raise ValueError(
            f"{run_dir}: example {row['example']!r}: expected it in data.train of config.json with the prompt that the "
            f"run saw; found {'another prompt' if found else 'none'}. The data files have changed since."
        )
    return found
