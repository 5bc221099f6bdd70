"""The page as a file: offline, safe, the same twice; its errors, its index and its command line."""

from __future__ import annotations

import html
import re
import runpy
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import altair as alt
import pytest
from fake_reports import COMMAND, blocks
from fake_runs import NASTY, write_sweep

from gradlab.aggregate import aggregate
from gradlab.report import load, write_index, write_report
from gradlab.report.blocks import Browser
from gradlab.report.page import embedded, render
from gradlab.report.sections.summary import headline
from gradlab.store import read_json, write_json

ROOT = Path(__file__).parents[1]


def test_runs_link_to_their_files(results, page):
    text = page.read_text(encoding="utf-8")
    for run in load(results, "demo").configs:
        for target in (f"runs/{run}/", f"runs/{run}/eval.json"):
            assert f'href="{target}"' in text and (page.parent / target).exists()
    elsewhere = results / "pages" / "single.html"
    write_report(results, "single", elsewhere, COMMAND)
    assert 'href="../single/runs/grpo_lora_s0' in elsewhere.read_text(encoding="utf-8")


def test_model_text_is_escaped(demo, page):
    text = page.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text and "alert(1)" in text
    browser = next(b for b in blocks(demo, "samples") if isinstance(b, Browser))
    assert NASTY in {row[browser.columns.index("completion")] for row in browser.rows}
    assert str(embedded({"x": "</script><!--\u2028"})) == '{"x":"\\u003c/script>\\u003c!--\\u2028"}'
    assert html.escape(COMMAND) in text and COMMAND not in text


def test_titles_are_escaped(results, demo):
    hostile = replace(demo, title=NASTY, description=NASTY)
    assert "<script>alert" not in render(hostile, NASTY)


def test_the_page_asks_the_network_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.S)  # Vega's source names its home page
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", outside)
    assert not re.findall(r"@import|url\(", outside)
    addresses = set(re.findall(r"https?://[^\s\"'\\<]+", outside))
    assert addresses == {f"https://vega.github.io/schema/vega-lite/{alt.SCHEMA_VERSION}.json"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    policy = dict(part.split(" ", 1) for part in html.unescape(policy).split("; "))
    assert policy["default-src"] == "'none'" and "connect-src" not in policy
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/=]+' ?){2}", policy["script-src"])


def test_vega_stands_in_the_page_once_and_it_is_small(page):
    assert page.stat().st_size < 8e6
    text = page.read_text(encoding="utf-8")
    assert text.count("<script>") == 2 and text.count("window.vegaEmbed=") == 1


def test_the_same_tables_give_the_same_page(demo, page):
    assert render(demo, COMMAND) == page.read_text(encoding="utf-8")


def test_a_missing_or_stale_table_is_named(tmp_path):
    runs = write_sweep(tmp_path, steps=3)
    with pytest.raises(ValueError, match=r"expected the file .*runs\.parquet; found none"):
        load(tmp_path, "demo")
    aggregate(tmp_path, "demo")
    table = read_json(tmp_path / "demo" / "sweep.json")
    for changed in (table["runs"][1:], [*table["runs"], table["runs"][0] | {"run": "new-00000000"}]):
        shutil.copytree(
            tmp_path / "demo" / "runs" / runs[0], tmp_path / "demo" / "runs" / "new-00000000", dirs_exist_ok=True
        )
        write_json(tmp_path / "demo" / "sweep.json", table | {"runs": changed})
        with pytest.raises(ValueError, match=r"runs\.parquet: expected the runs of sweep\.json"):
            load(tmp_path, "demo")


def test_a_sweep_without_its_tables_is_listed_with_what_is_missing(results, page, tmp_path):
    shutil.copytree(Path(results) / "demo", tmp_path / "old")
    (tmp_path / "old" / "pairs.parquet").unlink()
    assert write_index(tmp_path) == ["old"]
    assert "pairs.parquet" in (tmp_path / "index.html").read_text()


def test_index_lists_sweeps_with_a_report(results, page, tmp_path):
    write_report(results, "single", results / "single" / "report.html", COMMAND)
    out = tmp_path / "index.html"
    assert set(write_index(results, out)) == {"demo", "single"}
    text = out.read_text(encoding="utf-8")
    assert 'href="demo/report.html"' in text and "unprobed" not in text
    assert html.escape(headline(load(results, "demo"))) in text
    assert write_index(tmp_path) == [] and "No sweep has a report yet" in (tmp_path / "index.html").read_text()


def test_command_line(results, tmp_path, monkeypatch, capsys):
    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["scripts/report.py", *arguments])
        runpy.run_path(str(ROOT / "scripts/report.py"), run_name="__main__")
        return capsys.readouterr().out.strip()

    out = call("--results", str(results), "--sweep", "single", "--out", str(tmp_path / "single page.html"))
    assert f"--out {shlex.quote(out)}" in html.unescape(Path(out).read_text(encoding="utf-8"))
    assert Path(call("--results", str(tmp_path), "--index")) == tmp_path / "index.html"
    with pytest.raises(SystemExit, match=r"error: sweep 'nowhere': expected the file .*sweep\.json; found none"):
        call("--results", str(tmp_path), "--sweep", "nowhere")
