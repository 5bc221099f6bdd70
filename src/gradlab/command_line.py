"""What the scripts share: placement flags, and errors as one line instead of a traceback."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError

from gradlab.config import PlacementConfig
from gradlab.explain import validate


def add_placement(parser: argparse.ArgumentParser) -> None:
    """One flag for each key of `placement`: `--gpu-slots`, `--microbatch-tokens`, ...; None where not given."""
    group = parser.add_argument_group("placement", "where and how it executes; never part of a run's identity")
    for name, field in PlacementConfig.model_fields.items():
        text = (field.description or "").replace("%", "%%")
        group.add_argument(_flag(name), help=f"{text} (default: as configured)")


def placement(arguments: argparse.Namespace, configured: PlacementConfig) -> PlacementConfig:
    """`configured` with what the flags of `add_placement` replace. Raises ValueError naming the wrong one."""
    given = {name: getattr(arguments, name) for name in PlacementConfig.model_fields}
    flags = {name: value for name, value in given.items() if value is not None}
    return validate(PlacementConfig, configured.model_dump() | flags)


def placement_flags(config: PlacementConfig) -> str:
    """The command line that `placement` reads back as `config`."""
    return " ".join(f"{_flag(name)} {value}" for name, value in config.model_dump().items())


def mapping(text: str) -> dict[str, Any]:
    """A JSON mapping, as the `type` of an argument."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"expected a JSON mapping; found {text!r}: {error}") from None
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON mapping; found {text!r}")
    return values


def run(main: Callable[[], None]) -> None:
    """Call `main`; an error of the user's input, or Ctrl-C, ends the program with its message and status 1."""
    try:
        main()
    except FileNotFoundError as error:
        missing = f"{error.filename}: expected a file or folder; found none. Check the path."
        sys.exit(f"error: {missing if error.filename is not None else error}")
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:  # the last: a full disk, a broken file
        full = "\nThe disk of results, work, logs or TMPDIR is full. Free some and give the same command again."
        sys.exit(f"error: {error}{full if os.strerror(errno.ENOSPC) in str(error) else ''}")
    except KeyboardInterrupt as error:
        sys.exit(str(error) or "stopped. The same command continues.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
