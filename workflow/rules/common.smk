import functools
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from gradlab.command_line import placement_flags
from gradlab.explain import validate
from gradlab.identity import EVALUATION_MEANING, MEANING
from gradlab.packs.size import Sizing, measured, plan_sweep
from gradlab.store import canonical, check_writable, digest, read_json, write_json
from gradlab.sweep import load, load_base
from gradlab.sweep_file import WorkflowConfig

# Jobs use the Python that runs Snakemake, whether or not its environment is activated.
shell.prefix(f"set -euo pipefail; PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; ")

# Idle threads sleep instead of spinning (on a shared machine a step of two threads took 3.3 s spinning, 0.56 s
# sleeping), and freed memory stays with the process. What the caller has set stands.
for name, value in {
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "67108864",
}.items():
    os.environ.setdefault(name, value)


def readable(make, *arguments):
    """`make(*arguments)`, its ValueError shown as a message instead of a traceback."""
    try:
        return make(*arguments)
    except ValueError as error:
        raise WorkflowError(str(error)) from None


chosen = readable(validate, WorkflowConfig, {k: v for k, v in config.items() if k != "pathvars"})


@functools.cache
def sweep_of(name):
    return readable(load, name, chosen.fixed, chosen.grid)


@functools.cache
def base_of(name):
    return readable(load_base, name)


def base_model(run):
    """The model made here that a run starts from; None for a path or a hub id."""
    return base_of(run.base) if run.base else None


def run_of(wildcards):
    return readable(sweep_of(wildcards.sweep).__getitem__, wildcards.run)


def base_spec(wildcards):
    base = base_of(wildcards.base).model_dump(mode="json", exclude_defaults=True)
    return canonical({"base": base, "pretrain": MEANING["pretrain"]})


def base_data(wildcards):
    return [*base_of(wildcards.base).corpus, *base_of(wildcards.base).heldout]


def run_base(wildcards):
    base = run_of(wildcards).base
    return f"{chosen.results}/base/{base}/base.json" if base else []


def train_data(wildcards):
    return list(run_of(wildcards).config.data.train)


def heldout_data(wildcards):
    return list(run_of(wildcards).config.data.heldout)


def run_spec(wildcards):
    return run_of(wildcards).spec


def evaluation_of(run):
    return canonical(run.config.evaluation.model_dump(mode="json", exclude_defaults=True))


def evaluation_spec(wildcards):
    return evaluation_of(run_of(wildcards))


def placement(wildcards, threads):
    """Snakemake never compares params that depend on `threads`, so a change of placement re-runs nothing."""
    given = {"threads": threads, "gpu_slots": gpu_slots(wildcards)}
    return placement_flags(run_of(wildcards).config.placement.model_copy(update=given))


def noted(wildcards, threads):
    """What train writes into config.json without it affecting training; not compared either."""
    return evaluation_spec(wildcards)


def threads_of(wildcards):
    return run_of(wildcards).config.placement.threads


def table_digest(wildcards):
    return digest(sweep_of(wildcards.sweep).table())


def remake_command(wildcards):
    """The command that makes the sweep's page again."""
    changes = {"results": chosen.results, "fixed": chosen.fixed, "grid": chosen.grid}
    entries = {"sweeps": wildcards.sweep} | {k: v for k, v in changes.items() if v not in ({}, "results")}
    text = " ".join(shlex.quote(f"{k}={v if isinstance(v, str) else canonical(v)}") for k, v in entries.items())
    return f"snakemake --cores all --config {text}"


def files_of_runs(*names):
    """An input function: these files of every run of the sweep."""
    pattern = f"{chosen.results}/{{sweep}}/runs/{{run}}/{{name}}"

    def files(wildcards):
        return expand(
            pattern,
            sweep=wildcards.sweep,
            run=sweep_of(wildcards.sweep).runs,
            name=names,
        )

    return files


def deleted_files(wildcards):
    """Of each run, files that are gone: Snakemake would not miss them as long as the tables made of them are there."""
    reported = [sweep for sweep in chosen.sweeps if Path(chosen.results, sweep, "report.html").exists()]
    files = [
        file
        for sweep in reported
        for file in expand([*rules.train.output, *rules.eval_run.output], sweep=sweep, run=sweep_of(sweep).runs)
    ]
    return [file for file in files if not Path(file).exists()]


def check_folders():
    """Before the first job: Snakemake would end in a traceback, or each job in an error of its own."""
    for sweep in chosen.sweeps:
        for folder in (f"{chosen.results}/{sweep}/runs", f"work/{sweep}", f"logs/{sweep}"):
            readable(check_writable, folder)


def code(*patterns):
    """Files of the library whose change re-makes a rule's cheap outputs."""
    return sorted(str(path) for pattern in patterns for path in Path("src/gradlab").glob(pattern) if path.is_file())


for name in chosen.sweeps:
    sweep_of(name)  # every run is validated before the first job
