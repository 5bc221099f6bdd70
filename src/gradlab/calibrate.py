"""Speed and memory against pack size, for one shape of run, on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from gradlab import models
from gradlab.config import RunConfig
from gradlab.engine import Trainer


def calibrate(
    configs: Sequence[RunConfig], bases: str | Path, sizes: Sequence[int], rounds: int, steps: int
) -> list[dict[str, float]]:
    """A row a size: `pack`, `seconds_per_step` (median), `runs_per_second` (steps of single runs), `memory_gib` (peak).

    `configs` share a shape; where there are fewer than a size asks, they are repeated with other seeds. All sizes are
    measured in turn, `rounds` times, so that what else the machine does falls on all alike; the first step of each is
    not counted. A size that would not fit into memory, judged by the one before, ends the list.
    """
    device = models.pick_device(configs[0].placement.device)
    torch.set_num_threads(configs[0].placement.threads)
    seconds: dict[int, list[float]] = {}
    peak: dict[int, float] = {}
    for _ in range(rounds):
        last = 0
        for size in sizes:
            if last and peak[last] * size / last > _available_gib(device):
                break
            pack = [configs[i % len(configs)].model_copy(update={"seed": i, "steps": steps + 1}) for i in range(size)]
            taken, gib = _measure(pack, bases, device)
            peak.setdefault(size, gib)  # of the first round: later ones hold on to what larger packs took
            seconds.setdefault(size, []).extend(taken)
            last = size
    typical = {size: median(taken) for size, taken in seconds.items()}
    return [
        {"pack": n, "seconds_per_step": s, "runs_per_second": n / s, "memory_gib": peak[n]} for n, s in typical.items()
    ]


def _measure(pack: Sequence[RunConfig], bases: str | Path, device: torch.device) -> tuple[list[float], float]:
    """Seconds of each step but the first, and the peak memory in GiB: of the GPU, or resident."""
    _reset_peak(device)
    with tempfile.TemporaryDirectory() as temporary:
        work = [Path(temporary) / str(r) for r in range(len(pack))]
        trainer = Trainer(pack, [""] * len(pack), work, models.load(pack[0].model, bases, device.type))
        taken = []
        for step in range(pack[0].steps):
            start = time.perf_counter()
            trainer.step(step)  # the numbers it logs wait for the device
            taken.append(time.perf_counter() - start)
    return taken[1:], peak_gib(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the most resident memory starts anew


def peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return _kib("/proc/self/status", "VmHWM") / 2**20


def _available_gib(device: torch.device) -> float:
    """What this process may hold in all."""
    if device.type == "cuda":
        return (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)) / 2**30
    return (_kib("/proc/meminfo", "MemAvailable") + _kib("/proc/self/status", "VmRSS")) / 2**20


def _kib(path: str, name: str) -> int:
    (line,) = [line for line in Path(path).read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1])
