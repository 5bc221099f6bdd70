"""Score an objective, trained or not, on a run's saved completions: its cosines with the trained ones, no model run.

python scripts/probe_posthoc.py results/demo/runs/<run> brevity --params '{"target_words": 1}' --label terse
"""

from __future__ import annotations

import argparse
import csv
import io
import json
from pathlib import Path

from gradlab.command_line import mapping, run
from gradlab.config import ObjectiveConfig
from gradlab.explain import validate
from gradlab.posthoc import posthoc
from gradlab.store import write_json, write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a run with probes")
    parser.add_argument("objective", help="a registered objective, see docs/OBJECTIVES.md")
    parser.add_argument("--params", type=mapping, default={}, help="its parameters as JSON")
    parser.add_argument("--label", help="what to call it (default: the objective, `_again` added where it was trained)")
    parser.add_argument("--data-root", type=Path, default=Path(), help="folder that the run's data files are below")
    parser.add_argument("--out", type=Path, help="folder of posthoc_<label>.csv and .json (default: the run's)")
    arguments = parser.parse_args()
    label = arguments.label or _free(arguments.run_dir, arguments.objective)
    objective = validate(ObjectiveConfig, {"kind": arguments.objective, "params": arguments.params})
    rows = posthoc(arguments.run_dir, label, objective, arguments.data_root)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    out = arguments.out or arguments.run_dir
    write_text(out / f"posthoc_{label}.csv", table.getvalue())
    write_json(out / f"posthoc_{label}.json", {"objective": objective.model_dump(mode="json"), "rows": rows})
    shown = (
        "layer",
        "trained",
        "cosine",
        "alignment",
        "alignment_low",
        "alignment_high",
        "p",
        "q",
        "n_tested",
        "verdict",
    )
    cells = [shown, *([_cell(key, row[key]) for key in shown] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(shown))]
    print(f"{label} against the trained objectives of {arguments.run_dir.name}")
    for line in cells:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print(out / f"posthoc_{label}.csv")


def _free(run_dir: Path, name: str) -> str:
    config = run_dir / "config.json"
    trained = json.loads(config.read_text(encoding="utf-8"))["objectives"] if config.exists() else {}
    return f"{name}_again" if name in trained else name


def _cell(key: str, value: object) -> str:
    signed = "" if key in ("p", "q") else "+"
    return "-" if value is None else f"{value:{signed}.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run(main)
