"""Where a model lies. No torch."""

from __future__ import annotations

from pathlib import Path


def resolve(model_id: str, bases: str | Path) -> str:
    """A path or hub id for `model.id`; `base/<name>` lies in the folder `bases`.

    Raises FileNotFoundError when a base was not made.
    """
    if not model_id.startswith("base/"):
        return model_id
    path = Path(bases) / model_id.removeprefix("base/")
    if not (path / "base.json").is_file():
        raise FileNotFoundError(
            f"model.id: expected a finished base at {path}; found none. "
            f"Make it: snakemake --cores all -- {path}/base.json, or python scripts/make_base.py --help"
        )
    return str(path)


def weights(model_id: str, bases: str | Path) -> list[Path]:
    """The file of weights of a model made here; none of another, which its name stands for."""
    return [Path(resolve(model_id, bases)) / "model.safetensors"] if model_id.startswith("base/") else []
