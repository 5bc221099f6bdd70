"""Tests never reach the network, and leave the machine's cores to each other. What the tests of the report share."""

import os
import time
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A folder of fake sweeps with their tables: the variants of fake_reports.py. Read it, change a copy."""
    from fake_reports import write_variants

    return write_variants(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def demo(results):
    from gradlab.report import load

    return load(results, "demo")


@pytest.fixture(scope="session")
def page(results) -> Path:
    """The report of `demo`."""
    from fake_reports import COMMAND

    from gradlab.report import write_report

    out = results / "demo" / "report.html"
    started = time.process_time()
    write_report(results, "demo", out, COMMAND)
    assert time.process_time() - started < 10  # measured: 2 to 3 seconds
    return out
