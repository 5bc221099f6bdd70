"""What a change re-runs: Snakemake on a copy of the workflow, with stubs that write what the rules declare."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from itertools import chain
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
  rollout.batch_size: 8
  placement.threads: 1
  evaluation.samples_per_prompt: 2
grid:
  algorithm.name: [grpo, reinforce]
  seed: [0, 1]
"""
STUB = """
import json
import shutil
import sys
import time
from pathlib import Path
from gradlab.store import writer_lock

def value(flag):
    return Path(sys.argv[sys.argv.index(flag) + 1])

def note(*words):
    with open("trainings", "a") as log:
        log.write(" ".join(words) + "\\n")

name = Path(sys.argv[0]).stem
if name == "make_base":
    folder, names = value("--out"), ["base.json"]
elif name == "train":
    folder, names = value("--run-dir"), "config.json metrics.jsonl samples.jsonl outcome.json provenance.json".split()
    names += ["adapter/weights", "probe/probe.jsonl"]
    if Path("broken").exists() and "_s1-" in folder.name:
        sys.exit("error: the loss is not finite at step 3")
    staged = value("--work") / "finished"
    with writer_lock(value("--work")):
        note("fetch" if staged.is_dir() else "train", folder.name)
        while Path("hold").exists():
            time.sleep(0.05)
    if staged.is_dir():
        staged.rmdir()
elif name == "train_pack":
    runs = json.loads(value("--plan").read_text())
    if Path("broken").exists():
        sys.exit("error: the disk is full")
    note("pack", *runs)
    while Path("hold").exists():
        time.sleep(0.05)
    for run in runs:
        (value("--work") / run / "finished").mkdir(parents=True)
    names = []
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


def start(project, *arguments):
    """A call that goes on while the test does."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition, call):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline and call.poll() is None
        time.sleep(0.05)


def plan(project, *arguments, **environment):
    """Rule to number of jobs that a call would run."""
    output = snakemake(project, "--dry-run", *arguments, **environment)
    table = output.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", table, re.M) if rule != "default"}


def trainings(project, kind):
    """The runs of each process that trained a `pack`, or did `train` one run, or `fetch` what a pack had left."""
    lines = (project / "trainings").read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith(kind + " ")]


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
    for name in ("make_base", "train", "train_pack", "eval_run", "aggregate", "report"):
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
    """The project after a first call that made everything, training two runs in a process; later calls do not."""
    output = snakemake(project, "--config", "pack=2")
    assert output.count("train 2 runs together") == 2 and "train grpo_lora_s0-" in output
    packs, fetched = trainings(project, "pack"), trainings(project, "fetch")
    assert [len(runs) for runs in packs] == [2, 2] and sorted(chain(*packs)) == sorted(chain(*fetched))
    assert not trainings(project, "train") and not list((project / "work").glob("*/packs/*"))
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
    "a grid value removed": (SWEEP_FILE, "seed: [0, 1]", "seed: [0]", NEW_RUNS),
    "pack": (SWEEP_FILE, "title", "pack: 3\ntitle", {}),
    "an unrelated key": ("config/config.yaml", "fixed: {}", "fixed: {}\npack: 3", {}),
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


@pytest.mark.parametrize(
    "bump,runs",
    [
        ("identity.MEANING['credit/reinforce'] = 2", 2),
        ("identity.OBJECTIVES._versions['brevity'] = 2", 4),
        ("identity.OBJECTIVES._versions['happy_count'] = 2", 0),
    ],
)
def test_a_meaning_that_changes_trains_the_runs_that_use_it(done, tmp_path, bump, runs):
    (tmp_path / "sitecustomize.py").write_text(f"from gradlab import identity\n{bump}\n")
    expected = {"train": runs, "eval_run": runs, **NEW_RUNS} if runs else {}
    assert plan(done, PYTHONPATH=str(tmp_path)) == expected


def test_files_that_are_touched_re_run_nothing(done, edit):
    run = next((done / "results/mini/runs").iterdir())
    for path in ("data/train.jsonl", "data/corpus.jsonl", *(run / name for name in ("config.json", "metrics.jsonl"))):
        edit(path, "", "")
    os.utime(run / "adapter/.snakemake_timestamp", (time.time() + 60,) * 2)  # what Snakemake compares of a folder
    assert plan(done) == {}


def test_a_run_whose_folder_is_gone_is_made_again_alone(done):
    run = next((done / "results/mini/runs").iterdir())
    away = run.rename(done / "away")
    assert plan(done, "--config", "pack=2") == {"train": 1, "eval_run": 1, **TABLES}
    away.rename(run)


@pytest.mark.parametrize("file,jobs", [("samples.jsonl", ["train", "eval_run"]), ("eval_samples.jsonl", ["eval_run"])])
def test_a_file_of_a_run_that_is_gone_is_made_again(done, file, jobs):
    path = next((done / "results/mini/runs").iterdir()) / file
    away = path.rename(done / "away")
    assert plan(done) == {**dict.fromkeys(jobs, 1), **TABLES}
    away.rename(path)


def test_what_is_forced_is_made_again_and_what_follows_from_it(done):
    run = next((done / "results/mini/runs").iterdir()).relative_to(done)
    assert plan(done, "--force", "--", f"{run}/outcome.json") == {"train": 1}
    assert plan(done, "--force", "--", f"{run}/eval.json") == {"eval_run": 1}
    assert plan(done, "--config", "pack=2", "--forcerun", "train") == {"train": 4, "eval_run": 4, **TABLES}


def test_two_calls_at_once_never_train_one_run_twice(done):
    """Snakemake refuses the second; told not to, the run's own lock does."""
    run = next((done / "results/mini/runs").iterdir()).name
    target = ("--config", "results=twice", "--", f"twice/mini/runs/{run}/eval.json")
    snakemake(done, "--config", "results=twice", "--", "twice/base/mini/base.json")
    count = len(trainings(done, "train"))
    (done / "hold").touch()
    first = start(done, *target)
    try:
        wait_for(lambda: len(trainings(done, "train")) > count, first)
        assert "Directory cannot be locked" in snakemake(done, *target, ok=False)
        assert "expected no other writer; found process" in snakemake(done, "--nolock", *target, ok=False)
    finally:
        (done / "hold").unlink()
        assert first.wait(60) == 0
    assert trainings(done, "train")[count:] == [[run]]
    assert "Nothing to be done" in snakemake(done, *target)


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
    one = (f"fresh/mini/runs/{run}/eval.json",)
    assert plan(project, *fresh, *one) == {"base": 1, "train": 1, "eval_run": 1}
    assert plan(project, "--config", "pack=4", *fresh[1:], *one) == {"base": 1, "train": 1, "eval_run": 1}
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
        (
            ("--config", 'fixed={"placement.gpu_slots": 9, "placement.device": "cuda"}'),
            "placement.gpu_slots: expected at most 4, the limit",
        ),
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
