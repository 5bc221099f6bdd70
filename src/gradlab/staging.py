"""A run that has ended, on its way from the work folder to its results. No torch.

`stage` is called by the process that trained; `publish` by the run's own job, which may be another: a run
that was trained in a pack waits in `work/<sweep>/<run>/finished` for its job to fetch it.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradlab.bases import weights
from gradlab.config import RunConfig
from gradlab.store import (
    atomic,
    atomic_folder,
    canonical,
    clear_temporaries,
    remove_files,
    remove_folder,
    write_json,
    write_text,
    writer_lock,
)
from gradlab.workfolder import FINISHED, LOG, checkpoint_files

FOLDERS = ("adapter", "probe")


def stamp(config: RunConfig, bases: str | Path) -> str:
    """What is trained: the configuration, and the content of its prompts and of its base.

    Raises FileNotFoundError when a file or the base is missing.
    """
    files = [*map(Path, config.data.train), *weights(config.model.id, bases)]
    digests = {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return canonical({"run": config.model_dump(mode="json", exclude={"placement", "evaluation"}), "files": digests})


@contextlib.contextmanager
def stage(work: Path, stamp: str, outcome: dict[str, Any], provenance: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder for the run's files; it becomes `work/finished` whole or not at all.

    Then what training left in `work` goes.
    """
    with atomic_folder(work / FINISHED) as folder:
        yield folder
        write_json(folder / "outcome.json", outcome)
        write_json(folder / "provenance.json", provenance)
        write_text(folder / "stamp", stamp)
    _remove_state(work)


def staged(work: Path, stamp: str) -> bool:
    """Whether exactly this run waits to be published."""
    path = work / FINISHED / "stamp"
    return path.is_file() and path.read_text(encoding="utf-8") == stamp


def fetch(config: RunConfig, run_dir: Path, work: Path, bases: str | Path) -> bool:
    """Publish the run if it waits in `work`; False: it has to be trained."""
    if not (work / FINISHED).is_dir():
        return False
    with writer_lock(work):
        if not staged(work, stamp(config, bases)):
            return False
        publish(config, run_dir, work)
    return True


def publish(config: RunConfig, run_dir: Path, work: Path) -> None:
    """Copy a staged run into its folder, `config.json` last: with it the folder is whole. Then the copy goes."""
    finished = work / FINISHED
    clear_temporaries(work)
    clear_temporaries(run_dir)
    _remove_state(work)  # whoever staged the run may have been killed before it did
    for name in ("config.json", *FOLDERS):  # what an earlier configuration left
        path = run_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in FOLDERS:
        with atomic_folder(run_dir / name) as folder:
            shutil.copytree(finished / name, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    for source in sorted(p for p in finished.iterdir() if p.is_file() and p.name != "stamp"):
        with atomic(run_dir / source.name) as temporary:
            shutil.copyfile(source, temporary)
    write_json(run_dir / "config.json", config.model_dump(mode="json"))
    remove_folder(finished)


def _remove_state(work: Path) -> None:
    """The run has ended: a checkpoint that stayed would be resumed when it is trained again."""
    remove_files(checkpoint_files(work).values())
    shutil.rmtree(work / LOG, ignore_errors=True)
