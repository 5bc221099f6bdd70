"""From configurations to finished runs: lock, load, train or resume, stage; alone or several in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gradlab import checkpoint, models
from gradlab.config import RunConfig
from gradlab.engine import RunFailed, Trainer, TrainingDiverged
from gradlab.evaluate import evaluate_pack
from gradlab.outcome import RunOutcome
from gradlab.packs.planner import level
from gradlab.provenance import provenance
from gradlab.staging import publish, stage, staged, stamp
from gradlab.stopping import stop_requested
from gradlab.store import clear_temporaries, digest, read_json, read_jsonl, writer_lock
from gradlab.workfolder import FINISHED


def train(config: RunConfig, run_dir: str | Path, work: str | Path, bases: str | Path) -> None:
    """Train `config` and write the folder that docs/ARCHITECTURE.md describes.

    Checkpoints and growing files stand in `work` until the end; a run stopped anywhere resumes from there. A run
    that diverges ends with what it had; `outcome.json` says so. Raises RuntimeError when another process holds
    `work`, ValueError for input that does not fit, Stopped on SIGTERM or Ctrl-C, when the state is saved.
    """
    run_dir, work = Path(run_dir), Path(work)
    with writer_lock(work):
        failures = _train([config], [work], bases)
        if failures:
            raise failures[0]
        publish(config, run_dir, work)


def train_pack(configs: Mapping[str, RunConfig], work: Path, bases: str | Path) -> list[Exception]:
    """Train and evaluate runs together and leave each in `work/<run>` for its own jobs to publish.

    What can not be done here, alone or at all, is left to the runs' own jobs, which will say why; the errors are
    returned. Raises RuntimeError when another process holds a run or memory does not suffice, Stopped
    as `train` does.
    """
    folders = [work / run for run in configs]
    with contextlib.ExitStack() as locks:
        for folder in folders:
            locks.enter_context(writer_lock(folder))
        try:
            failures = _train(list(configs.values()), folders, bases)
            ended = {work / run: config for run, config in configs.items() if _finished(work / run)}
            return [*failures, *evaluate_pack(ended, bases)]
        except ValueError as error:  # one run's prompts, an adapter's targets, the gate
            return [error]
        except torch.OutOfMemoryError as error:
            raise RuntimeError(
                f"pack: expected {len(folders)} runs to fit into the GPU's memory together; found {error} "
                f"Lower it: --config pack={max(1, len(folders) // 2)}. The runs go on from their checkpoints."
            ) from error


def _train(configs: Sequence[RunConfig], folders: Sequence[Path], bases: str | Path) -> list[RunFailed]:
    """Train all that is not staged yet; whoever fails leaves the pack, the others go on from their checkpoints."""
    torch.set_num_threads(configs[0].placement.threads)
    left = {folder: (config, stamp(config, bases)) for config, folder in zip(configs, folders, strict=True)}
    left = {folder: (config, own) for folder, (config, own) in left.items() if not staged(folder, own)}
    for folder in left:
        clear_temporaries(folder)
    failures = []
    with stop_requested() as stop:
        while left:
            together = level((folder, checkpoint.steps(folder, own)) for folder, (_, own) in left.items())[0]
            ended, failure = _round({folder: left[folder] for folder in together}, bases, stop)
            failures += [failure] if failure else []
            left = {folder: run for folder, run in left.items() if folder not in ended}
    return failures


def _round(
    runs: Mapping[Path, tuple[RunConfig, str]], bases: str | Path, stop: Callable[[], bool]
) -> tuple[list[Path], RunFailed | None]:
    """Train until all end, or one does. Returns who is done with, staged unless it is the one that failed."""
    folders, configs = list(runs), [config for config, _ in runs.values()]
    lm = models.load(configs[0].model, bases, configs[0].placement.device)
    trainer = Trainer(configs, [own for _, own in runs.values()], folders, lm)
    try:
        trainer.train(stop)
    except TrainingDiverged as error:
        _stage(trainer, error.run, str(error))
        return [folders[error.run]], None
    except RunFailed as error:
        return [folders[error.run]], error
    for r in range(len(folders)):
        _stage(trainer, r, None)
    return folders, None


def _stage(trainer: Trainer, r: int, reason: str | None) -> None:
    """`reason`: why the run ended before its last step; None: it did not."""
    config, work, log = trainer.configs[r], trainer.work[r], trainer.logs[r]
    if reason:
        log.text(f"[Diverged] {reason}")
    for name in _silent(log.folder / "metrics.jsonl", list(config.enabled_objectives)):
        log.text(
            f"[Warning] objective {name!r}: expected rewards that differ among the completions of a prompt; found "
            "none in the whole run. It has no gradient: change its params, the prompts or the base."
        )
    outcome = RunOutcome(
        status="diverged" if reason else "finished", steps_done=trainer.next_step, steps=config.steps, reason=reason
    )
    spec = config.model_dump(mode="json", exclude={"placement", "evaluation"})
    origin = provenance(digest(spec), config.seed, trainer.lm.device) | {"pack": _pack(trainer.histories[r])}
    with stage(work, trainer.stamps[r], outcome.model_dump(), origin) as folder:
        log.publish(folder)
        trainer.adapter.save(r, folder / "adapter")


def _finished(work: Path) -> bool:
    path = work / FINISHED / "outcome.json"
    return path.is_file() and RunOutcome.model_validate(read_json(path)).finished


def _pack(history: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Which runs it was trained with, and from which step on; None: always alone."""
    return history if any(len(part["runs"]) > 1 for part in history) else None


def _silent(metrics: Path, objectives: list[str]) -> list[str]:
    """Objectives that had no advantage at any step although their weight was not 0."""
    rows = read_jsonl(metrics) if metrics.stat().st_size else []
    return [
        name
        for name in objectives
        if any(row[f"weight/{name}"] for row in rows)
        and not any(row[f"advantage_variance_share/{name}"] for row in rows)
    ]
