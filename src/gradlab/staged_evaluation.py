"""An evaluation that a pack made while it held the model, kept for the run's own job to fetch. No torch."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from gradlab.bases import weights
from gradlab.config import RunConfig
from gradlab.identity import EVALUATION_MEANING
from gradlab.store import atomic, canonical, remove_folder, writer_lock
from gradlab.workfolder import EVALUATED

FILES = ("eval_samples.jsonl", "eval.json")


def stamp(config: RunConfig, run_dir: Path, bases: str | Path) -> str:
    """What is evaluated: the configuration, and the content of the adapter, of the prompts and of the base."""
    files = [*map(Path, (*config.data.heldout, *config.data.train)), *weights(config.model.id, bases)]
    adapter = [path for path in (run_dir / "adapter").iterdir() if not path.name.startswith(".")]  # Snakemake's mark
    digests = [_digest(path) for path in [*files, *sorted(adapter)]]
    run = config.model_dump(mode="json", exclude={"placement"})
    return canonical({"run": run, "meaning": EVALUATION_MEANING, "files": digests})


def fetch(config: RunConfig, run_dir: Path, work: Path, bases: str | Path) -> bool:
    """Copy the evaluation into the run's folder if this very one was made; False: it has to be made."""
    waiting = work / EVALUATED
    if not (waiting / "stamp").is_file():  # nor is the folder held: a call with other results may train there
        return False
    with writer_lock(work):
        same = (waiting / "stamp").read_text(encoding="utf-8") == stamp(config, run_dir, bases)
        for name in FILES if same else ():
            with atomic(run_dir / name) as temporary:
                shutil.copyfile(waiting / name, temporary)
        remove_folder(waiting)
    return same


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
