"""One run from its configuration to its folder: lock, load, train or resume, publish."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch

from gradlab import models
from gradlab.config import RunConfig
from gradlab.engine import Trainer
from gradlab.provenance import provenance
from gradlab.store import atomic_folder, canonical, digest, read_jsonl, write_json, writer_lock


def train(config: RunConfig, run_dir: str | Path, work: str | Path, bases: str | Path) -> None:
    """Train `config` and write the folder that docs/ARCHITECTURE.md describes.

    Checkpoints and growing files stand in `work` until the end; a run stopped anywhere resumes from
    there. `config.json` is written last: with it the folder is whole. Raises RuntimeError when another process
    holds `work` or training diverges, ValueError for input that does not fit.
    """
    run_dir, work = Path(run_dir), Path(work)
    torch.set_num_threads(config.placement.threads)
    with writer_lock(work):
        lm = models.load(config.model, bases, config.placement.device)
        spec = canonical(config.model_dump(mode="json", exclude={"placement", "evaluation"}))
        trainer = Trainer([config], [_stamp(spec, config, bases)], [work], lm)
        trainer.train()
        for name in _silent(read_jsonl(work / "log" / "metrics.jsonl"), list(config.enabled_objectives)):
            trainer.logs[0].text(
                f"[Warning] objective {name!r}: expected rewards that differ among the completions of a prompt; found "
                "none in the whole run. It has no gradient: change its params, the prompts or the base."
            )
        for name in ("probe", "config.json"):  # what an earlier configuration left
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with atomic_folder(run_dir / "adapter") as folder:
            trainer.adapter.save(0, folder)
        trainer.logs[0].publish(run_dir)
        write_json(run_dir / "provenance.json", provenance(digest(spec), config.seed, lm.device))
        write_json(run_dir / "config.json", config.model_dump(mode="json"))
        shutil.rmtree(work / "log")
        (work / "checkpoint.safetensors").unlink()


def _silent(metrics: list[dict[str, Any]], objectives: list[str]) -> list[str]:
    """Objectives that had no advantage at any step although their weight was not 0."""
    return [
        name
        for name in objectives
        if any(row[f"weight/{name}"] for row in metrics)
        and not any(row[f"advantage_variance_share/{name}"] for row in metrics)
    ]


def _stamp(spec: str, config: RunConfig, bases: str | Path) -> str:
    """What a checkpoint belongs to: the configuration, and the content of its prompts and of its base."""
    files = [Path(path) for path in config.data.train]
    if config.model.id.startswith("base/"):
        files.append(Path(models.resolve(config.model.id, bases)) / "model.safetensors")
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return canonical({"spec": spec, "files": digests})
