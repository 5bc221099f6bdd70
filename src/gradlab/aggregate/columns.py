"""The columns of the seven tables of a sweep; docs/DATA.md is written from here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa


class Column(NamedTuple):
    name: str
    type: pa.DataType
    doc: str


RUN = Column("run", pa.string(), "Run id: the name of its folder.")
STEP = Column("step", pa.int64(), "Training step, from 0.")
OUTCOMES = ("right", "wrong", "unparseable", "graded")
LAYER = "`all`, `last`, a block's index, or one of its modules (`3.attention`)."
PLACE = (
    Column("level", pa.string(), "What is pooled: `run` (its steps), `group` (the runs that differ only in seed)."),
    Column("run", pa.string(), "Run id; null for a group."),
    Column("first_run", pa.string(), "The group: its first run that finished."),
    Column("n_runs", pa.int64(), "Runs pooled."),
    Column("layer", pa.string(), LAYER),
)

COLUMNS: dict[str, tuple[Column, ...]] = {
    "runs": (
        RUN,
        Column("status", pa.string(), "`finished`, or `diverged`: its loss or gradient was not finite."),
        Column("steps_done", pa.int64(), "Steps taken, of `steps`."),
        Column("reason", pa.string(), "Why a run diverged; null of one that finished."),
        Column("seconds", pa.float64(), "Of training: the sum of its steps' wall-clock seconds."),
        Column("seconds/step", pa.float64(), "Their mean."),
        Column("n_last_steps", pa.int64(), "Steps that `reward_mean` is taken over: the last tenth, at least one. "
               "Null, as the rewards are, unless the run finished."),
        Column("reward_mean", pa.float64(), "Mean over those steps of the weighted sum of raw rewards that training "
               "logs."),
    ),
    "metrics": (
        RUN,
        STEP,
        Column("metric", pa.string(), "Name as in `metrics.jsonl`, without the objective: `reward_mean`, "
               "`outcome/right`, `seconds/step`; and `probe/norm`, `probe/net_synergy`, `probe/conflict_fraction`, "
               "`probe/n_undefined_pairs`, `probe/advantage_covariance` and `probe/advantage_correlation` (of "
               "the objective's reward with the advantage that trains, within prompts) at probed steps."),
        Column("objective", pa.string(), "Label of the objective; null where the metric belongs to none."),
        Column("layer", pa.string(), "Layer of a `probe/` metric; else null."),
        Column("value", pa.float64(), "The number; null where there is no signal."),
    ),
    "cosines": (
        RUN,
        STEP,
        Column("scope", pa.string(), "Parameters probed: `last_block`, `adapter`, `per_layer`."),
        Column("space", pa.string(), "Where the cosine was taken, as in `probe.jsonl`: `factors`, `weights`, ..."),
        Column("layer", pa.string(), LAYER),
        Column("objective_i", pa.string(), "First of the pair; each pair stands once, i before j on axis K."),
        Column("objective_j", pa.string(), "Second of the pair."),
        Column("cosine", pa.float64(), "Cosine of the two objectives' gradients; null where one of them is 0."),
        Column("norm_i", pa.float64(), "Norm of the gradient of objective_i."),
        Column("norm_j", pa.float64(), "Norm of the gradient of objective_j."),
        Column("n_rows", pa.int64(), "Completions behind the two gradients."),
    ),
    "pairs": (
        PLACE[0]._replace(doc="What is pooled: `step` (nothing), `run` (its steps), `group` (the runs that differ only "
                              "in seed)."),
        *PLACE[1:],
        Column("step", pa.int64(), "Training step at level `step`; else null."),
        Column("objective_i", pa.string(), "First of the pair; each pair stands once."),
        Column("objective_j", pa.string(), "Second of the pair."),
        Column("cosine", pa.float64(), "Plain cosine, mean over steps; noise is in its norms and, if shared, in it."),
        Column("unbiased", pa.float64(), "Cross-fitted cosine: products of different completions. Null where a norm "
               "is not surely positive."),
        Column("low", pa.float64(), "Lower end of its 95 % bootstrap interval over steps (from 8 on) or prompts."),
        Column("high", pa.float64(), "Upper end."),
        Column("alignment", pa.float64(), "Cross-fitted inner product over the plain norms: the cosine's sign, shrunk "
               "towards 0 by noise."),
        Column("alignment_low", pa.float64(), "Lower end of its 95 % bootstrap interval."),
        Column("alignment_high", pa.float64(), "Upper end."),
        Column("p", pa.float64(), "Two-sided p-value of no relation: permutations within prompts and, from 8 steps on, "
               "sign flips of steps; the larger."),
        Column("q", pa.float64(), "p adjusted for its family (false discovery rate): all pairs and layers of the "
               "run or group; at level `step` all steps of the run, too."),
        Column("verdict", pa.string(), "`conflict` or `synergy` (q < 0.05), else `not distinguishable from 0`; null "
               "where nothing can be tested."),
        Column("n_steps", pa.int64(), "Steps at which both objectives have a gradient."),
        Column("n_tested", pa.int64(), "Of those, steps with four rows or more a prompt, or two prompts or more."),
    ),
    "conflict": (
        *PLACE,
        Column("tau", pa.float64(), "A pair is in conflict when its cosine is below -tau."),
        Column("conflict_fraction", pa.float64(), "Share of the defined pairs in conflict (plain cosine), mean over "
               "steps."),
        Column("null", pa.float64(), "The same with every objective's advantages shuffled by itself within prompts."),
        Column("null_low", pa.float64(), "95 % of the shuffles are between null_low ..."),
        Column("null_high", pa.float64(), "... and null_high."),
        Column("p", pa.float64(), "Two-sided p-value against the shuffles."),
        Column("n_steps", pa.int64(), "Steps with a defined pair."),
    ),
    "evals": (
        RUN,
        Column("measure", pa.string(), "`reward`, or a measure of the text: `unique_fraction`, `jaccard_mean`, "
               "`distinct_1`, `distinct_2`, `compression_ratio`, `degenerate` (0 or 1), `completion_tokens_mean`, "
               "`ended_fraction`."),
        Column("objective", pa.string(), "Label of the objective of a `reward`; else null."),
        Column("model", pa.string(), "`policy` (after training), `base` (before), or their `difference`."),
        Column("mean", pa.float64(), "Mean over held-out completions."),
        Column("low", pa.float64(), "Lower end of the 95 % bootstrap interval over prompts."),
        Column("high", pa.float64(), "Upper end."),
        Column("n", pa.int64(), "Completions."),
        *(Column(name, pa.int64(), f"Completions whose outcome is {name}.") for name in OUTCOMES),
        Column("note", pa.string(), "Reasons of a `degenerate` verdict."),
    ),
    "samples": (
        RUN,
        Column("source", pa.string(), "`train`, or held out: `policy` (after training) or `base` (before)."),
        Column("step", pa.int64(), "Training step; null for held-out completions."),
        Column("row", pa.int64(), "Row in the batch, or in `eval_samples.jsonl`."),
        Column("example", pa.string(), "Id of the prompt."),
        Column("task", pa.string(), "Task of the prompt."),
        Column("prompt", pa.string(), "What the model read."),
        Column("completion", pa.string(), "What it wrote: untrusted text."),
        Column("ended", pa.bool_(), "Whether it ended by itself."),
        Column("completion_tokens", pa.int64(), "Tokens written."),
    ),
}  # fmt: skip
PER_OBJECTIVE = {
    "runs": (Column("reward_mean", pa.float64(), "The same of objective `<k>`, raw, over the steps that have it."),),
    "samples": (
        Column("reward", pa.float64(), "Reward of objective `<k>`; null where it does not apply."),
        Column("outcome", pa.string(), "Outcome of objective `<k>`; null where it does not apply."),
        Column("advantage", pa.float64(), "Advantage of objective `<k>`; null where it does not apply."),
    ),
}
"""Columns `<name>/<k>` that a table has for each objective."""
SAMPLE_STEPS, SAMPLE_ROWS, HELDOUT_ROWS = 12, 16, 48


HEAD = """# The tables of a sweep

`scripts/aggregate.py` reads the runs of a sweep and writes seven Parquet files to `results/<sweep>/`. Each is
tidy: one number (or one completion) a row. Null is "no signal" and never 0. This page is written from the
code by `python scripts/aggregate.py --docs > docs/DATA.md`; a test keeps the two equal.

Every table also has the run's parameters as columns, named by the dotted keys of `config.json`:
`algorithm.name`, `adapter.kind`, `optimizer.lr`, `objectives.<k>.weight`, `seed`, ... Values are bool, int64,
double or string; integers mixed with fractions become double, other mixtures string. A parameter that a
run does not have is null; so is the seed of a group of several runs. Lists (such as `data.train`) have no column.
"""
TAIL = f"""
A run that diverged has its rows up to there in `runs`, `metrics`, `cosines` and `samples`, and none in `pairs`,
`conflict` and `evals`: no statistic speaks of it. Take it out of means of your own, by `status` of `runs`. Runs that
differ only in seed stand together; row groups hold whole runs, so that a filter on `run` reads little.

Samples are thinned without randomness: of each run at most {SAMPLE_STEPS} logged steps, of each of them at most
{SAMPLE_ROWS} rows, and at most {HELDOUT_ROWS} held-out rows a model; each choice is evenly spaced, the first and the
last in it. All completions are in the run's `samples.jsonl` and `eval_samples.jsonl`.

```python
import pandas as pd

cosines = pd.read_parquet("results/demo/cosines.parquet")
cosines.groupby(["algorithm.name", "objective_i", "objective_j"]).cosine.agg(["mean", "std", "count"])
pairs = pd.read_parquet("results/demo/pairs.parquet")
pairs[pairs.level == "group"][["algorithm.name", "objective_i", "objective_j", "alignment", "q", "verdict"]]
```

What the numbers of `pairs` and `conflict` mean, and where they break: [synergy.md](synergy.md).
"""


def documentation() -> str:
    """The text of docs/DATA.md."""
    lines = []
    for name, columns in COLUMNS.items():
        lines += ["", f"## {name}.parquet", "", "| column | type | meaning |", "|---|---|---|"]
        own = [c._replace(name=f"{c.name}/<k>") for c in PER_OBJECTIVE.get(name, ())]
        lines += [f"| `{c.name}` | {c.type} | {c.doc} |" for c in (*columns, *own)]
    return HEAD + "\n".join(lines) + "\n" + TAIL


def columns_of(table: str, objectives: Iterable[str]) -> tuple[Column, ...]:
    """The columns of a table in a sweep with these objectives, without the runs' parameters."""
    own = (
        Column(f"{c.name}/{label}", c.type, c.doc.replace("<k>", label))
        for c in PER_OBJECTIVE.get(table, ())
        for label in objectives
    )
    return (*COLUMNS[table], *own)
