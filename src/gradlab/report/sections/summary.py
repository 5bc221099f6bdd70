"""What the sweep found, in two tables and one sentence."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from gradlab.inference import NEITHER
from gradlab.report.blocks import Block, Note, Table, interval, number, section
from gradlab.report.load import Sweep, plural
from gradlab.report.pairs import keep_level, layers_text, main_layer, pair_means


def heldout(sweep: Sweep) -> pd.DataFrame:
    """Per group, objective and model: mean over seeds, envelope of the seeds' intervals, seeds, completions a run."""
    rewards = sweep.evals[sweep.evals["measure"] == "reward"].dropna(subset=["mean"])
    grouped = rewards.groupby(["group", "objective", "model"], sort=False)
    return grouped.agg(
        mean=("mean", "mean"), low=("low", "min"), high=("high", "max"), seeds=("run", "nunique"), n=("n", "max")
    ).reset_index()


def headline(sweep: Sweep) -> str:
    """One sentence: failures, the largest held-out change, the lowest and highest mean cosine, how many are not 0."""
    if sweep.runs.empty:
        return f"No run finished: {plural(len(sweep.failed), 'run')} diverged."
    parts = [f"{len(sweep.failed)} of {plural(len(sweep.configs), 'run')} diverged"] if len(sweep.failed) else []
    changes = heldout(sweep).query("model == 'difference'")
    if len(changes):
        best = changes.loc[changes["mean"].idxmax()]
        word = "largest held-out gain" if best["mean"] > 0 else "no held-out gain; best change"
        parts.append(f"{word}: {best['objective']} {number(best['mean'], sign=True)} ({best['group']})")
    pairs = pair_means(main_layer(sweep)).dropna(subset=["mean"])
    if len(pairs):
        for word, index in (("lowest", pairs["mean"].idxmin()), ("highest", pairs["mean"].idxmax())):
            pair = pairs.loc[index]
            name = f"{pair['objective_i']} · {pair['objective_j']}"
            parts.append(f"{word} mean cosine: {name} {number(pair['mean'], sign=True)} ({pair['group']})")
        verdicts = keep_level(sweep.pairs, "group")["verdict"].dropna()
        if len(verdicts):
            parts.append(f"{(verdicts != NEITHER).sum()} of {plural(len(verdicts), 'pair')} distinguishable from 0")
    text = "; ".join(parts) or "no evaluation difference and no cosine"
    return f"{text[0].upper()}{text[1:]}."


@section("summary", "Summary", without_runs=True)
def summary(sweep: Sweep) -> Iterable[Block]:
    yield Note(headline(sweep))
    if sweep.runs.empty:
        return
    yield _heldout_table(sweep)
    yield _pair_table(sweep)


def _heldout_table(sweep: Sweep) -> Block:
    table = heldout(sweep)
    table = table[table["group"].isin(sweep.drawn)]
    if table.empty:
        return Note("No held-out reward: the evaluation has no estimate for any objective.")
    rows = []
    for (group, objective), part in table.groupby(["group", "objective"], sort=False):
        by = part.set_index("model")
        cells = [
            number(by.at[m, "mean"], sign=m == "difference")
            + interval(by.at[m, "low"], by.at[m, "high"], sign=m == "difference")
            if m in by.index
            else "—"
            for m in ("base", "policy", "difference")
        ]
        rows.append([group, objective, *cells, str(by["seeds"].max()), str(int(by["n"].max()))])
    caption = (
        "Mean raw reward on held-out prompts before (base) and after training (policy), and their difference. The mean "
        "is over seeds; in brackets the lowest and highest end of the seeds' 95 % bootstrap intervals over prompts, "
        f"wider than any single one. n: completions a run and model{sweep.drawn_text()}."
    )
    columns = ["group", "objective", "base", "policy", "difference", "seeds", "n"]
    return Table("Held-out reward, before and after", caption, columns, rows, numeric=frozenset(range(2, 7)))


def _pair_table(sweep: Sweep) -> Block:
    frame = main_layer(sweep)
    if frame.empty:
        return Note(no_cosines(sweep))
    frame = frame[frame["group"].isin(sweep.drawn)]
    tested = keep_level(sweep.pairs, "group").set_index(["group", "objective_i", "objective_j"])["verdict"]
    verdicts = tested.dropna().to_dict()
    rows = []
    for pair in pair_means(frame).itertuples():
        apart = verdicts.get((pair.group, pair.objective_i, pair.objective_j)) or "—"
        mean = number(pair.mean, sign=True) + interval(pair.low, pair.high, sign=True)
        seeds = frame[frame["group"] == pair.group]["run"].nunique()
        name = f"{pair.objective_i} · {pair.objective_j}"
        rows.append([pair.group, name, mean, apart, number(pair.below), str(seeds), str(pair.n), str(pair.undefined)])
    caption = (
        "Cosine between the gradients of two objectives: mean over all probed steps and seeds, with 1.96 standard "
        "errors over probes (each probe has fresh completions; taken as independent). Verdict: from products of "
        "different completions, which noise shared by two rewards does not move; false discovery rate 5 % over the "
        "pairs of a group. So a cosine whose interval excludes 0 can be “not distinguishable”: on these completions "
        "the two gradients point so, but nothing says that they would on others. Conflict: share of defined probes "
        "below minus τ. Undefined probes, where an objective has no gradient, are counted and left out. "
        f"Probed: {layers_text(frame)}{sweep.drawn_text()}."
    )
    columns = ["group", "pair", "cosine", "verdict", "conflict", "seeds", "n probes", "undefined"]
    return Table("Cosines between objectives", caption, columns, rows, numeric=frozenset((2, 4, 5, 6, 7)))


def no_cosines(sweep: Sweep) -> str:
    """Why there is no cosine."""
    if all(config["probe"]["every"] == 0 for config in sweep.configs.values()):
        return "No cosines: these runs have no probe (probe.every is 0)."
    if len(sweep.objectives) == 1:
        return f"No cosines: there is one objective ({sweep.objectives[0]}), and a cosine needs two."
    return f"No cosines: no run has two objectives ({plural(len(sweep.objectives), 'objective')} in the whole sweep)."
