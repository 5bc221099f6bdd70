"""A whole Snakemake call on two GPUs that only NVIDIA's faked programs know of."""

import json
import os

import fake_gpus
import pytest
from test_workflow import project, snakemake  # noqa: F401  (a fixture)

TRAIN = """
import json, os, sys
from pathlib import Path
from gradlab.config import PlacementConfig
from gradlab.gpu.devices import bound

def value(flag):
    return Path(sys.argv[sys.argv.index(flag) + 1])

folder = value("--run-dir")
with bound(PlacementConfig(gpu_slots=int(str(value("--gpu-slots"))))):
    seen = {k: v for k, v in os.environ.items() if k.startswith(("GRADLAB", "CUDA"))}
    seen["asked"] = str(value("--gpu-slots"))
if Path("broken").exists() and "_s1-" in folder.name:
    sys.exit("error: broken")
(folder / "adapter").mkdir(parents=True, exist_ok=True)
(folder / "probe").mkdir(exist_ok=True)
for name in "config.json metrics.jsonl samples.jsonl outcome.json provenance.json".split():
    (folder / name).write_text(json.dumps(seen))
"""


@pytest.fixture
def machine(project, tmp_path, monkeypatch):  # noqa: F811
    """A project whose runs note their environment, two GPUs, and a fresh results folder."""
    (project / "scripts/train.py").write_text(TRAIN)
    for name, value in fake_gpus.install(tmp_path / "fakes").items():
        monkeypatch.setenv(name, value)
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "GRADLAB_GPU_SLOTS", "GRADLAB_MPS"):
        monkeypatch.delenv(name, raising=False)
    return project


def records(machine, results):
    return [json.loads(path.read_text()) for path in machine.glob(f"{results}/mini/runs/*/provenance.json")]


def test_jobs_are_bound_and_served_and_the_daemon_stops(machine, tmp_path):
    output = snakemake(machine, "--until", "train", "--config", "results=first", "--resources", "gpu_slots=4")
    assert output.count("MPS serves: jobs share their GPU") == 1
    assert fake_gpus.daemon_log(tmp_path / "fakes") == ["start ", "stop"]
    found = records(machine, "first")
    assert len(found) == 4
    for record in found:
        assert record["GRADLAB_GPU_SLOTS"] == "4"
        assert record["GRADLAB_HELD_SLOTS"] == "1"
        assert record["GRADLAB_MPS"] == "serving, started by gradlab"
        assert record["CUDA_VISIBLE_DEVICES"] in ("GPU-aaaa1111", "GPU-bbbb2222")
        assert record["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / f"fakes/gradlab-{os.getuid()}/mps/pipe")
    snakemake(machine, "--dry-run", "--config", "results=second")
    snakemake(machine, "first/base/mini/base.json", "--config", "results=first")
    assert fake_gpus.daemon_log(tmp_path / "fakes") == ["start ", "stop"], "nothing to do: nothing to start"


def test_the_daemon_stops_when_a_job_fails(machine, tmp_path):
    (machine / "broken").touch()
    try:
        snakemake(machine, "--until", "train", "--config", "results=failing", ok=False)
    finally:
        (machine / "broken").unlink()
    assert fake_gpus.daemon_log(tmp_path / "fakes") == ["start ", "stop"]
    assert len(records(machine, "failing")) == 2


def test_what_can_not_be_stops_before_any_job(machine, monkeypatch):
    for slots, message in (
        (3, "placement.gpu_slots: expected at most 2, what one of 2 GPU(s) offers of 4 slots; found 3 for mini/"),
        (9, "placement.gpu_slots: expected at most 4, the limit of this call; found 9 for mini/"),
    ):
        output = snakemake(machine, "--config", f'fixed={{"placement.gpu_slots": {slots}}}', ok=False)
        assert message in output
        assert "Traceback" not in output and "Job stats" not in output
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    output = snakemake(machine, "--dry-run", ok=False)
    assert "CUDA_VISIBLE_DEVICES: expected GPUs among 0 (GPU-aaaa1111), 1 (GPU-bbbb2222); found '2' in '0,2'" in output
    assert "Traceback" not in output


def test_a_broken_driver_is_one_line_and_the_slots_are_inert(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_GPUS", "")
    output = snakemake(machine, "--until", "train", "--config", "results=inert", 'fixed={"placement.gpu_slots": 9}')
    assert output.count(f"no GPU is used: nvidia-smi fails: {fake_gpus.FAILURE}") == 1
    assert records(machine, "inert") == 4 * [{"asked": "0", "GRADLAB_MPS": "no GPU"}]
    assert fake_gpus.daemon_log(tmp_path / "fakes") == []


def test_jobs_of_a_cluster_ask_for_slots_and_are_left_their_gpus(machine, tmp_path, monkeypatch):
    """As on a login node without a GPU, and in the Snakemake call inside one of its jobs."""
    monkeypatch.setenv("FAKE_GPUS", "")
    on_cluster = (
        "--until",
        "train",
        "--default-resources",
        "gpu_gres=shard",
        "--config",
        "results=cluster",
        'fixed={"placement.gpu_slots": 3}',
    )
    monkeypatch.setenv("GRADLAB_GPU_SLOTS", "4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    snakemake(machine, *on_cluster)
    assert len(records(machine, "cluster")) == 4
    for record in records(machine, "cluster"):
        assert record == {"asked": "3", "CUDA_VISIBLE_DEVICES": "0", "GRADLAB_MPS": "left to the cluster"}
    assert fake_gpus.daemon_log(tmp_path / "fakes") == []
