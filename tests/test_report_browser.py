"""The page in a real browser: every chart is drawn, the controls work, the console is silent."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and the console's messages."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --virtual-time-budget=10000 --enable-logging=stderr --v=0"
    command = [BROWSER, *flags.split(), f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_the_page_loads_with_every_chart_and_no_console_message(page, tmp_path):
    dom, console = browse(page, tmp_path)
    assert console == []
    n_figures = page.read_text(encoding="utf-8").count('class="spec"')
    assert len(re.findall(r'<svg[^>]*class="marks"', dom)) == n_figures > 8
    cards = dom.split('class="cards"')[1].split('class="more"')[0]
    assert cards.count('class="card"') == 25
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in cards and "<script" not in cards.split("<script type")[0]


@needs_browser
def test_slider_legend_and_search_work(page, tmp_path):
    """A copy without its policy, so that a script of the test may move the controls and report."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    script = """
    const later = (ms) => new Promise((done) => setTimeout(done, ms));
    const set = (node, value) => {
      node.value = value;
      for (const kind of ["input", "change"]) node.dispatchEvent(new Event(kind, { bubbles: true }));
    };
    (async () => {
      await later(3000);
      const map = document.querySelector(".vega-bind input[type=range]").closest(".chart");
      const words = () => [...map.querySelectorAll("text")].map((node) => node.textContent);
      const out = { before: words() };
      set(map.querySelector("input[type=range]"), 10);
      await later(500);
      out.at_hole = words();
      out.grey = map.querySelectorAll(".mark-rect path[fill='#e6e8eb']").length;
      const select = map.querySelector("select");
      out.views = [...select.options].map((option) => option.value);
      set(map.querySelector("input[type=range]"), 0);
      set(select, out.views[2]);
      await later(500);
      out.one_run = words();
      const curves = document.querySelector("#rewards .chart");
      const entry = curves.querySelector(".role-legend-symbol path");
      const faded = () => [...curves.querySelectorAll(".mark-line path[opacity='0.08']")].length;
      out.faded = [faded()];
      const { x, y } = entry.getBoundingClientRect();
      for (const kind of ["pointerdown", "mousedown", "pointerup", "mouseup", "click"])
        entry.dispatchEvent(new MouseEvent(kind, { bubbles: true, clientX: x + 2, clientY: y + 2, view: window }));
      await later(500);
      out.faded.push(faded());
      const root = document.querySelector(".browser"), count = () => root.querySelector(".count").textContent;
      out.all = count();
      set(root.querySelector("[name=text]"), "ALERT naïve");
      out.search = count();
      set(root.querySelector("[name=source]"), "training");
      out.training = count();
      set(root.querySelector("[name=from]"), 50);
      out.late = count();
      set(root.querySelector("[name=text]"), "");
      set(root.querySelector("[name=objective]"), "refusal");
      set(root.querySelector("[name=least]"), 0.5);
      set(root.querySelector("[name=order]"), "down");
      out.scores = [...root.querySelectorAll(".meta")].map((node) => node.textContent);
      root.querySelector(".more").click();
      out.cards = root.querySelectorAll(".card").length;
      const done = document.createElement("pre");
      done.id = "found";
      done.textContent = JSON.stringify(out);
      document.body.append(done);
    })();
    """
    moved = tmp_path / "moved.html"
    moved.write_text(f"<script>{script}</script></body>".join(text.rsplit("</body>", 1)), encoding="utf-8")
    dom, console = browse(moved, tmp_path / "profile")
    assert console == []
    out = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.S).group(1)))
    assert "undefined" not in out["before"] and out["at_hole"].count("undefined") == 5 == out["grey"]
    assert len(out["views"]) == 6 and out["one_run"] != out["before"] and "undefined" not in out["one_run"]
    assert out["faded"] == [0, 3]  # a click on one group's legend entry fades the other's line in all three panels
    total = int(out["all"].split()[0])
    found, training, late = (int(out[key].split()[0]) for key in ("search", "training", "late"))
    assert total > found > training > late > 0
    scores = [float(re.search(r"refusal ([\d.]+)", line).group(1)) for line in out["scores"]]
    assert len(scores) == 25 and scores == sorted(scores, reverse=True) and min(scores) >= 0.5
    assert out["cards"] == 50
