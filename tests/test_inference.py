"""Known gradients in, honest verdicts out: calibration, power, shared noise, holes, and one table by hand.

Rates are those of fixed seeds; the tolerance is 4 standard deviations of the Monte-Carlo error, so that another
seed would raise a false alarm with a chance below 1e-4 a test.
"""

from __future__ import annotations

import numpy as np
import pytest
import simulate
from scipy import stats

from gradlab import inference
from gradlab.inference import (
    CONFLICT,
    NEITHER,
    SYNERGY,
    ProbedStep,
    estimate,
    evidence,
    merge,
    q_values,
    steps,
    verdict,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def one(step: ProbedStep, resamples: int = 199):
    return estimate(evidence(step, rng(), resamples), rng())


def most(rate: float, n: int) -> float:
    return rate + 4 * np.sqrt(rate * (1 - rate) / n)


@pytest.mark.parametrize(
    "options, steps, repeats",
    [
        ({}, 1, 400),
        ({"shared": 0.9}, 1, 400),
        ({"signal": (0.5, 0.0)}, 1, 400),
        ({}, 10, 100),
        ({"shared": 0.9}, 10, 100),
        ({"signal": (0.7, 0.7), "shared": 0.9}, 10, 100),
        ({"spread": 0.3}, 10, 100),
    ],
    ids=str,
)
def test_unrelated_objectives_are_flagged_at_most_at_the_nominal_rate(options, steps, repeats):
    """0.05 + 4 sd (0.094 of 400, 0.137 of 100). The largest of several p-values is conservative, not exact."""
    p = simulate.pair(lambda r: simulate.step(r, **options), repeats, steps, seed=1, resamples=99)["p"]
    assert (p <= 0.05).mean() <= most(0.05, repeats)


def test_each_permutation_alone_has_its_nominal_rate():
    """Shuffling one objective, nothing else: 5 % +- 4 sd (3.1 %) of 800 simulations, on both sides."""
    p = []
    for r in np.random.default_rng(5).spawn(800):
        found = evidence(simulate.step(r), r, resamples=99)
        at_least = (np.abs(found.null_2SKK[0, :, 0, 1]) >= abs(found.cross_TKK[0, 0, 1])).sum()
        p.append((1 + at_least) / 100)
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) <= 4 * np.sqrt(0.05 * 0.95 / 800)


def test_a_planted_relation_is_found_at_the_stated_power():
    """Cosine +-0.5 over 16 steps: found in 0.6 of cases (100 simulations: at least 0.4), and with its sign."""
    for cosine in (0.5, -0.5):
        found = simulate.pair(lambda r, c=cosine: simulate.step(r, (0.5, 0.5), c, 0.0), 100, 16, 2, resamples=99)
        flagged = found["p"] <= 0.05
        assert flagged.mean() >= 0.4
        assert (np.sign(found["alignment"][flagged]) == np.sign(cosine)).all()


def test_a_relation_within_prompts_is_found_though_prompts_are_unrelated():
    """Both rewards have one gradient on each prompt, another on the next; 15 cases of 25 steps, all found."""
    found = simulate.pair(lambda r: simulate.step(r, local=0.5), 15, 25, 22, resamples=99)
    assert (found["p"] <= 0.05).mean() > 0.8 and np.nanmean(found["unbiased"]) > 0.8


def test_the_observed_order_counts_among_the_shuffles():
    """Nothing beats a relation as strong as this, and p is 1 / (99 + 1), never 0."""
    step = simulate.step(np.random.default_rng(20), (3.0, 3.0), cosine=0.9)
    assert one(step, resamples=99).p_KK[0, 1] == 0.01


def test_shared_noise_fools_the_plain_cosine_only():
    """Rewards with noise of correlation 0.9 and no gradient: plain 0.9; alignment 0 within 4 standard errors."""
    found = simulate.pair(lambda r: simulate.step(r, shared=0.9), 100, 8, 3, resamples=99)
    assert found["plain"].mean() == pytest.approx(0.9, abs=0.02)
    assert abs(found["alignment"].mean()) < 4 * found["alignment"].std() / 10 < 0.05
    assert np.isnan(found["unbiased"]).mean() > 0.9  # no norm is surely positive, so no cosine is given


def test_the_cross_fitted_inner_product_is_unbiased_where_the_plain_one_is_not():
    """True inner product 0.125 a row pair; 400 steps, 4 standard errors."""
    plain, cross = [], []
    for r in np.random.default_rng(4).spawn(400):
        step = simulate.step(r, (0.5, 0.5), cosine=0.5, shared=0.9)
        found = evidence(step, r, resamples=1)
        rows = step.advantages_BK.T @ step.gram_BB @ step.advantages_BK
        same = (step.group_B[:, None] == step.group_B) * step.gram_BB
        length = np.diag(step.advantages_BK.T @ same @ step.advantages_BK)
        plain.append(rows[0, 1])
        cross.append(found.cross_TKK[0, 0, 1] * np.sqrt(length.prod()))
    n = simulate.PROMPTS * (simulate.GENERATIONS - 1)  # a centred group of n rows has n - 1 to its covariance
    truth = 0.5 * 0.5 * 0.5 * n**2
    assert abs(np.mean(cross) - truth) < 4 * np.std(cross) / 20
    assert np.mean(plain) - truth > 10 * np.std(plain) / 20


def test_the_interval_holds_the_true_cosine_in_nine_cases_of_ten():
    """Nominal 95 %; 0.90 measured of 200, at least 0.80 asked of 100. A defined case: both norms surely positive."""
    found = simulate.pair(lambda r: simulate.step(r, (0.6, 0.6), cosine=0.5), 100, 16, 6, resamples=199)
    defined = ~np.isnan(found["low"])
    assert defined.mean() > 0.95
    held = (found["low"] <= 0.5) & (found["high"] >= 0.5)
    assert held[defined].mean() >= 0.80
    assert abs(np.nanmean(found["unbiased"]) - 0.5) < 0.1 and found["plain"].mean() < 0.3


def test_uncentred_rewards_of_mean_p_show_a_cosine_that_is_not_there():
    """Independent 0/1 rewards of mean 0.7: uncentred they share their mean, and the plain cosine is 0.7; centred 0.

    400 rows in one batch: the sum over rows of the scores is shared.
    """
    r = np.random.default_rng(7)
    scores = r.normal(size=(400, 2000))
    rewards = (r.random((400, 2)) < 0.7).astype(float)
    group = np.repeat(np.arange(50), 8)
    gram = scores @ scores.T
    centred = rewards - rewards.reshape(50, 8, 2).mean(axis=1)[group]
    assert one(ProbedStep(gram, rewards, group), 9).cosine_KK[0, 1] == pytest.approx(0.7, abs=0.08)
    assert abs(one(ProbedStep(gram, centred, group), 9).cosine_KK[0, 1]) < 0.2


def test_published_mistakes_go_wrong_as_the_page_says():
    """docs/synergy.md: means of 60 simulations; the sds are 0.1 and less, so 0.1 is far beyond chance."""
    rows = [simulate.mistaken(r) for r in np.random.default_rng(16).spawn(60)]
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    assert found["uncentred"].mean() == pytest.approx(0.7, abs=0.1) and abs(found["centred"].mean()) < 0.05
    assert found["own rollouts"].mean() < 0.3 and found["same rollouts"].min() == pytest.approx(1.0)
    assert np.abs(found["scalar"]) == pytest.approx(np.ones(60))  # always +1 or -1
    assert 0.2 < (found["scalar"] > 0).mean() < 0.8  # and as often one as the other


def test_a_baseline_of_the_batch_leaves_prompts_mean_effects_in_every_shuffle():
    """Rewards that differ between prompts alone: REINFORCE's advantages have no within-prompt part, nothing moves."""
    r = np.random.default_rng(17)
    scores, group = r.normal(size=(32, 6)), np.repeat(np.arange(4), 8)
    advantages = r.normal(size=(4, 2))[group]
    found = evidence(ProbedStep(scores @ scores.T, advantages, group), rng(), resamples=50)
    assert found.null_2SKK[0, :, 0, 1] == pytest.approx(np.full(50, found.cross_TKK[0, 0, 1]))
    assert estimate(found, rng()).p_KK[0, 1] == 1.0


def test_one_table_by_hand():
    """Two prompts of two rows, gradients (1, 0), (1, 1) of one objective and (0, 1), (2, 0) of the other."""
    scores = np.array([[1.0, 0.0], [0, 1], [1, 1], [1, 0]])
    advantages = np.array([[1.0, 0.0], [0, 1], [1, 0], [0, 2]])
    step = ProbedStep(scores @ scores.T, advantages, np.array([3, 3, 5, 5]))
    found = evidence(step, rng(), resamples=4000)
    # sums (2, 1) and (2, 1): plain cosine 1. Different prompts: 1.1 = 2 * 1, 2.2 = 0, 1.2 = (1,0).(2,0) + (0,1).(1,1).
    assert found.cosine_TKK[0] == pytest.approx(np.ones((2, 2)))
    lengths = 5 / found.square_TK[0]  # of both sums the square is 5
    # Squared lengths over the orders of each prompt: 1 + (2 or 1), and 1 + (4 or 8).
    assert lengths == pytest.approx([2.5, 7], rel=0.03)
    expected = 2 * np.array([[2.0, 3.0], [3.0, 0.0]]) / np.sqrt(np.outer(lengths, lengths))
    assert found.cross_TKK[0] == pytest.approx(expected)  # 2: from 2 of 4 ordered pairs to all
    assert estimate(found, rng()).alignment_KK[0, 1] == pytest.approx(2 * 3 / 5)


def test_objectives_of_different_prompts_are_counted_by_objective():
    """Exactness judges four prompts and refusal four others: every pair of them is of different prompts (factor 1)."""
    r = np.random.default_rng(8)
    scores = r.normal(size=(24, 5))
    group = np.repeat(np.arange(8), 3)  # too few rows of a prompt for a product of its own
    applies = np.stack([group < 4, group >= 4], axis=1)
    advantages = r.normal(size=(24, 2)) * applies
    found = evidence(ProbedStep(scores @ scores.T, advantages, group, applies), rng(), resamples=9)
    gradients = scores.T @ advantages
    own = [sum(np.sum((scores[group == g].T @ advantages[group == g, k]) ** 2) for g in range(8)) for k in range(2)]
    squares, scaled = (gradients**2).sum(axis=0), found.square_TK[0]
    plain = gradients[:, 0] @ gradients[:, 1] / np.sqrt(squares[0] * squares[1])
    assert found.cross_TKK[0, 0, 1] / np.sqrt(scaled[0] * scaled[1]) == pytest.approx(plain)
    assert found.cross_TKK[0, 0, 0] / scaled[0] == pytest.approx((squares[0] - own[0]) * 4 / 3 / squares[0])


def test_copies_of_a_completion_do_not_blow_up_the_null():
    """A policy repeats itself: a shuffle that puts its few advantages on copies has hardly any length of its own."""
    r = np.random.default_rng(3)
    advantages = np.tile([1.0, -1, 0, 0, 0, 0, 0, 0], 8).reshape(64, 1).repeat(2, axis=1)
    parts = []
    for _ in range(16):
        scores = np.repeat(r.normal(size=(8, 1, 6)), 8, axis=1) + 1e-3 * r.normal(size=(8, 8, 6))
        scores[:, :2] = r.normal(size=(8, 2, 6)) + np.array([1.0, 0, 0, 0, 0, 0]) * np.array([[1], [-1]])
        scores = scores.reshape(64, 6)
        parts.append(evidence(ProbedStep(scores @ scores.T, advantages, np.repeat(np.arange(8), 8)), rng()))
    found = merge(parts)
    assert found.null_2SKK[1, :, 0, 1].std() < found.cross_TKK.sum(axis=0)[0, 1] / 3
    assert estimate(found, rng()).p_KK[0, 1] <= 0.01


def test_a_silent_objective_is_nan_everywhere_and_adds_nothing():
    step = simulate.step(np.random.default_rng(9), (0.5, 0.5), cosine=0.9)
    silent = ProbedStep(step.gram_BB, step.advantages_BK * [1, 0], step.group_B)
    found = one(silent)
    for name in ("cosine_KK", "unbiased_KK", "alignment_KK", "alignment_low_KK", "p_KK"):
        assert np.isnan(getattr(found, name)[0, 1]), name
    assert found.n_tested_KK[0, 1] == 0
    both = estimate(merge([evidence(s, rng(1), 99) for s in (step, silent)]), rng())
    alone = estimate(evidence(step, rng(1), 99), rng())
    assert both.n_steps_KK[0, 1] == 1 and both.alignment_KK[0, 1] == pytest.approx(alone.alignment_KK[0, 1])
    assert both.p_KK[0, 1] == pytest.approx(alone.p_KK[0, 1])


def test_rounding_is_silence():
    """Rows with one and the same score and centred advantages add up to 1e-17, not to a direction."""
    r = np.random.default_rng(19)
    scores = np.repeat(r.normal(size=(1, 5)), 16, axis=0)
    advantages = r.normal(size=(16, 2))
    advantages -= advantages.mean(axis=0)
    found = one(ProbedStep(scores @ scores.T, advantages, np.arange(16) // 4))
    assert np.isnan(found.cosine_KK).all() and np.isnan(found.p_KK).all()


def test_the_diagonal_has_no_p_and_one_prompt_of_few_rows_none_at_all():
    step = simulate.step(np.random.default_rng(10), (0.5, 0.5))
    assert np.isnan(np.diag(one(step).p_KK)).all() and not np.isnan(one(step).p_KK[0, 1])
    rows = simulate.step(np.random.default_rng(11), (0.5, 0.5), prompts=1)
    assert not np.isnan(one(rows).p_KK[0, 1])
    single = one(ProbedStep(rows.gram_BB[:3, :3], rows.advantages_BK[:3], rows.group_B[:3]))
    assert not np.isnan(single.cosine_KK[0, 1])
    assert np.isnan(single.p_KK).all() and np.isnan(single.alignment_KK).all() and np.isnan(single.unbiased_KK).all()


def test_the_bootstrap_draws_prompts():
    """Rows of a prompt that are copies of one another add nothing: the interval is that of the prompts."""
    r = np.random.default_rng(12)
    scores, advantages = r.normal(size=(12, 3)) + 1, r.normal(size=(12, 2)) + 1
    few = ProbedStep(scores @ scores.T, advantages, np.arange(12))
    many = ProbedStep(*(np.repeat(few.gram_BB, 3, axis=0).repeat(3, axis=1), advantages.repeat(3, axis=0)),
                      np.arange(12).repeat(3))  # fmt: skip
    small, large = (evidence(step, rng(2), 99).boot_SKK for step in (few, many))
    assert small == pytest.approx(large, nan_ok=True)
    assert np.nanstd(small[:, 0, 1]) > 0


def test_a_prompt_is_never_multiplied_with_its_own_copy():
    """Against a loop: prompts drawn 2, 0, 3, 1 times; products of different prompts, scaled to all pairs."""
    r = np.random.default_rng(18)
    part = r.normal(size=(4, 2, 5))  # gradient of each prompt and objective
    rows = part.transpose(0, 2, 1).reshape(-1, 2)  # five rows a prompt, each with one coordinate as its score
    scores = np.tile(np.eye(5), (4, 1))
    counts = np.array([2.0, 0, 3, 1])
    member = np.repeat(np.eye(4), 5, axis=1)
    arguments = (scores @ scores.T, rows, member, np.ones((4, 2), bool), counts[None])
    found = steps._prompts_drawn(*arguments, False)[0]
    expected = np.zeros((2, 2))
    for g in range(4):
        for h in set(range(4)) - {g}:
            expected += counts[g] * counts[h] * part[g] @ part[h].T
    assert found == pytest.approx(expected * 36 / (36 - (counts**2).sum()))
    own = sum(counts[g] * part[g] @ part[g].T for g in range(4))
    assert steps._prompts_drawn(*arguments, True)[0] == pytest.approx(expected * 4 / 3 + own)


def test_products_within_a_prompt_are_unbiased():
    """One prompt of 6 rows, noise of correlation 0.9, true product of the two covariances 0.5: 3000 draws, 4 se."""
    r = np.random.default_rng(21)
    found = []
    for _ in range(3000):
        scores, noise = r.normal(size=(6, 4)), r.normal(size=(6, 1))
        rewards = scores[:, :1] * [1.0, 0.5] + noise * 0.9 + r.normal(size=(6, 2)) * 0.4
        advantages = rewards - rewards.mean(axis=0)
        block = steps._u_centred(scores @ scores.T, np.zeros(6, int))
        found.append(advantages[:, 0] @ block @ advantages[:, 1] / 25)
        assert advantages[:, 0] @ block @ advantages[:, 1] == pytest.approx(rewards[:, 0] @ block @ rewards[:, 1])
    assert abs(np.mean(found) - 0.5) < 4 * np.std(found) / np.sqrt(3000) < 0.15


def test_shuffles_stay_within_their_prompts():
    group = np.array([4, 1, 4, 1, 4, 2])
    order = steps._shuffles(group.tobytes(), 500)
    assert (group[order] == group).all() and (np.sort(order, axis=1) == np.arange(6)).all()
    firsts = np.bincount(order[:, 0], minlength=6)
    assert firsts[[0, 2, 4]].min() > 120  # 1/3 of 500, 4 standard deviations


def test_a_step_counts_once_however_long_its_gradients_are():
    steps = [simulate.step(np.random.default_rng(s), (0.5, 0.5)) for s in range(3)]
    longer = [ProbedStep(s.gram_BB * 10.0 ** (2 * i), s.advantages_BK, s.group_B) for i, s in enumerate(steps)]
    first, second = (estimate(merge([evidence(s, rng(3), 99) for s in x]), rng()) for x in (steps, longer))
    assert first.alignment_KK == pytest.approx(second.alignment_KK) and first.p_KK[0, 1] == second.p_KK[0, 1]


def test_conflict_fraction_against_its_null():
    independent = merge([evidence(simulate.step(r), r, 99) for r in np.random.default_rng(13).spawn(40)])
    found = inference.conflict_against_null(independent)
    assert found.low <= found.mean <= found.high and found.null == pytest.approx(0.5, abs=0.1) and found.p > 0.05
    opposed = [simulate.step(r, shared=-0.9) for r in np.random.default_rng(14).spawn(20)]
    found = inference.conflict_against_null(merge([evidence(step, rng(), 99) for step in opposed]))
    assert found.mean == 1.0 and found.p == 0.01 and found.n_steps == 20
    silent = ProbedStep(np.eye(4), np.zeros((4, 2)), np.array([0, 0, 1, 1]))
    nothing = inference.conflict_against_null(evidence(silent, rng(), 9))
    assert np.isnan(nothing.mean) and nothing.n_steps == 0


def test_q_values_are_scipys():
    p = np.random.default_rng(15).random(30) ** 3
    assert q_values(p) == pytest.approx(stats.false_discovery_control(p, method="bh"))
    holes = np.where(np.arange(30) % 7 == 0, np.nan, p)
    defined = ~np.isnan(holes)
    assert np.isnan(q_values(holes)[~defined]).all()
    assert q_values(holes)[defined] == pytest.approx(stats.false_discovery_control(p[defined]))
    assert len(q_values(np.array([]))) == 0 and np.isnan(q_values(np.array([np.nan]))).all()


def test_a_verdict_is_one_of_three_or_none():
    assert [verdict(0.2, 0.01), verdict(-0.2, 0.01), verdict(0.2, 0.2)] == [SYNERGY, CONFLICT, NEITHER]
    assert verdict(float("nan"), float("nan")) is None


def test_no_step_is_an_error():
    with pytest.raises(ValueError, match="expected at least one probed step; found none"):
        merge([])
