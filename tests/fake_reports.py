"""Fake sweeps with their tables, for the tests of the report; the fixtures are in conftest.py."""

from __future__ import annotations

from pathlib import Path

from fake_runs import write_sweep

from gradlab.aggregate import aggregate
from gradlab.report.blocks import SECTIONS
from gradlab.report.load import Sweep

VARIANTS = {
    "demo": {},
    "single": {"objectives": ("numeric",), "algorithms": ("grpo",), "seeds": (0,), "steps": 12},
    "unprobed": {"probe_every": 0, "difference": False, "steps": 12},
    "alone": {"alone": True, "algorithms": ("grpo",), "seeds": (0, 1, 2), "steps": 21},
    "layers": {"scope": "per_layer", "objectives": ("a", "b", "c", "d", "e"), "steps": 21},
}
COMMAND = "snakemake results/demo/report.html # <b>"


def write_variants(folder: Path) -> Path:
    """Every variant as a sweep of its own in `folder`."""
    for name, options in VARIANTS.items():
        write_sweep(folder, name, **options)
        aggregate(folder, name)
    return folder


def blocks(sweep: Sweep, section: str) -> list:
    return list(SECTIONS[section].build(sweep))
