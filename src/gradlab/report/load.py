"""A sweep as the report reads it: its tables, and what is known of each run.

Averages and charts are of the runs that finished; `failed` holds the others. Of a sweep with many groups or runs the
charts draw some, and say so: see `drawn` and `single`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradlab.store import read_json

TABLES = ("runs", "metrics", "cosines", "pairs", "conflict", "evals", "samples")
NAMES_THEMSELVES = ("algorithm.name", "adapter.kind", "variant")
"""Parameters whose value says what it is; others read `lr=0.001`."""
MOST_GROUPS, MOST_SINGLE, MOST_SAMPLES = 20, 48, 2400
OF_EVERY_GROUP = ("probe/advantage_covariance", "probe/advantage_correlation")
"""Metrics that are read of groups that are not drawn, too."""
COLUMNS = {
    "runs": ["run", "status", "steps_done", "steps", "reason", "reward_mean"],
    "metrics": ["run", "step", "metric", "objective", "layer", "value"],
    "cosines": ["run", "step", "scope", "space", "layer", "objective_i", "objective_j", "cosine", "norm_i", "norm_j",
                "n_rows", "probe.tau"],
}  # fmt: skip
"""What is read of a table; not named here: all but the parameters of its runs."""


@dataclass(frozen=True)
class Sweep:
    """`group` (in `runs`, `failed` and every table) names what a run shares with the runs that differ only in seed.

    runs         one row a run that finished: run, group, seed, the parameters that vary, its last rewards' mean
    failed       the others: run, group, seed, steps_done, steps, reason
    varying      the names of those parameters, without seed
    drawn        the groups in charts; see `drawn_text`
    single       the runs in charts that have an entry a run; see `single_text`
    metrics      of the groups drawn (OF_EVERY_GROUP: of all)
    cosines, pairs, conflict, evals    see docs/DATA.md, plus `group`; single steps of `pairs`: of groups drawn
    samples      of all runs, thinned to MOST_SAMPLES; `n_samples` is how many there are
    """

    name: str
    title: str
    description: str
    folder: Path
    runs: pd.DataFrame
    failed: pd.DataFrame
    varying: list[str]
    drawn: list[str]
    single: list[str]
    metrics: pd.DataFrame
    cosines: pd.DataFrame
    pairs: pd.DataFrame
    conflict: pd.DataFrame
    evals: pd.DataFrame
    samples: pd.DataFrame
    n_samples: int
    configs: dict[str, dict[str, Any]]
    provenance: dict[str, dict[str, Any]]

    @cached_property
    def groups(self) -> list[str]:
        """Those with a run that finished."""
        return list(dict.fromkeys(self.runs["group"]))

    @cached_property
    def objectives(self) -> list[str]:
        """Labels of axis K over all runs, sorted."""
        enabled = {k for c in self.configs.values() for k, o in c["objectives"].items() if o.get("enabled", True)}
        return sorted(enabled)

    def seeds_text(self) -> str:
        """`n = 2 seeds (grpo), 3 seeds (rloo)`, for captions, and which groups are drawn."""
        counts = self.runs[self.runs["group"].isin(self.drawn)].groupby("group", sort=False)["run"].size()
        if counts.nunique() == 1:
            text = f"n = {plural(counts.iloc[0], 'seed')} a group"
        elif len(counts) <= 6:
            text = "n = " + ", ".join(f"{plural(n, 'seed')} ({group})" for group, n in counts.items())
        else:
            text = f"n = {counts.min()} to {counts.max()} seeds a group"
        return text + self.drawn_text()

    def drawn_text(self) -> str:
        """What a caption adds where groups are left out; how they were chosen stands at the head of the page."""
        if len(self.drawn) == len(self.groups):
            return ""
        return f", {len(self.drawn)} of {len(self.groups)} groups drawn"

    def single_text(self) -> str:
        """The same of charts with an entry a run."""
        if len(self.single) == len(self.runs):
            return ""
        return f" Drawn: {plural(len(self.single), 'run')} of {len(self.runs)}, evenly spaced in the groups drawn."


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def load(results: str | Path, sweep: str) -> Sweep:
    """Raises ValueError when a file of the sweep is missing, naming it and the command that makes it."""
    folder = Path(results) / sweep
    for path in (folder / "sweep.json", *(folder / f"{table}.parquet" for table in TABLES)):
        if not path.exists():
            raise ValueError(
                f"sweep {sweep!r}: expected the file {path}; found none. Make it: `snakemake --cores all -- {path}`."
            )
    about = read_json(folder / "sweep.json")
    configs = {entry["run"]: read_json(folder / "runs" / entry["run"] / "config.json") for entry in about["runs"]}
    provenance = {run: read_json(folder / "runs" / run / "provenance.json") for run in configs}
    varying = list(dict.fromkeys(key for entry in about["runs"] for key in entry["varies"] if key != "seed"))
    named = _named_by_variant(about["runs"])
    rows = []
    for entry in about["runs"]:
        config, varies = configs[entry["run"]], entry["varies"]
        group = (
            group_label({key: varies[key] for key in varying if key in varies and key not in named})
            or config["algorithm"]["name"]
        )
        rows.append({"run": entry["run"], "group": group, "seed": config["seed"], **varies})
    ended = pd.read_parquet(folder / "runs.parquet", columns=COLUMNS["runs"])
    if differ := set(ended["run"]) ^ set(configs):
        path = folder / "runs.parquet"
        raise ValueError(
            f"{path}: expected the runs of sweep.json; {sorted(differ)} differ. Make it again: "
            f"`snakemake --cores all -- {path}`."
        )
    everyone = pd.DataFrame(rows).merge(ended.drop(columns=list(varying), errors="ignore"), on="run")
    runs = everyone[everyone["status"] == "finished"].drop(columns=["status", "steps_done", "reason"])
    failed = everyone[everyone["status"] != "finished"][["run", "group", "seed", "steps_done", "steps", "reason"]]
    drawn = _spread(runs.groupby("group", sort=False)["reward_mean"].mean())
    shown = runs[runs["group"].isin(drawn)]["run"].tolist()
    single = _evenly(shown, MOST_SINGLE)
    group_of = everyone.set_index("run")["group"]
    finished = _among("run", runs["run"])
    wanted = {
        "metrics": _among("run", shown) | (finished & _among("metric", OF_EVERY_GROUP)),
        "cosines": finished,
        "pairs": (pc.field("level") != "step") | _among("run", shown),
    }
    tables = {
        table: _read_table(folder / f"{table}.parquet", group_of, wanted.get(table))
        for table in ("metrics", "cosines", "pairs", "conflict", "evals")
    }
    samples, n_samples = _read_samples(folder / "samples.parquet", group_of)
    return Sweep(
        about["name"], about["title"], about["description"], folder, runs, failed, varying, drawn, single, **tables,
        samples=samples, n_samples=n_samples, configs=configs, provenance=provenance,
    )  # fmt: skip


def _spread(reward: pd.Series) -> list[str]:
    """At most MOST_GROUPS of the groups, in their order: evenly spaced in rank of reward, the ends among them."""
    ranked = reward.sort_values(kind="stable").index.tolist()
    kept = set(_evenly(ranked, MOST_GROUPS))
    return [group for group in reward.index if group in kept]


def _evenly(items: list[Any], keep: int) -> list[Any]:
    if len(items) <= keep:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, keep).round().astype(int)]


def _named_by_variant(entries: list[dict[str, Any]]) -> set[str]:
    """Parameters that the name of a variant says: they have one value in each."""
    values: dict[tuple[str, str], set[str]] = {}
    for varies in (entry["varies"] for entry in entries if "variant" in entry["varies"]):
        for key in varies.keys() - {"variant", "seed"}:
            values.setdefault((key, varies["variant"]), set()).add(repr(varies[key]))
    several = {key for (key, _), found in values.items() if len(found) > 1}
    return {key for key, _ in values} - several


def group_label(varies: dict[str, Any]) -> str:
    """`grpo, lr=0.001`: short where the last part of a key says enough, else the whole key."""
    short = [key.rsplit(".", 1)[-1] for key in varies]
    parts = []
    for key, name, value in zip(varies, short, varies.values(), strict=True):
        text = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(text if key in NAMES_THEMSELVES else f"{name if short.count(name) == 1 else key}={text}")
    return ", ".join(parts)


def _among(column: str, values: Iterable[str]) -> pc.Expression:
    return pc.field(column).isin(pa.array(values, pa.string()))


def _read_table(path: Path, group_of: pd.Series, filters: pc.Expression | None = None) -> pd.DataFrame:
    """The table without its runs' parameters, with `group`; names that repeat in millions of rows are categories."""
    schema = pq.read_schema(path)
    own = [name for name in schema.names if (schema.field(name).metadata or {}).get(b"doc")]
    columns = COLUMNS.get(path.stem, [*own, *(["seed"] if path.stem == "evals" else [])])
    names = ["run", "metric", "objective", "layer"] if path.stem == "metrics" else []
    table = pq.read_table(path, columns=columns, filters=filters, read_dictionary=names).to_pandas()
    key = "first_run" if "first_run" in table else "run"
    if wrong := {*table[key].unique(), *table["run"].dropna().unique()} - set(group_of.index):
        raise ValueError(
            f"{path}: expected the runs of sweep.json; {sorted(wrong)} differ. Make it again: "
            f"`snakemake --cores all -- {path}`."
        )
    group = table[key].map(group_of)
    return table.assign(group=group.astype("category") if names else group)


def _read_samples(path: Path, group_of: pd.Series) -> tuple[pd.DataFrame, int]:
    """MOST_SAMPLES rows, evenly spaced, read a group of rows at a time: the texts of a large sweep are many."""
    file = pq.ParquetFile(path)
    columns = [name for name in file.schema_arrow.names if (file.schema_arrow.field(name).metadata or {}).get(b"doc")]
    total, start, parts = file.metadata.num_rows, 0, []
    kept = np.array(_evenly(list(range(total)), MOST_SAMPLES), dtype=int)
    for index in range(file.num_row_groups):
        n = file.metadata.row_group(index).num_rows
        inside = kept[(kept >= start) & (kept < start + n)] - start
        parts.append(file.read_row_group(index, columns=columns).take(inside).to_pandas())
        start += n
    frame = pd.concat(parts, ignore_index=True) if parts else file.read(columns=columns).to_pandas()
    return frame.assign(group=frame["run"].map(group_of)), total
