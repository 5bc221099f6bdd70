"""How long and how much memory a sweep of many runs takes apart from training: dry run, aggregation, report, page.

Nothing is trained: run folders are made up at real size (100 steps, 20 probes of 32 rows and 3 objectives, samples
every 10 steps, one run in 50 diverged). A few dozen are different, the rest are copies of them under another
configuration. Seconds are CPU time of one thread, but for the browser's.

python benchmarks/scale.py --runs 100 500 2000
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fake_runs import diverge, write_run  # noqa: E402

from gradlab import sweep  # noqa: E402
from gradlab.store import write_json, write_text  # noqa: E402

DIFFERENT, SEEDS, DIVERGED = 40, 5, 50
LINKED = ("Snakefile", "workflow", "profiles", "scripts", "src", "toy_data")
SWEEP = """
title: Many runs
fixed:
  model.id: base/toy
  algorithm.name: grpo
  objectives: {{exactness: {{}}, brevity: {{}}, refusal: {{}}}}
  data.train: [toy_data/arithmetic_train.jsonl, toy_data/safety_train.jsonl]
  data.heldout: [toy_data/arithmetic_heldout.jsonl, toy_data/safety_heldout.jsonl]
  probe.every: 5
  steps: 100
grid:
  optimizer.lr: {rates}
  algorithm.beta: {betas}
  seed: {seeds}
"""


def project(folder: Path, runs: int) -> None:
    """The workflow around a sweep `many` of about `runs` runs."""
    folder.mkdir()
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "config/bases", folder / "config/bases")
    groups = max(1, round(runs / SEEDS))
    rates = max(n for n in range(1, int(groups**0.5) + 1) if groups % n == 0)
    grid = {
        "rates": [round(1e-4 * (i + 1), 6) for i in range(rates)],
        "betas": [round(0.001 * i, 6) for i in range(groups // rates)],
        "seeds": list(range(SEEDS)),
    }
    write_text(folder / "config/sweeps/many.yaml", SWEEP.format(**grid))
    write_text(folder / "config/config.yaml", "sweeps: [many]\n")


def fake(folder: Path) -> None:
    """Every run's folder, as training and evaluation leave it, and the base they start from."""
    os.chdir(folder)
    many = sweep.load("many")
    write_json(Path("results/base/toy/base.json"), {})
    runs = Path("results/many/runs")
    made: list[Path] = []
    for number, run in enumerate(many.runs.values()):
        config, own = run.config.model_dump(mode="json"), runs / run.id
        if number < DIFFERENT:
            write_run(own, config)
            (own / "adapter").mkdir()
            made.append(own)
            if number == DIFFERENT - 1:
                diverge(own, 37)
        else:
            diverged = number % DIVERGED == 0
            shutil.copytree(made[-1] if diverged else made[number % (DIFFERENT - 1)], own)
            write_json(own / "config.json", config)
        for name in ("eval.json", "eval_samples.jsonl"):  # younger than what they are made from
            (own / name).touch()
    write_json(Path("results/many/sweep.json"), many.table())


def measured(folder: Path, *command: str) -> tuple[float, float, float, str]:
    """CPU seconds, wall-clock seconds, peak resident MiB, output. Raises RuntimeError when the command fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as Snakemake's jobs have it
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read().decode()
    if status:
        raise RuntimeError(f"{' '.join(command)}: status {status}\n{text[-3000:]}")
    return usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss / 1024, text


def row(folder: Path, runs: int) -> list[str]:
    python, browser = sys.executable, shutil.which("chromium") or shutil.which("google-chrome")
    dry = (python, "-m", "snakemake", "--dry-run", "--cores", "2")
    project(folder, runs)
    to_do, *_, plan = measured(folder, *dry, "--quiet", "rules")
    check(f"train {runs}" in " ".join(plan.split()), "a training job a run", plan)
    fake(folder)
    aggregate, _, aggregate_mib, _ = measured(folder, python, "scripts/aggregate.py", "--sweep", "many")
    report, _, report_mib, _ = measured(folder, python, "scripts/report.py", "--sweep", "many")
    measured(folder, python, "scripts/report.py", "--index")
    done, *_, plan = measured(folder, *dry)
    check("Nothing to be done" in plan, "nothing to be done", plan)
    page = folder / "results/many/report.html"
    opened = "-"
    if browser:
        flags = "--headless --no-sandbox --disable-gpu --dump-dom --virtual-time-budget=20000"
        profile = f"--user-data-dir={folder / 'profile'}"
        _, seconds, _, dom = measured(folder, browser, *flags.split(), profile, page.as_uri())
        check(dom.count('class="marks"') == dom.count('class="spec"'), "every chart drawn", dom[:1000])
        opened = f"{seconds:.1f}"
    tables = sum(path.stat().st_size for path in (folder / "results/many").glob("*.parquet"))
    numbers = [to_do, done, aggregate, aggregate_mib, report, report_mib]
    return [str(runs), *(f"{n:.0f}" if n > 100 else f"{n:.1f}" for n in numbers), f"{page.stat().st_size / 2**20:.1f}",
            f"{tables / 2**20:.1f}", opened]  # fmt: skip


def check(holds: bool, expected: str, found: str) -> None:
    if not holds:
        raise RuntimeError(f"expected {expected}; found\n{found[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--keep", type=Path, help="make the projects in this folder and keep them")
    arguments = parser.parse_args()
    columns = "runs | dry run, all to do s | all done s | aggregate s | peak MiB | report s | peak MiB | page MiB | "
    columns += "tables MiB | open s"
    print(f"| {columns} |\n|{'---|' * 10}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for runs in arguments.runs:
            folder = (arguments.keep or Path(temporary)).resolve() / f"runs_{runs}"
            print(f"| {' | '.join(row(folder, runs))} |", flush=True)
            if not arguments.keep:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
