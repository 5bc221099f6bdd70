"""A sweep as the report reads it: six tables and what is known of each run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gradlab.store import read_json

TABLES = ("metrics", "cosines", "pairs", "conflict", "evals", "samples")
NAMES_THEMSELVES = ("algorithm.name", "adapter.kind", "variant")
"""Parameters whose value says what it is; others read `lr=0.001`."""


@dataclass(frozen=True)
class Sweep:
    """`group` (in `runs` and every table) names what a run shares with the runs that differ only in seed.

    runs         one row a run: run, group, seed, and the parameters that vary
    varying      the names of those parameters, without seed
    tables       metrics, cosines, pairs, conflict, evals, samples: see docs/DATA.md, plus `group` and `seed`
    """

    name: str
    title: str
    description: str
    folder: Path
    runs: pd.DataFrame
    varying: list[str]
    metrics: pd.DataFrame
    cosines: pd.DataFrame
    pairs: pd.DataFrame
    conflict: pd.DataFrame
    evals: pd.DataFrame
    samples: pd.DataFrame
    configs: dict[str, dict[str, Any]]
    provenance: dict[str, dict[str, Any]]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(self.runs["group"]))

    @property
    def objectives(self) -> list[str]:
        """Labels of axis K over all runs, sorted."""
        enabled = {k for c in self.configs.values() for k, o in c["objectives"].items() if o.get("enabled", True)}
        return sorted(enabled)

    def seeds_text(self) -> str:
        """`n = 2 seeds (grpo), 3 seeds (rloo)`, for captions."""
        counts = self.runs.groupby("group", sort=False)["run"].size()
        if counts.nunique() == 1:
            return f"n = {plural(counts.iloc[0], 'seed')} a group"
        return "n = " + ", ".join(f"{plural(n, 'seed')} ({group})" for group, n in counts.items())


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}" + ("" if n == 1 else "s")


def load(results: str | Path, sweep: str) -> Sweep:
    """Raises ValueError when a file of the sweep is missing, naming it and the command that makes it."""
    folder = Path(results) / sweep
    for path in (folder / "sweep.json", *(folder / f"{table}.parquet" for table in TABLES)):
        if not path.exists():
            raise ValueError(f"sweep {sweep!r}: expected the file {path}; found none. Make it with `snakemake {path}`.")
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
    runs = pd.DataFrame(rows)
    tables = {table: _read_table(folder / f"{table}.parquet", runs) for table in TABLES}
    return Sweep(
        about["name"], about["title"], about["description"], folder, runs, varying, **tables,
        configs=configs, provenance=provenance,
    )  # fmt: skip


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


def _read_table(path: Path, runs: pd.DataFrame) -> pd.DataFrame:
    table = pd.read_parquet(path)
    key = "first_run" if "first_run" in table else "run"
    known, found = set(runs["run"]), set(table[key]) | set(table["run"].dropna())
    # Only in metrics has every run rows: one without a probe has no cosine.
    wrong = found - known or (known - found if path.stem == "metrics" else set())
    if wrong:
        raise ValueError(
            f"{path}: expected the runs of sweep.json; {sorted(wrong)} differ. Run `snakemake {path}` again."
        )
    return table.merge(runs[["run", "group"]].rename(columns={"run": key}), on=key, how="left")
