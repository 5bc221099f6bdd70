"""The runs, their parameters, and where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from gradlab.report.blocks import Block, Link, Note, Table, section
from gradlab.report.load import Sweep, plural

FILES = ("config.json", "train.log", "metrics.jsonl", "samples.jsonl", "eval.json", "provenance.json")
LONGEST = 120  # characters of a value: a pack names all its runs
MUST_AGREE = ("git_commit", "code_digest", "python", "device")
"""Keys of provenance.json that should be equal within a sweep, as should everything under `versions.`."""


@section("runs", "Runs", without_runs=True)
def runs(sweep: Sweep) -> Iterable[Block]:
    flat = {run: flatten(config) for run, config in sweep.configs.items()}
    keys = list(dict.fromkeys(key for parameters in flat.values() for key in parameters))
    differing = [key for key in keys if len({parameters.get(key) for parameters in flat.values()}) > 1]
    rows: list[list[str | list[Link]]] = []
    for run, parameters in flat.items():
        files = [Link(file.split(".")[0], f"runs/{run}/{file}") for file in FILES]
        values = [parameters.get(key, "—") for key in differing]
        rows.append([[Link(run, f"runs/{run}/")], *values, files])
    caption = (
        f"{plural(len(rows), 'run')}; the columns are the parameters that differ. Links lead to the run's own files."
    )
    yield Table("Runs and what differs", caption, ["run", *differing, "files"], rows)
    shared: list[list[str | list[Link]]] = [[key, flat[next(iter(flat))][key]] for key in keys if key not in differing]
    yield Table("Parameters that all runs share", "From config.json.", ["parameter", "value"], shared, folded=True)


@section("provenance", "Provenance", without_runs=True)
def provenance(sweep: Sweep) -> Iterable[Block]:
    flat = {run: flatten(record) for run, record in sweep.provenance.items()}
    keys = list(dict.fromkeys(key for record in flat.values() for key in record))
    values = {key: {run: record.get(key, "—") for run, record in flat.items()} for key in keys}
    for key in keys:
        kinds = sorted(set(values[key].values()))
        if len(kinds) > 1 and (key in MUST_AGREE or key.startswith("versions.")):
            parts = [f"{kind} ({plural(list(values[key].values()).count(kind), 'run')})" for kind in kinds]
            text = f"The runs of this sweep differ in {key}: {', '.join(parts)}. Compare them with care."
            yield Note(text, warning=True)
    if any(record.get("git_commit", "").endswith("-dirty") for record in flat.values()):
        yield Note("Some runs were made from a checkout with uncommitted changes (-dirty).", warning=True)
    rows: list[list[str | list[Link]]] = []
    for key in keys:
        kinds = list(dict.fromkeys(values[key].values()))
        shown = [kind if len(kind) <= LONGEST else kind[:LONGEST] + "…" for kind in kinds[:8]]
        rows.append([key, ", ".join(shown) + (", …" if len(kinds) > 8 else "")])
    caption = f"From the provenance.json of {plural(len(flat), 'run')}; several values where runs differ."
    yield Table("Versions, commit, seeds and device", caption, ["key", "value"], rows)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys to text; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
