"""Where a step's time goes."""

from __future__ import annotations

import time

import torch


class Clock:
    """Seconds by phase; on a GPU a lap waits for its kernels."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.laps: dict[str, float] = {}
        self.start = self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[phase], self.last = now - self.last, now

    def move(self, source: str, target: str, seconds: float) -> None:
        """Count `seconds` of one phase to another, which ran inside it."""
        self.laps[source] -= seconds
        self.laps[target] = self.laps.get(target, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        laps = {f"seconds/{phase}": seconds for phase, seconds in self.laps.items()}
        return {**laps, "seconds/step": time.perf_counter() - self.start}
