"""Does the cosine predict? The transfer section names what does, and what cannot be told apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fake_reports import blocks
from fake_runs import OBJECTIVES
from scipy import stats

from gradlab.report import load, transfer
from gradlab.store import read_json


def test_transfer_puts_change_beside_cosine_and_covariance(results):
    sweep = load(results, "alone")
    assert sweep.groups == list(OBJECTIVES)  # the variant names the weights
    frame = transfer.cells(sweep)
    assert len(frame) == 27 and set(frame["trained"]) == set(OBJECTIVES)
    run = frame["run"].iloc[0]
    mine = frame[(frame["run"] == run) & (frame["measured"] == "refusal")].iloc[0]
    pairs = sweep.pairs[(sweep.pairs["level"] == "run") & (sweep.pairs["run"] == run)]
    pair = pairs[(pairs["objective_i"] == mine["trained"]) & (pairs["objective_j"] == "refusal")]
    assert mine["cosine"] == pair["cosine"].item()
    evaluated = read_json(sweep.folder / "runs" / run / "eval.json")["objectives"]["refusal"]["difference"]["mean"]
    assert mine["change"] == evaluated
    matrix = {(r["trained"], r["measured"]): r for r in blocks(sweep, "transfer")[1].rows if r["matrix"] == "change"}
    expected = frame[(frame["trained"] == "numeric") & (frame["measured"] == "brevity")]["change"].mean()
    assert matrix["numeric", "brevity"]["mean"] == pytest.approx(expected, rel=1e-4) and len(matrix) == 9


def test_a_predictor_that_works_is_named():
    """Four objectives, three seeds; the change is the cosine with a little noise, the covariance is noise alone."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, (4, 4))
    rows = [
        {"trained": str(i), "measured": str(j), "run": f"{i}-{seed}", "cosine": truth[i, j] + rng.normal(0, 0.02),
         "alignment": truth[i, j], "covariance": rng.normal(), "correlation": float("nan"),
         "change": truth[i, j] * 0.1 + rng.normal(0, 0.002)}
        for i in range(4) for j in range(4) for seed in range(3)
    ]  # fmt: skip
    found = {r.predictor: r for r in transfer.rank_correlations(pd.DataFrame(rows))}
    assert found["cosine"].cells == 12 and found["cosine"].rho > 0.95 and found["cosine"].p < 0.01
    assert found["cosine"].low <= found["cosine"].rho <= found["cosine"].high
    assert abs(found["covariance"].rho) < 0.6 and np.isnan(found["correlation"].rho)
    assert transfer.judgement(list(found.values())).startswith("The cosine predicts")
    swapped = pd.DataFrame(rows).rename(columns={"cosine": "covariance", "covariance": "cosine"})
    assert transfer.judgement(transfer.rank_correlations(swapped)).startswith("The covariance predicts")
    same = pd.DataFrame(rows).assign(covariance=lambda f: f["cosine"])
    assert "not distinguishable as predictors" in transfer.judgement(transfer.rank_correlations(same))


def test_spearman_is_scipys():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5, 8)).round(1), rng.normal(size=(5, 8)).round(1)
    assert transfer.spearman(x, y) == pytest.approx(
        [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    )
    x[0, :2] = np.nan
    assert transfer.spearman(x, y)[0] == pytest.approx(stats.spearmanr(x[0, 2:], y[0, 2:]).statistic)
    assert np.isnan(transfer.spearman(np.ones((1, 8)), y[:1])).all()
