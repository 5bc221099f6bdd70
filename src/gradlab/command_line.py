"""What the scripts share: placement flags, and errors as one line instead of a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from gradlab.config import PlacementConfig
from gradlab.explain import validate


def add_placement(parser: argparse.ArgumentParser) -> None:
    """One flag for each key of `placement`: `--gpu-slots`, `--microbatch-tokens`, ..."""
    group = parser.add_argument_group("placement", "where and how it executes; never part of a run's identity")
    for name, field in PlacementConfig.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        group.add_argument(_flag(name), default=field.default, help=f"{text} (default: {field.default})")


def placement(arguments: argparse.Namespace) -> PlacementConfig:
    """The flags of `add_placement`. Raises ValueError naming the wrong one."""
    return validate(PlacementConfig, {name: getattr(arguments, name) for name in PlacementConfig.model_fields})


def placement_flags(config: PlacementConfig) -> str:
    """The command line that `placement` reads back as `config`."""
    return " ".join(f"{_flag(name)} {value}" for name, value in config.model_dump().items())


def run(main: Callable[[], None]) -> None:
    """Call `main`; an error of the user's input ends the program with its message and status 1."""
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
