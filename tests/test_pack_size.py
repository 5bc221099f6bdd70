"""How large packs are: what was asked, measured or estimated; and the measurement itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from gradlab import calibrate as measuring
from gradlab.config import BaseConfig
from gradlab.gpu.devices import Gpu
from gradlab.gpu.slots import Capacity, peak_gib
from gradlab.packs.planner import shape_name
from gradlab.packs.size import Sizing, machine, measured, plan_sweep, suggest
from gradlab.store import write_json
from gradlab.sweep import Run

BASE = BaseConfig(corpus=("corpus.jsonl",))  # 0.9 million parameters


def runs(count: int, rows: int = 4, **changes) -> list[Run]:
    shape = {"batch_size": rows, "num_generations": 4, "max_new_tokens": 12}
    made = [tiny.config(model={"id": "base/b"}, rollout=shape, seed=seed, **changes) for seed in range(count)]
    return [Run(f"r{c.seed}", c, {}, "") for c in made]


NO_GPU = Capacity(None)


def gpus(*mib: int) -> list[Gpu]:
    return [Gpu(f"GPU-{index}", size) for index, size in enumerate(mib)]


def sizing(asked, cores: int = 1, offered=NO_GPU, known=None) -> Sizing:
    return Sizing(asked, cores, offered, known or {}, lambda run: BASE)


def test_a_number_is_kept_for_shapes_whose_overhead_counts_and_no_others():
    """Rows of a step times parameters: 4 x 0.9 million pays, 64 x 0.9 million does not on a CPU."""
    assert sizing(16)(runs(20)) == 16
    assert sizing(16)(runs(20, rows=64)) == 1
    assert sizing(16, offered=Capacity(None, gpus(80_000)))(runs(20, rows=64)) == 16


def test_what_was_measured_here_goes_before_the_rule_of_thumb():
    large, small = runs(20, rows=64), runs(20)
    known = {shape_name(large[0].config): 4, shape_name(small[0].config): 1}
    assert sizing(16, known=known)(large) == 16, "a number that was asked for stands where packing pays"
    assert sizing("auto", known=known)(large) == 4
    assert sizing(16, known=known)(small) == sizing("auto", known=known)(small) == 1


@pytest.mark.parametrize(
    ("count", "cores", "threads", "expected"), [(20, 1, 1, 8), (20, 4, 1, 5), (20, 4, 2, 8), (4, 8, 1, 1)]
)
def test_auto_keeps_every_core_at_work(count, cores, threads, expected):
    assert sizing("auto", cores=cores)(runs(count, placement={"threads": threads})) == expected


def test_auto_packs_what_fits_on_a_gpu():
    assert sizing("auto", offered=Capacity(None, gpus(80_000, 80_000)))(runs(20)) == 10
    small = Capacity(None, gpus(1_000), slot_gib=0.1)
    size = sizing("auto", offered=small)(runs(20))
    held, more = (peak_gib([run.config for run in runs(n)], BASE) for n in (size, size + 1))
    assert 1 < size < 20 and held <= 0.9 < more


def test_a_model_of_unknown_size_is_left_alone():
    unknown = [Run(r.id, r.config.model_copy(update={"model": tiny.config().model}), {}, "") for r in runs(4)]
    assert Sizing("auto", 1, NO_GPU, {}, lambda run: None)(unknown) == 1


def test_only_runs_that_wait_are_planned(tmp_path):
    group = runs(6)
    write_json(tmp_path / "results/runs/r1/config.json", {})
    (tmp_path / "work/r3/finished").mkdir(parents=True)
    packs = plan_sweep(group, sizing(2), tmp_path / "results", tmp_path / "work")
    assert [[run.id for run in pack] for pack in packs.values()] == [["r0", "r2"], ["r4", "r5"]]


def test_the_smallest_pack_near_the_best_is_suggested():
    assert suggest({1: 10, 2: 16, 4: 18.5, 8: 20, 16: 19}) == 4
    assert suggest({1: 10, 2: 10.9, 4: 10.5}) == 1, "less than a tenth gained"


def test_a_measurement_of_another_machine_is_not_used(tmp_path):
    write_json(tmp_path / "c.json", {"machine": machine([]), "shapes": [{"shape": "s", "pack": 4}]})
    assert measured(tmp_path / "c.json", []) == {"s": 4}
    assert measured(tmp_path / "c.json", gpus(80_000)) == {}
    assert measured(tmp_path / "none.json", []) == {}


def test_a_measurement_of_another_version_is_refused_by_name(tmp_path):
    write_json(tmp_path / "c.json", {"machine": machine(()), "sizes": [4]})
    with pytest.raises(ValueError, match=r"c\.json: expected what scripts/calibrate\.py writes; .* Measure again"):
        measured(tmp_path / "c.json", ())


def test_calibration_measures_each_size_and_stops_where_memory_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "heldout"):
        row = {"id": name, "task": "story", "prompt": f"the {name} said"}
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    tiny.model().save_pretrained("results/base/tiny")
    tiny.tokenizer().save_pretrained("results/base/tiny")
    Path("results/base/tiny/base.json").write_text("{}")
    objectives = {"brevity": {"params": {"target_words": 1, "max_words": 8}}}
    config = tiny.config(
        model={"id": "base/tiny"}, objectives=objectives, rollout={"batch_size": 4, "num_generations": 4}
    )
    rows = measuring.calibrate([config], "results/base", [1, 3], rounds=2, steps=2)
    assert [row["pack"] for row in rows] == [1, 3]
    for row in rows:
        assert row["runs_per_second"] == pytest.approx(row["pack"] / row["seconds_per_step"])
        assert 0.1 < row["memory_gib"] < 8
    monkeypatch.setattr(measuring, "_available_gib", lambda device: 0.0)
    assert [row["pack"] for row in measuring.calibrate([config], "results/base", [1, 3], 1, 1)] == [1]
    assert not list(tmp_path.glob("**/metrics.jsonl")), "nothing is left behind"


def test_memory_is_that_of_the_first_round(monkeypatch):
    peaks = iter([1.0, 3.0, 2.9, 3.0])  # a process keeps what its largest pack took
    monkeypatch.setattr(measuring, "_measure", lambda *_: ([0.1], next(peaks)))
    monkeypatch.setattr(measuring, "_available_gib", lambda device: 99.0)
    rows = measuring.calibrate([runs(1)[0].config], "results/base", [1, 4], rounds=2, steps=1)
    assert [row["memory_gib"] for row in rows] == [1.0, 3.0]
