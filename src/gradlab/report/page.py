"""Sections to one HTML file that asks the network for nothing.

Vega, Vega-Lite and Vega-Embed stand in it once. A content security policy lets exactly the page's own
scripts run, by their SHA-256, without `eval` (Vega interprets its expressions); everything else is
refused. Data is JSON in `<script>` with `<` escaped; text goes through Jinja's autoescape, and the
sample browser sets text, never HTML.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gradlab.report import sections as _register  # noqa: F401
from gradlab.report.blocks import SECTIONS
from gradlab.report.load import Sweep, load, plural
from gradlab.report.sections.summary import headline
from gradlab.report.theme import CONFIG
from gradlab.store import write_text


def write_report(results: str | Path, sweep: str, out: str | Path, command: str) -> None:
    """Write the page of `results/<sweep>` to `out`; `command` re-makes it and is shown on it.

    Raises ValueError when a table is missing.
    """
    out = Path(out)
    loaded = load(results, sweep)
    write_text(out, render(loaded, command, os.path.relpath(loaded.folder, out.parent)))


def render(sweep: Sweep, command: str, link_base: str = ".") -> str:
    """The page as text. `link_base` is the way from the page to the sweep's folder."""
    told = [section for section in SECTIONS.values() if section.without_runs or not sweep.runs.empty]
    built = [(section, list(section.build(sweep))) for section in told]
    contents = [(section, blocks) for section, blocks in built if blocks]
    return fill(
        "page.html.j2",
        [vega(), template("page.js")],
        sweep=sweep,
        headline=headline(sweep),
        sections=contents,
        facts=f"{plural(len(sweep.configs), 'run')} in {plural(len(sweep.groups), 'group')}"
        + (f", {len(sweep.failed)} failed" if len(sweep.failed) else ""),
        left_out=f" Without {plural(len(sweep.failed), 'run')} that failed." if len(sweep.failed) else "",
        command=command,
        link_base="" if link_base == "." else f"{link_base}/",
        config=CONFIG,
    )


@functools.cache
def vega() -> str:
    """Vega, Vega-Lite of Altair's version and Vega-Embed as one script."""
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)


def fill(name: str, scripts: list[str], **values: Any) -> str:
    """The template `name` with its style, `scripts` in order, and a policy that allows them alone."""
    scripts = [script.replace("\r\n", "\n").replace("</script", "<\\/script") for script in scripts]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("gradlab.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["embedded"] = embedded
    page = environment.get_template(name)
    style = Markup(template("style.css"))  # our own file, no input in it
    return page.render(policy=policy, style=style, scripts=[Markup(script) for script in scripts], **values)


def embedded(value: Any) -> Markup:
    """JSON that cannot end the `<script>` it stands in, nor open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def template(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
