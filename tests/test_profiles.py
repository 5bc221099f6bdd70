"""The cluster's profile: it agrees with the default one and with the rules, and jobs ask for what it says."""

import re
from pathlib import Path

import pytest
import yaml
from test_workflow import project, snakemake  # noqa: F401  (a fixture)

from gradlab.sweep import load

ROOT = Path(__file__).parents[1]
DEFAULT, SLURM = (yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text()) for name in ("default", "slurm"))
RULES = {
    name: body
    for path in (ROOT / "workflow/rules").glob("*.smk")
    for name, body in re.findall(r"^rule (\w+):\n((?:(?:    .*)?\n)+)", path.read_text(), re.M)
}

# Prints what its jobs ask for; the rules of the workflow print their message instead.
PROBE = """
include: "workflow/Snakefile"
rule probe:
    output: "probe/{sweep}/{run}"
    threads: threads_of
    resources: gpu_slots=gpu_slots, gres=gres, mem_mb=mem_mb
    shell: "true"
"""


def test_what_holds_on_one_machine_holds_on_a_cluster():
    """Snakemake reads one workflow profile: what the default one says is said again, but for this machine's limit."""
    assert {key: SLURM.get(key) for key in DEFAULT if key != "resources"} == {
        key: value for key, value in DEFAULT.items() if key != "resources"
    }
    assert "resources" not in SLURM, "Slurm bounds the slots"


def test_the_rules_it_names_exist_and_whatever_trains_is_among_them():
    assert SLURM["set-resources"].keys() <= RULES.keys()
    assert SLURM["set-resources"].keys() >= {name for name, body in RULES.items() if "scripts/train" in body}


def test_whoever_takes_slots_takes_them_of_slurm_and_names_its_memory():
    takers = {name: body for name, body in RULES.items() if "gpu_slots=" in body}
    assert {"train", "eval_run", "pack"} <= takers.keys()
    for name, body in takers.items():
        assert "gres=" in body, name
        assert "mem_mb=" in body, name


@pytest.fixture
def asks(project, monkeypatch):  # noqa: F811
    monkeypatch.chdir(project)

    def ask(sweep_values, *arguments):
        """What a job of the first run asks for, by resource, as Snakemake prints it."""
        (project / "Probe").write_text(PROBE)
        run = next(iter(load("mini", sweep_values, {}).runs))
        fixed = "{" + ", ".join(f'"{key}": {value}' for key, value in sweep_values.items()) + "}"
        target = f"probe/mini/{run}"
        arguments = ("--dry-run", "-s", "Probe", *arguments, "--config", f"fixed={fixed}", "--", target)
        output = snakemake(project, *arguments)
        printed = re.search(r"^ +resources: (.*)$", output, re.M)
        assert printed, output
        return dict(entry.split("=") for entry in printed[1].split(", "))

    return ask


@pytest.mark.parametrize(
    "replaced,expected",
    [
        ({}, "shard:3"),
        ({"gpu_gres": "mps", "gres_per_slot": 25}, "mps:75"),
        ({"gpu_gres": "gpu:h100"}, "gpu:h100:1"),
        ({"gpu_gres": "none"}, None),
    ],
)
def test_slots_become_the_gres_that_the_site_has(asks, replaced, expected):
    resources = [f"{key}={value}" for key, value in {**SLURM["default-resources"], **replaced}.items()]
    found = asks({"placement.gpu_slots": 3}, "--default-resources", *resources, "--resources", "gpu_slots=8")
    assert found.get("gres") == expected
    assert found["gpu_slots"] == "3"
    assert found["runtime"] == "60"
    assert int(found["mem_mb"]) % 1024 == 0, "the run's own estimate, not the profile's number"


def test_on_one_machine_nothing_is_asked_of_slurm(asks):
    assert "gres" not in asks({"placement.gpu_slots": 3})


def test_a_second_attempt_asks_for_more_memory(asks):
    first, second = (asks({"placement.gpu_slots": 1}, "--attempt", n) for n in ("1", "2"))
    assert int(second["mem_mb"]) == 2 * int(first["mem_mb"])
