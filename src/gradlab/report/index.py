"""results/index.html: every sweep that has a report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from gradlab.report.load import load
from gradlab.report.page import fill
from gradlab.report.sections.summary import headline
from gradlab.store import write_text


def write_index(results: str | Path, out: str | Path | None = None) -> list[str]:
    """Write `out` (default `results/index.html`); returns the names of the sweeps on it, latest report first.

    A sweep is listed when `results/<sweep>/report.html` exists. Raises ValueError when its tables are gone.
    """
    results = Path(results)
    pages = sorted(results.glob("*/report.html"), key=lambda page: (-page.stat().st_mtime, page.parent.name))
    rows = []
    for page in pages:
        sweep = load(results, page.parent.name)
        date = datetime.fromtimestamp(page.stat().st_mtime, UTC)
        rows.append({"href": f"{page.parent.name}/report.html", "sweep": sweep, "headline": headline(sweep),
                     "date": f"{date:%Y-%m-%d %H:%M} UTC"})  # fmt: skip
    write_text(out or results / "index.html", fill("index.html.j2", [], rows=rows))
    return [page.parent.name for page in pages]
