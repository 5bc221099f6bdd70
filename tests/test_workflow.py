"""What a change re-runs: Snakemake on a copy of the workflow, with stubs that write what the rules declare."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradlab.sweep import load

ROOT = Path(__file__).parents[1]
BASE = "steps: 10\ncorpus: [data/corpus.jsonl]\n"
SWEEP = """
title: Mini
fixed:
  model.id: base/mini
  objectives: {exactness: {}, brevity: {}}
  data: {train: [data/train.jsonl], heldout: [data/heldout.jsonl]}
  placement.threads: 1
  evaluation.samples_per_prompt: 2
grid:
  algorithm.name: [grpo, reinforce]
  seed: [0, 1]
"""
STUB = """
import sys
from pathlib import Path

def value(flag):
    return Path(sys.argv[sys.argv.index(flag) + 1])

name = Path(sys.argv[0]).stem
if name == "make_base":
    folder, names = value("--out"), ["base.json"]
elif name == "train":
    folder, names = value("--run-dir"), "config.json metrics.jsonl samples.jsonl outcome.json provenance.json".split()
    names += ["adapter/weights", "probe/probe.jsonl"]
    if Path("broken").exists() and "_s1-" in folder.name:
        sys.exit("error: the loss is not finite at step 3")
elif name == "eval_run":
    folder, names = Path(sys.argv[1]), ["eval.json", "eval_samples.jsonl"]
elif name == "aggregate":
    folder = value("--results") / str(value("--sweep"))
    names = [f"{name}.parquet" for name in "runs metrics cosines pairs conflict evals samples".split()]
else:
    folder, names = value("--out").parent, [value("--out").name]
for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(" ".join(sys.argv))
"""


def snakemake(project, *arguments, ok=True, **environment):
    """Output of a call in `project`; its exit status must be as expected."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--nocolor", *arguments]
    result = subprocess.run(
        command, cwd=project, capture_output=True, text=True, check=False, env=os.environ | environment
    )
    output = result.stdout + result.stderr
    assert (result.returncode == 0) == ok, output[-3000:]
    return output


def plan(project, *arguments):
    """Rule to number of jobs that a call would run."""
    output = snakemake(project, "--dry-run", *arguments)
    table = output.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M) if rule != "default"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the workflow around one small sweep, stubs in place of the programs."""
    project = tmp_path_factory.mktemp("workflow") / "project"
    for folder in ("workflow", "profiles", "src/gradlab/report", "src/gradlab/aggregate"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("config/sweeps", "config/bases", "data", "scripts"):
        (project / folder).mkdir(parents=True)
    for name in ("train", "heldout", "corpus"):
        (project / f"data/{name}.jsonl").write_text("{}\n")
    for name in ("make_base", "train", "eval_run", "aggregate", "report"):
        (project / f"scripts/{name}.py").write_text(STUB)
    shutil.copy(ROOT / "scripts/sweep_table.py", project / "scripts")
    shutil.copy(ROOT / "Snakefile", project)
    (project / "src/gradlab/report/chart.py").write_text("")
    (project / "src/gradlab/engine.py").write_text("")
    (project / "config/config.yaml").write_text("sweeps: [mini]\nresults: results\nfixed: {}\ngrid: {}\n")
    (project / "config/bases/mini.yaml").write_text(BASE)
    (project / "config/sweeps/mini.yaml").write_text(SWEEP)
    (project / "config/sweeps/other.yaml").write_text(SWEEP.replace("seed: [0, 1]", "seed: [5]"))
    return project


@pytest.fixture(scope="module")
def done(project):
    """The project after a first call that made everything."""
    output = snakemake(project)
    assert "train grpo_lora_s0-" in output
    return project


@pytest.fixture
def edit(project):
    """Replace text in a file until the test has ended, leaving its time of change as a user's edit would."""
    before = {}

    def change(path, old, new):
        file = project / path
        text = before.setdefault(file, (file.read_text(), file.stat()))[0]
        assert old in text
        file.write_text(text.replace(old, new, 1))

    yield change
    for file, (text, stat) in before.items():
        file.write_text(text)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_second_call_has_nothing_to_do(done):
    assert "Nothing to be done" in snakemake(done)


PAGES = {"report": 1, "index": 1}
TABLES = {"aggregate": 1, **PAGES}
NEW_RUNS = {"sweep_table": 1, **TABLES}
SWEEP_FILE, BASE_FILE = "config/sweeps/mini.yaml", "config/bases/mini.yaml"
EDITS = {
    "one more grid value": (SWEEP_FILE, "seed: [0, 1]", "seed: [0, 1, 2]", {"train": 2, "eval_run": 2, **NEW_RUNS}),
    "order, comments, defaults": (
        SWEEP_FILE,
        "objectives: {exactness: {}, brevity: {}}",
        "steps: 100\n  objectives: {brevity: {}, exactness: {weight: 1}} # the same",
        {},
    ),
    "placement": (SWEEP_FILE, "placement.threads: 1", "placement: {threads: 2, checkpoint_every: 3}", {}),
    "evaluation": (SWEEP_FILE, "samples_per_prompt: 2", "samples_per_prompt: 3", {"eval_run": 4, **TABLES}),
    "title": (SWEEP_FILE, "title: Mini", "title: Maxi", NEW_RUNS),
    "report": ("src/gradlab/report/chart.py", "", "# edited", PAGES),
    "library": ("src/gradlab/engine.py", "", "# edited", {}),
    "comment in the base": (BASE_FILE, "steps", "# comment\nsteps", {}),
    "base": (BASE_FILE, "steps: 10", "steps: 11", {"base": 1, "train": 4, "eval_run": 4, **NEW_RUNS}),
    "training data": ("data/train.jsonl", "{}", '{"a": 1}', {"train": 4, "eval_run": 4, **TABLES}),
    "held-out data": ("data/heldout.jsonl", "{}", '{"a": 1}', {"eval_run": 4, **TABLES}),
    "corpus": ("data/corpus.jsonl", "{}", '{"a": 1}', {"base": 1, "train": 4, "eval_run": 4, **TABLES}),
}


@pytest.mark.parametrize("path,old,new,expected", EDITS.values(), ids=EDITS.keys())
def test_an_edit_re_runs_what_it_affects_and_nothing_else(done, edit, path, old, new, expected):
    edit(path, old, new)
    assert plan(done) == expected


def test_a_dry_run_lists_the_runs_without_torch(project, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('a dry run imported torch')")
    arguments = ("--dry-run", "--config", "results=fresh")
    output = snakemake(project, *arguments, PYTHONPATH=str(tmp_path))
    listed = set(re.findall(r"train (\S+) \(sweep mini\)", output))
    assert {run.rsplit("-", 1)[0] for run in listed} == {
        f"{a}_lora_s{s}" for a in ("grpo", "reinforce") for s in (0, 1)
    }


def test_one_output_makes_only_what_it_needs(project, monkeypatch):
    monkeypatch.chdir(project)
    run = next(iter(load("mini").runs))
    fresh = ("--config", "results=fresh", "--")
    assert plan(project, *fresh, f"fresh/mini/runs/{run}/eval.json") == {"base": 1, "train": 1, "eval_run": 1}
    assert plan(project, *fresh, "fresh/other/report.html")["train"] == 2, "a sweep that config.yaml does not name"
    output = snakemake(project, "--dry-run", *fresh, "fresh/mini/runs/typo/eval.json", ok=False)
    assert "sweep mini: run: expected one of" in output


def test_the_command_line_replaces_values(done):
    overrides = ("--config", "sweeps=mini", "results=results", 'fixed={"steps": 5}', 'grid={"seed": [7]}')
    output = snakemake(done, "--dry-run", *overrides)
    assert {run.rsplit("-", 1)[0] for run in re.findall(r"train (\S+) \(sweep", output)} == {
        "grpo_lora_s7",
        "reinforce_lora_s7",
    }
    same = ("--config", 'grid={"seed": [0, 1]}', 'fixed={"steps": 100}')
    assert "train" not in plan(done, *same), "values given as text are the runs that the file makes"


def test_overrides_reach_the_table_and_the_page(done):
    arguments = ("--config", "results=once", 'grid={"seed": [3]}', 'fixed={"optimizer.max_grad_norm": null}')
    snakemake(done, *arguments)
    table = json.loads((done / "once/mini/sweep.json").read_text())
    assert [run["varies"]["seed"] for run in table["runs"]] == [3, 3]
    assert {run["run"] for run in table["runs"]} == {path.name for path in (done / "once/mini/runs").iterdir()}
    page = (done / "once/mini/report.html").read_text()
    assert "--command snakemake --cores all --config sweeps=mini results=once" in page
    assert 'grid={"seed":["3"]}' in page.replace("'", "")


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("--config", "sweeps=mimi"), "sweeps: expected one of mini, other; found 'mimi'. Did you mean 'mini'?"),
        (("--config", "sweep=mini"), "sweep: expected a known key; found 'sweep'. Did you mean 'sweeps'?"),
        (("--config", 'fixed={"step": 5}'), "config/sweeps/mini.yaml: fixed.step: expected a known key"),
        (("--config", 'fixed={"placement.gpu_slots": 9, "placement.device": "cuda"}'), "placement.gpu_slots: expected at most 4, the limit"),
    ],
)
def test_mistakes_stop_before_any_job(project, arguments, message):
    output = snakemake(project, *arguments, ok=False)
    assert message in output
    assert "Traceback" not in output
    assert "Job stats" not in output


def test_a_failed_run_keeps_the_others_and_the_same_command_finishes_it(done):
    fresh = ("--config", "results=failing")
    (done / "broken").touch()
    output = snakemake(done, *fresh, ok=False)
    assert "error: the loss is not finite at step 3" in output
    assert "give the same command again" in output
    (done / "broken").unlink()
    assert plan(done, *fresh) == {"train": 2, "eval_run": 2, **TABLES}


def test_the_environments_python_runs_the_jobs(done):
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "python").exists())
    snakemake(done, "--config", "results=unactivated", "--", "unactivated/base/mini/base.json", PATH=path)
