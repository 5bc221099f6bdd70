"""What a run writes while it trains, in its work folder; published whole at the end.

Files only grow, and a checkpoint stores their lengths: a resume cuts them back, so that no step is
missing or doubled.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.gradients import Array, Conflict, numbers
from gradlab.store import atomic

GROWING = ("metrics.jsonl", "samples.jsonl", "probe/probe.jsonl", "train.log")


class RunLog:
    """The growing files of one run below `folder`."""

    def __init__(self, folder: Path, sizes: dict[str, int] | None) -> None:
        self.folder = folder
        if sizes is None:
            shutil.rmtree(folder, ignore_errors=True)  # another configuration's probes
        (folder / "probe").mkdir(parents=True, exist_ok=True)
        for name in GROWING:
            (folder / name).touch()
            found, size = (folder / name).stat().st_size, (sizes or {}).get(name, 0)
            if found < size:
                raise ValueError(
                    f"{folder / name}: expected at least the {size} bytes that the checkpoint counted; found {found}. "
                    f"The file was changed: remove {folder.parent} to train from the start."
                )
            os.truncate(folder / name, size)

    def sizes(self) -> dict[str, int]:
        """Lengths for a checkpoint; what they count is on the disk before the checkpoint is."""
        for name in GROWING:
            with open(self.folder / name, "rb") as handle:
                os.fsync(handle.fileno())
        return {name: (self.folder / name).stat().st_size for name in GROWING}

    def _append(self, name: str, text: str) -> None:
        with open(self.folder / name, "a", encoding="utf-8") as handle:
            handle.write(text)

    def metrics(self, row: dict[str, Any]) -> None:
        self._append("metrics.jsonl", json.dumps(row, allow_nan=False) + "\n")

    def samples(self, rows: list[dict[str, Any]]) -> None:
        self._append("samples.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def text(self, line: str) -> None:
        self._append("train.log", line + "\n")

    def probe(
        self, step: int, header: dict[str, Any], layers: list[str], conflicts: list[Conflict], arrays: dict[str, Any]
    ) -> None:
        """One probed step: the Gram and what it was made of (npz), a matrix for people (csv), rows for machines."""
        names = header["objectives"]
        with atomic(self.folder / "probe" / f"gram_step{step:04d}.npz") as path, open(path, "wb") as handle:
            np.savez_compressed(handle, layers=np.array(layers), objectives=np.array(names), **arrays)
        table = [",".join(["layer", "objective", *names])]
        for layer, found in zip(layers, conflicts, strict=True):
            for name, cosines in zip(names, found.cosine_KK, strict=True):
                table.append(",".join([layer, name, *("" if np.isnan(c) else f"{c:.6g}" for c in cosines)]))
            self._append(
                "probe/probe.jsonl",
                json.dumps(
                    {
                        "step": step,
                        "layer": layer,
                        **header,
                        "cosine": [numbers(row) for row in found.cosine_KK],
                        "norm": dict(zip(names, numbers(found.norm_K), strict=True)),
                        "net_synergy": dict(zip(names, numbers(found.synergy_K), strict=True)),
                        "conflict_fraction": numbers([found.conflict_fraction])[0],
                        "n_undefined_pairs": found.undefined_pairs,
                    },
                    allow_nan=False,
                )
                + "\n",
            )
        with atomic(self.folder / "probe" / f"cosine_step{step:04d}.csv") as path:
            path.write_text("\n".join(table) + "\n")

    def publish(self, folder: Path) -> None:
        """Copy everything into `folder`, but for what a kill left half written."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def per_objective(prefix: str, names: list[str], values: Array | list[float]) -> dict[str, float | None]:
    """`{prefix}/{objective}` for each objective; undefined is null."""
    return {f"{prefix}/{name}": value for name, value in zip(names, numbers(values), strict=True)}
