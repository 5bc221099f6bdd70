"""Saved Grams are refused when they are not what a probe can have written."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab.grams import saved_grams


def write(folder, gram_LBB):
    (folder / "probe").mkdir(exist_ok=True)
    np.savez(
        folder / "probe" / "gram_step0000.npz",
        layers=np.array(["last"]),
        objectives=np.array(["a", "b"]),
        gram_LBB=gram_LBB.astype(np.float32),
        advantages_BK=np.eye(4, 2),
        rewards_BK=np.eye(4, 2),
        group_B=np.array([0, 0, 1, 1]),
    )


def test_a_rank_deficient_gram_in_float32_is_read(tmp_path):
    score_BP = np.random.default_rng(0).normal(size=(4, 2)) * 1e3
    write(tmp_path, (score_BP @ score_BP.T)[None])
    (saved,) = saved_grams(tmp_path, ["a", "b"])
    assert saved.gram_LBB.dtype == np.float64


@pytest.mark.parametrize(
    "broken", [-np.eye(4), np.diag([1, 1, 1, -0.01]), np.triu(np.ones((4, 4))), np.full((4, 4), np.nan)]
)
def test_a_gram_that_is_not_positive_semi_definite_is_refused(tmp_path, broken):
    write(tmp_path, broken[None])
    with pytest.raises(ValueError, match=r"gram_step0000.npz: gram_LBB of layer 'last': expected a symmetric positive"):
        list(saved_grams(tmp_path, ["a", "b"]))


def test_grams_of_other_objectives_are_refused(tmp_path):
    write(tmp_path, np.eye(4)[None])
    with pytest.raises(ValueError, match=r"expected objectives \['a'\]; found \['a', 'b'\]"):
        list(saved_grams(tmp_path, ["a"]))


def test_a_run_without_a_probe_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=r"Train the run with probe\.every above 0"):
        list(saved_grams(tmp_path, ["a"]))
