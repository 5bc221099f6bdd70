"""The report: every chart validates and is honest about holes; the page is offline, safe and works in a browser."""

from __future__ import annotations

import html
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
import pytest
from fake_runs import NASTY, OBJECTIVES, undefined_at, write_sweep
from scipy import stats

from gradlab.aggregate import aggregate
from gradlab.report import load, transfer, write_index, write_report
from gradlab.report.blocks import SECTIONS, Browser, Figure, Note, Table, number, records
from gradlab.report.curves import curves
from gradlab.report.forest import conflict_null, forest
from gradlab.report.load import Sweep, group_label
from gradlab.report.matrices import layer_map, mean_map, step_map
from gradlab.report.page import embedded, render
from gradlab.report.pairs import keep_main_layer, layer_order, pair_means
from gradlab.report.pareto import non_dominated
from gradlab.report.sections.summary import headline
from gradlab.store import read_json, read_jsonl, write_json

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "demo": {},
    "single": {"objectives": ("numeric",), "algorithms": ("grpo",), "seeds": (0,), "steps": 12},
    "unprobed": {"probe_every": 0, "difference": False, "steps": 12},
    "alone": {"alone": True, "algorithms": ("grpo",), "seeds": (0, 1, 2), "steps": 21},
    "layers": {"scope": "per_layer", "objectives": ("a", "b", "c", "d", "e"), "steps": 21},
}
COMMAND = "snakemake results/demo/report.html # <b>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    for name, options in VARIANTS.items():
        write_sweep(folder, name, **options)
        aggregate(folder, name)
    return folder


@pytest.fixture(scope="module")
def demo(results) -> Sweep:
    return load(results, "demo")


@pytest.fixture(scope="module")
def page(results) -> Path:
    out = results / "demo" / "report.html"
    started = time.process_time()
    write_report(results, "demo", out, COMMAND)
    assert time.process_time() - started < 10  # measured: 2 to 3 seconds
    return out


def blocks(sweep: Sweep, section: str) -> list:
    return list(SECTIONS[section].build(sweep))


# Every section on every kind of sweep


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_section_builds_and_every_chart_validates(results, variant):
    sweep = load(results, variant)
    for section in SECTIONS.values():
        found = blocks(sweep, section.id)
        assert bool(found) == (section.id != "transfer" or variant == "alone"), section.id
        for block in found:
            if isinstance(block, Figure):
                spec = block.spec()  # Altair validates
                assert spec["$schema"].endswith(f"{alt.SCHEMA_VERSION}.json") and block.rows
                assert re.search(r"\bn = \d|n = up to", block.caption), block.title
                json.dumps(spec, allow_nan=False)
            if isinstance(block, Note):
                assert block.text.endswith((".", ")."))
            if isinstance(block, Table):
                assert all(len(row) == len(block.columns) for row in block.rows) and block.caption


def test_a_sweep_without_cosines_says_why(results):
    for variant, reason in (("single", "there is one objective (numeric)"), ("unprobed", "probe.every is 0")):
        notes = blocks(load(results, variant), "cosines")
        assert len(notes) == 1 and isinstance(notes[0], Note) and reason in notes[0].text


def test_a_sweep_without_difference_or_kl_or_several_seeds_says_so(results):
    evaluation = blocks(load(results, "unprobed"), "evaluation")
    assert any(isinstance(block, Note) and "compares with no base model" in block.text for block in evaluation)
    single = load(results, "single")
    assert "Not measured in any run: KL" in blocks(single, "training")[0].caption
    assert "one seed, so there is no band" in blocks(single, "rewards")[0].caption
    assert "all variance" in blocks(single, "variance")[0].text


# Numbers


def test_summary_holds_the_numbers_of_the_run_files(results, demo):
    table = next(b for b in blocks(demo, "summary") if isinstance(b, Table))
    runs = [run for run in demo.configs if run.startswith("grpo")]
    found = [read_json(results / "demo" / "runs" / run / "eval.json")["objectives"]["numeric"] for run in runs]
    mean = sum(f["difference"]["mean"] for f in found) / 2
    low, high = min(f["difference"]["low"] for f in found), max(f["difference"]["high"] for f in found)
    row = next(row for row in table.rows if row[:2] == ["grpo", "numeric"])
    assert row[4] == f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" and row[5:] == ["2", "200"]


def test_a_sweep_in_which_no_pair_can_be_tested_has_a_page(demo):
    untested = replace(demo, pairs=demo.pairs.assign(verdict=np.nan))  # as Parquet gives a column of nulls back
    assert "distinguishable" not in headline(untested)
    assert "—" in render(untested, COMMAND, ".")


def test_pair_means_are_those_of_the_defined_probes(results, demo):
    means = pair_means(demo.cosines).set_index(["group", "objective_i", "objective_j"])
    values = []
    for run in demo.configs:
        if run.startswith("reinforce"):
            rows = read_jsonl(results / "demo" / "runs" / run / "probe" / "probe.jsonl")
            values += [row["cosine"][0][2] for row in rows if row["cosine"][0][2] is not None]
    series, found = pd.Series(values), means.loc["reinforce", "brevity", "refusal"]
    assert found["mean"] == pytest.approx(series.mean()) and found["n"] == len(values)
    assert found["high"] - found["mean"] == pytest.approx(1.96 * series.std() / len(values) ** 0.5)
    assert found["undefined"] == 2 * sum(undefined_at(step) for step in range(0, 60, 5)) > 0
    assert found["below"] == pytest.approx((series < 0).mean())
    assert "lowest mean cosine" in headline(demo)


def test_undefined_cells_are_null_and_say_so(demo):
    figure = step_map(demo)
    cells = {(r["row"], r["column"]): r for r in figure.rows if r["view"].endswith("grpo") and r["step"] == 10}
    assert len(cells) == 9
    for (row, column), cell in cells.items():
        hole = "refusal" in (row, column)
        assert (cell["cosine"] is None) == hole and (cell["label"] == "undefined") == hole
    assert cells["numeric", "brevity"]["cosine"] == cells["brevity", "numeric"]["cosine"]
    assert cells["brevity", "brevity"]["cosine"] == 1.0


def test_an_objective_that_never_has_a_gradient_has_no_diagonal(demo):
    never = demo.cosines.assign(norm_j=demo.cosines["norm_j"].where(demo.cosines["objective_j"] != "refusal", 0.0))
    never["cosine"] = never["cosine"].where(never["norm_j"] > 0)
    sweep = Sweep(**{**demo.__dict__, "cosines": never})
    for figure in (mean_map(sweep), step_map(sweep)):
        cells = [r for r in figure.rows if "refusal" in (r["row"], r["column"])]
        assert cells and {cell["label"] for cell in cells} == {"undefined"}, figure.title
        assert any(r["label"] == "+1.00" for r in figure.rows)


def test_numbers_show_no_signed_zero():
    assert number(-0.001, sign=True) == number(0.0, sign=True) == "0.00"
    assert number(-0.5) == "\N{MINUS SIGN}0.50" and number(0.5, sign=True) == "+0.50"
    assert number(float("nan")) == number(None) == "—"


def test_mirrored_cells_swap_norms(demo):
    cells = {
        (r["row"], r["column"]): r
        for r in step_map(demo).rows
        if r["view"] == next(iter(demo.configs)) and not r["step"]
    }
    first, second = cells["brevity", "numeric"], cells["numeric", "brevity"]
    assert (first["norm_row"], first["norm_column"]) == (second["norm_column"], second["norm_row"])
    assert first["norm_row"] != first["norm_column"]
    assert cells["brevity", "brevity"]["norm_row"] == first["norm_row"]


def test_cells_that_are_not_distinguishable_from_0_are_marked(demo):
    """The planted pairs are clear over all steps; at a single step hardly any is, and its cells say so."""
    verdicts = {(r["group"], r["row"], r["column"]): r["verdict"] for r in mean_map(demo).rows}
    assert verdicts["grpo", "refusal", "numeric"] == verdicts["grpo", "numeric", "refusal"] == "conflict"
    assert verdicts["reinforce", "brevity", "refusal"] == "synergy" and verdicts["grpo", "brevity", "brevity"] is None
    at_step = [r["verdict"] for r in step_map(demo).rows if r["row"] != r["column"] and r["cosine"] is not None]
    assert at_step.count("not distinguishable from 0") > len(at_step) / 4
    assert "not distinguishable from 0" in json.dumps(mean_map(demo).spec()["spec"])


def test_the_forest_has_each_pair_with_interval_and_q(results, demo):
    figure = forest(demo)
    table = pd.read_parquet(results / "demo" / "pairs.parquet").query("level == 'group'")
    assert len(figure.rows) == len(table) == 6
    row = next(r for r in figure.rows if r["label"] == "numeric · refusal, grpo")
    truth = table[(table["algorithm.name"] == "grpo") & (table["objective_i"] == "numeric")].iloc[0]
    assert row["alignment"] == pytest.approx(truth["alignment"], rel=1e-4) and row["verdict"] == "conflict"
    assert row["alignment_low"] < row["alignment"] < row["alignment_high"] < 0 and row["says"] == f"q {truth['q']:.3f}"
    untested = Sweep(**{**demo.__dict__, "pairs": demo.pairs.assign(p=float("nan"))})
    assert isinstance(forest(untested), Note)


def test_the_conflict_fraction_stands_beside_its_null(demo):
    rows = {r["label"]: r for r in conflict_null(demo).rows}
    assert set(rows) == {"grpo", "reinforce", *(f"{g}, seed {s}" for g in ("grpo", "reinforce") for s in (0, 1))}
    assert all(r["null_low"] <= r["null"] <= r["null_high"] for r in rows.values())


def test_weights_are_drawn_where_they_move(demo):
    assert len(blocks(demo, "variance")) == 1
    weights = demo.metrics[demo.metrics["metric"] == "advantage_variance_share"].assign(metric="weight")
    moving = Sweep(**{**demo.__dict__, "metrics": pd.concat([demo.metrics, weights])})
    assert [block.title for block in blocks(moving, "variance")][1] == "Weights over training"
    constant = Sweep(**{**demo.__dict__, "metrics": pd.concat([demo.metrics, weights.assign(value=0.5)])})
    assert len(blocks(constant, "variance")) == 1


def test_the_front_holds_the_groups_that_none_beats():
    means = pd.DataFrame({"x": [0.0, 1, 0.5, 0.4, 1], "y": [1.0, 0, 0.5, 0.5, 0]}, index=list("abcde"))
    assert non_dominated(means) == {"a", "b", "c", "e"}  # d is as good as c in y and worse in x


# Transfer


def test_transfer_puts_change_beside_cosine_and_covariance(results):
    sweep = load(results, "alone")
    assert sweep.groups == list(OBJECTIVES)  # the variant names the weights
    frame = transfer.cells(sweep)
    assert len(frame) == 27 and set(frame["trained"]) == set(OBJECTIVES)
    run = frame["run"].iloc[0]
    mine = frame[(frame["run"] == run) & (frame["measured"] == "refusal")].iloc[0]
    pairs = sweep.pairs[(sweep.pairs["level"] == "run") & (sweep.pairs["run"] == run)]
    pair = pairs[(pairs["objective_i"] == mine["trained"]) & (pairs["objective_j"] == "refusal")]
    assert mine["cosine"] == pair["cosine"].item()
    evaluated = read_json(sweep.folder / "runs" / run / "eval.json")["objectives"]["refusal"]["difference"]["mean"]
    assert mine["change"] == evaluated
    matrix = {(r["trained"], r["measured"]): r for r in blocks(sweep, "transfer")[1].rows if r["matrix"] == "change"}
    expected = frame[(frame["trained"] == "numeric") & (frame["measured"] == "brevity")]["change"].mean()
    assert matrix["numeric", "brevity"]["mean"] == pytest.approx(expected, rel=1e-4) and len(matrix) == 9


def test_a_predictor_that_works_is_named():
    """Four objectives, three seeds; the change is the cosine with a little noise, the covariance is noise alone."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, (4, 4))
    rows = [
        {"trained": str(i), "measured": str(j), "run": f"{i}-{seed}", "cosine": truth[i, j] + rng.normal(0, 0.02),
         "alignment": truth[i, j], "covariance": rng.normal(), "correlation": float("nan"),
         "change": truth[i, j] * 0.1 + rng.normal(0, 0.002)}
        for i in range(4) for j in range(4) for seed in range(3)
    ]  # fmt: skip
    found = {r.predictor: r for r in transfer.rank_correlations(pd.DataFrame(rows))}
    assert found["cosine"].cells == 12 and found["cosine"].rho > 0.95 and found["cosine"].p < 0.01
    assert found["cosine"].low <= found["cosine"].rho <= found["cosine"].high
    assert abs(found["covariance"].rho) < 0.6 and np.isnan(found["correlation"].rho)
    assert transfer.judgement(list(found.values())).startswith("The cosine predicts")
    swapped = pd.DataFrame(rows).rename(columns={"cosine": "covariance", "covariance": "cosine"})
    assert transfer.judgement(transfer.rank_correlations(swapped)).startswith("The covariance predicts")
    same = pd.DataFrame(rows).assign(covariance=lambda f: f["cosine"])
    assert "not distinguishable as predictors" in transfer.judgement(transfer.rank_correlations(same))


def test_spearman_is_scipys():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5, 8)).round(1), rng.normal(size=(5, 8)).round(1)
    assert transfer.spearman(x, y) == pytest.approx(
        [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    )
    x[0, :2] = np.nan
    assert transfer.spearman(x, y)[0] == pytest.approx(stats.spearmanr(x[0, 2:], y[0, 2:]).statistic)
    assert np.isnan(transfer.spearman(np.ones((1, 8)), y[:1])).all()


def test_cosine_colour_is_centred_at_0_and_fixed(results):
    layers = load(results, "layers")
    for figure in (step_map(layers), mean_map(layers), layer_map(layers)):
        scales = re.findall(r'"scale": ({[^}]*})', json.dumps(figure.spec() | {"datasets": {}}))
        assert any(json.loads(scale).get("domain") == [-1, 0, 1] for scale in scales), figure.title


def test_curves_keep_gaps_and_average_over_seeds(demo):
    frame = demo.metrics[(demo.metrics["metric"] == "reward_mean") & demo.metrics["objective"].notna()]
    figure = curves(demo, frame.assign(panel=frame["objective"]), "t", "c.", "none", "y")
    rows = pd.DataFrame(figure.rows)
    holes = rows[(rows["kind"] == "mean") & (rows["panel"] == "refusal") & (rows["step"] == 10)]
    assert len(holes) == 2 and holes["mean"].isna().all() and (holes["n"] == 0).all()
    assert "A gap is a step with no signal." in figure.caption
    grpo = rows[(rows["panel"] == "brevity") & (rows["group"] == "grpo")]
    window = grpo[(grpo["kind"] == "run") & grpo["step"].between(28, 32)]  # centred on 30, both seeds
    at_30 = grpo[(grpo["kind"] == "mean") & (grpo["step"] == 30)]
    assert at_30["mean"].item() == pytest.approx(window["mean"].mean(), rel=1e-4) and at_30["n"].item() == 2
    by_run = window.groupby("run")["mean"].mean()
    assert at_30["low"].item() == pytest.approx(by_run.min(), rel=1e-4)
    assert at_30["high"].item() == pytest.approx(by_run.max(), rel=1e-4)


def test_long_runs_are_thinned_and_the_caption_says_so(demo):
    run = next(iter(demo.configs))
    frame = pd.DataFrame({"run": run, "group": "grpo", "panel": "x", "step": range(2000), "value": 1.0})
    figure = curves(demo, frame, "t", "c.", "none", "y")
    assert len({row["step"] for row in figure.rows}) <= 151 and figure.rows[-1]["step"] == 1999
    assert "Drawn thinned: one of 14 steps" in figure.caption


def test_no_value_at_all_is_a_sentence(demo):
    frame = pd.DataFrame({"run": "r", "group": "grpo", "panel": "x", "step": [0, 1], "value": [None, float("nan")]})
    assert curves(demo, frame.astype({"value": float}), "t", "c.", "Nothing here.", "y") == Note("Nothing here.")


def test_layers_are_in_numeric_order_and_one_is_the_main():
    assert layer_order(["10", "2", "all", "0"]) == ["0", "2", "10", "all"]
    modules = ["10.mlp", "2.mlp", "10.attention", "2.attention"]
    assert layer_order(modules) == ["2.attention", "2.mlp", "10.attention", "10.mlp"]
    frame = pd.DataFrame({"run": ["a", "a", "b", "b"], "layer": ["2", "10", "3", "all"]})
    assert keep_main_layer(frame)["layer"].tolist() == ["10", "all"]


def test_group_labels_are_short_and_unambiguous():
    assert group_label({"algorithm.name": "grpo", "optimizer.lr": 0.001}) == "grpo, lr=0.001"
    labels = group_label({"objectives.a.weight": 1.0, "objectives.b.weight": 0.5})
    assert labels == "objectives.a.weight=1, objectives.b.weight=0.5"


def test_records_turn_nan_to_null():
    assert records(pd.DataFrame({"a": [float("nan"), 0.123456789]})) == [{"a": None}, {"a": 0.12346}]


def test_throughput_phases_sum_to_the_step(demo):
    figure = blocks(demo, "throughput")[0]
    rows = pd.DataFrame(figure.rows)
    assert (rows.groupby("run")["seconds"].sum() - 0.7).abs().max() < 1e-3
    assert rows["rate"].tolist() == pytest.approx([1 / 0.7] * len(rows), rel=1e-3)
    probe = rows[rows["phase"] == "probe"]["seconds"]
    assert (probe < 0.02).all()  # 0.05 s on one step of five, spread over all


# Provenance


def test_mixtures_are_warned_of(tmp_path):
    runs = write_sweep(tmp_path, steps=3)
    aggregate(tmp_path, "demo")
    assert not [b for b in blocks(load(tmp_path, "demo"), "provenance") if isinstance(b, Note)]
    path = tmp_path / "demo" / "runs" / runs[1] / "provenance.json"
    record = read_json(path)
    record |= {
        "code_digest": "ffffffff",
        "git_commit": "abc-dirty",
        "versions": record["versions"] | {"torch": "2.9.0"},
    }
    write_json(path, record)
    warnings = [b.text for b in blocks(load(tmp_path, "demo"), "provenance") if isinstance(b, Note) and b.warning]
    assert len(warnings) == 4
    for key in ("code_digest", "versions.torch: 2.13.0 (3 runs), 2.9.0 (1 run)", "git_commit", "uncommitted"):
        assert any(key in warning for warning in warnings), key


def test_runs_link_to_their_files(results, page):
    text = page.read_text(encoding="utf-8")
    for run in load(results, "demo").configs:
        for target in (f"runs/{run}/", f"runs/{run}/eval.json"):
            assert f'href="{target}"' in text and (page.parent / target).exists()
    elsewhere = results / "pages" / "single.html"
    write_report(results, "single", elsewhere, COMMAND)
    assert 'href="../single/runs/grpo_lora_s0' in elsewhere.read_text(encoding="utf-8")


# The page as a file


def test_model_text_is_escaped(demo, page):
    text = page.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text and "alert(1)" in text
    browser = next(b for b in blocks(demo, "samples") if isinstance(b, Browser))
    assert NASTY in {row[browser.columns.index("completion")] for row in browser.rows}
    assert str(embedded({"x": "</script><!--\u2028"})) == '{"x":"\\u003c/script>\\u003c!--\\u2028"}'
    assert html.escape(COMMAND) in text and COMMAND not in text


def test_titles_are_escaped(results, demo):
    hostile = Sweep(**{**demo.__dict__, "title": NASTY, "description": NASTY})
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


# Errors and command line


def test_a_missing_or_stale_table_is_named(tmp_path):
    runs = write_sweep(tmp_path, steps=3)
    with pytest.raises(ValueError, match=r"expected the file .*metrics\.parquet; found none"):
        load(tmp_path, "demo")
    aggregate(tmp_path, "demo")
    table = read_json(tmp_path / "demo" / "sweep.json")
    for changed in (table["runs"][1:], [*table["runs"], table["runs"][0] | {"run": "new-00000000"}]):
        shutil.copytree(
            tmp_path / "demo" / "runs" / runs[0], tmp_path / "demo" / "runs" / "new-00000000", dirs_exist_ok=True
        )
        write_json(tmp_path / "demo" / "sweep.json", table | {"runs": changed})
        with pytest.raises(ValueError, match=r"metrics\.parquet: expected the runs of sweep\.json"):
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


# In a real browser


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


def test_objectives_are_those_of_the_fake_sweep(demo):
    assert demo.objectives == sorted(OBJECTIVES) and demo.groups == ["grpo", "reinforce"]
