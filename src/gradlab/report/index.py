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

    A sweep is listed when `results/<sweep>/report.html` exists. One whose tables are gone, or were made by another
    version, is listed with what is missing in place of its headline: it must not keep the others from the page.
    """
    results = Path(results)
    pages = sorted(results.glob("*/report.html"), key=lambda page: (-page.stat().st_mtime, page.parent.name))
    rows = []
    for page in pages:
        name, date = page.parent.name, datetime.fromtimestamp(page.stat().st_mtime, UTC)
        try:
            sweep = load(results, name)
            about = {"title": sweep.title, "runs": len(sweep.configs), "headline": headline(sweep)}
        except ValueError as error:
            about = {"title": name, "runs": "", "headline": str(error)}
        rows.append({"name": name, "href": f"{name}/report.html", "date": f"{date:%Y-%m-%d %H:%M} UTC", **about})
    write_text(out or results / "index.html", fill("index.html.j2", [], rows=rows))
    return [page.parent.name for page in pages]
