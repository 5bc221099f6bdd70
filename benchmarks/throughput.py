"""Steps a second of N runs at once: as N processes, and as one pack, on the GPU if there is one.

    python benchmarks/throughput.py [--runs 1 2 4 8] [--seconds 20] [--rows 32 --generations 16 --tokens 128]

Wall-clock time, all processes started and warm before the clock runs. With processes on a GPU, start MPS first
(docs/scaling.md) or see them take turns. The policy has the shape of SimpleStories-1.25M; no row ends early. Memory is
the sum over processes: of the GPU, or resident.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def worker(arguments: argparse.Namespace) -> None:
    """A pack of `runs[0]`; prints `ready`, waits for a line, steps for `seconds`, prints steps, seconds and GiB."""
    import common
    import torch

    from gradlab import engine, models
    from gradlab.calibrate import peak_gib

    device = models.pick_device("auto")
    with tempfile.TemporaryDirectory() as temporary:
        files = common.write_prompts(Path(temporary), tokens=32)
        shape = {
            "batch_size": arguments.rows,
            "num_generations": arguments.generations,
            "max_new_tokens": arguments.tokens,
        }
        configs = [
            common.run_config(files, rollout=shape, seed=seed, steps=10**6, placement={"checkpoint_every": 10**6})
            for seed in range(arguments.runs[0])
        ]
        lm = models.wrap(common.policy(0.0).to(device), common.tokenizer())
        work = [Path(temporary) / str(r) for r in range(len(configs))]
        trainer = engine.Trainer(configs, [""] * len(configs), work, lm)
        for step in range(2):
            trainer.step(step)
        print("ready", flush=True)
        sys.stdin.readline()
        start, step = time.perf_counter(), 2
        while time.perf_counter() - start < arguments.seconds:
            trainer.step(step)
            step += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        print((step - 2) * len(configs), time.perf_counter() - start, peak_gib(device), flush=True)


def measure(processes: int, runs: int, options: list[str]) -> tuple[float, float]:
    """Steps of single runs a second, and GiB, of `processes` processes with a pack of `runs` each."""
    command = [sys.executable, __file__, *options, "--runs", str(runs), "--worker"]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    lines = []
    for child in started:
        assert child.stdout is not None and child.stdout.readline() == "ready\n", "a worker failed"
    for child in started:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in started:
        assert child.stdout is not None
        lines.append(child.stdout.readline().split())
        child.wait()
    return sum(int(steps) / float(seconds) for steps, seconds, _ in lines), sum(float(gib) for _, _, gib in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of runs")
    parser.add_argument("--seconds", type=float, default=20, help="time measured of each")
    parser.add_argument("--rows", type=int, default=32, help="completions a step")
    parser.add_argument("--generations", type=int, default=16, help="completions of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        sys.exit()
    options = [
        word
        for name in ("seconds", "rows", "generations", "tokens")
        for word in (f"--{name}", str(vars(arguments)[name]))
    ]
    print("| runs | processes: steps/s | GiB | one pack: steps/s | GiB |\n|---|---|---|---|---|")
    for runs in arguments.runs:
        apart, together = measure(runs, 1, options), measure(1, runs, options)
        print(f"| {runs} | {apart[0]:.2f} | {apart[1]:.2f} | {together[0]:.2f} | {together[1]:.2f} |", flush=True)
