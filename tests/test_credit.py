"""Advantages against hand tables and against float64 numpy written from the papers, one prompt at a time."""

import numpy as np
import pytest
import tiny
from pydantic import TypeAdapter

from gradlab.config import Algorithm, RunConfig
from gradlab.credit import CREDIT, CreditState, Dominance, credit, variance_share

NAN = float("nan")
GROUPS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
ALGORITHMS = [
    {"name": "grpo"},
    {"name": "grpo", "scale_rewards": "none"},
    {"name": "rloo"},
    {"name": "reinforce", "baseline": "ema"},
    {"name": "reinforce", "baseline": "zscore"},
]


def advantages(rewards, algorithm, weights=None, groups=GROUPS, state=None) -> np.ndarray:
    rewards = np.asarray(rewards, dtype=np.float64)
    rewards = rewards[:, None] if rewards.ndim == 1 else rewards
    weights = np.ones(rewards.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
    config = TypeAdapter(Algorithm).validate_python(algorithm)
    return credit(rewards, groups, weights, config, state or CreditState())


def classical(total: np.ndarray, groups: np.ndarray, algorithm: dict) -> np.ndarray:
    """The scalar advantage of one reward a row, from the papers, in Python loops."""
    out = np.zeros(len(total))
    everyone = range(len(total))
    for b in everyone:
        others = [i for i in everyone if groups[i] == groups[b]]
        own = [total[i] for i in others]
        mean = sum(own) / len(own)
        match algorithm:
            case {"name": "grpo", "scale_rewards": "none"}:
                out[b] = total[b] - mean
            case {"name": "grpo"}:
                spread = (sum((x - mean) ** 2 for x in own) / (len(own) - 1)) ** 0.5
                out[b] = (total[b] - mean) / (spread + 1e-6)
            case {"name": "rloo"}:
                rest = [total[i] for i in others if i != b]
                out[b] = total[b] - sum(rest) / len(rest)
            case {"name": "reinforce", "baseline": "ema"}:
                out[b] = total[b] - sum(total) / len(total)
            case {"name": "reinforce", "baseline": "zscore"}:
                batch_mean = sum(total) / len(total)
                spread = (sum((x - batch_mean) ** 2 for x in total) / (len(total) - 1)) ** 0.5
                out[b] = (total[b] - batch_mean) / (spread + 1e-6)
    return out


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        # rewards 1 0 0 0 | 2 4 6 8: means 1/4 and 5, deviations' standard deviations 1/2 and sqrt(20/3)
        (ALGORITHMS[0], [1.5, -0.5, -0.5, -0.5, -1.161895, -0.387298, 0.387298, 1.161895]),
        (ALGORITHMS[1], [0.75, -0.25, -0.25, -0.25, -3, -1, 1, 3]),
        (ALGORITHMS[2], [1, -1 / 3, -1 / 3, -1 / 3, -4, -4 / 3, 4 / 3, 4]),
        # batch mean 21/8, variance (121 - 441/8) / 7 = 9.410714
        (ALGORITHMS[3], [-1.625, -2.625, -2.625, -2.625, -0.625, 1.375, 3.375, 5.375]),
        (ALGORITHMS[4], [-0.529715, -0.855693, -0.855693, -0.855693, -0.203736, 0.448220, 1.100177, 1.752134]),
    ],
)
def test_hand_table(algorithm, expected):
    found = advantages([1, 0, 0, 0, 2, 4, 6, 8], algorithm)[:, 0]
    np.testing.assert_allclose(found, expected, atol=4e-6)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@pytest.mark.parametrize("weights", [[1, 1, 1], [2, -0.5, 0.3], [0, 1, 0], [1, -1, 0]], ids=str)
def test_weighted_columns_add_up_to_the_classical_advantage(algorithm, weights):
    """K columns are a decomposition: their weighted sum is the textbook advantage of the weighted reward."""
    draw = np.random.default_rng(0)
    groups = draw.permutation(np.repeat(np.arange(4), 6)) * 7  # not in order, not consecutive
    rewards = draw.normal(size=(24, 3)) * [1, 5, 0.1] + [0, 3, -2]
    found = advantages(rewards, algorithm, weights, groups) @ np.array(weights)
    np.testing.assert_allclose(found, classical(rewards @ np.array(weights), groups, algorithm), atol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_a_constant_reward_gives_exactly_zero(algorithm):
    """0.7 seven times has not the mean 0.7 in floating point: rounding must not become a direction."""
    groups = np.zeros(7, int)
    for value in (0.0, 0.7, 1 / 3, 1e6 + 0.1):
        rewards = np.stack([np.full(7, value), np.arange(7) / 7], axis=1)
        assert not advantages(rewards, algorithm, groups=groups)[:, 0].any()
        assert not advantages(rewards[:, 0], algorithm, groups=groups).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_objectives_that_cancel_train_nothing_and_are_not_blown_up(algorithm):
    """Their sum is constant: dividing by its spread, rounding, would make advantages of a million."""
    rewards = np.array([0.1, 0.3, 0.5, 0.9, 0.2, 0.2, 0.7, 0.8])
    found = advantages(np.stack([rewards, 1 - rewards], axis=1), algorithm)
    assert np.abs(found).max() < 1
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS[:3], ids=str)
def test_a_group_without_variance_gives_zero_and_the_other_groups_do_not_notice(algorithm):
    rewards = np.array([0.7] * 4 + [1, 0, 0, 1])
    found = advantages(rewards, algorithm)[:, 0]
    assert not found[:4].any()
    np.testing.assert_allclose(found[4:], classical(rewards, GROUPS, algorithm)[4:])


@pytest.mark.parametrize("algorithm", ALGORITHMS[:3], ids=str)
def test_groups_never_mix(algorithm):
    rewards = np.random.default_rng(1).normal(size=8)
    moved = rewards + 100 * (GROUPS == 1) * np.arange(8)
    np.testing.assert_array_equal(advantages(moved, algorithm)[:4], advantages(rewards, algorithm)[:4])


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_rows_that_an_objective_does_not_judge_are_zero_and_outside_its_baseline(algorithm):
    """Objective 0 judges prompt 0 only, objective 1 both: column 0 is as if prompt 1 were not there."""
    rewards = np.array([[1, 2], [0, 3], [0, 5], [1, 1], [NAN, 4], [NAN, 2], [NAN, 2], [NAN, 8]], dtype=float)
    found = advantages(rewards, algorithm)
    assert not found[4:, 0].any() and np.isfinite(found).all()
    assert abs(found[:, 0].sum()) < 1e-12  # the mean taken off is that of the rows it judges
    if algorithm["name"] != "reinforce":
        alone = advantages(rewards[:4], algorithm, groups=GROUPS[:4])
        np.testing.assert_allclose(found[:4], alone)
    nothing = advantages(np.where([True, False], NAN, rewards), algorithm)
    assert not nothing[:, 0].any() and nothing[:, 1].any()


def test_the_running_mean_is_of_the_past_only_and_waits_for_an_objective_that_was_not_seen():
    algorithm, state = {"name": "reinforce", "baseline": "ema", "ema_decay": 0.9}, CreditState()
    first = advantages([[1, NAN], [3, NAN]], algorithm, groups=GROUPS[:2], state=state)
    np.testing.assert_allclose(first, [[-1, 0], [1, 0]])  # its own first baseline: 2
    second = advantages([[4, 10], [8, NAN]], algorithm, groups=GROUPS[:2], state=state)
    np.testing.assert_allclose(second, [[2, 0], [6, 0]])  # still 2; then 0.9 * 2 + 0.1 * 6 = 2.4
    third = advantages([[2.4, 12], [2.5, NAN]], algorithm, groups=GROUPS[:2], state=state)
    np.testing.assert_allclose(third, [[0, 2], [0.1, 0]], atol=1e-12)
    baseline = [0.9 * 2.4 + 0.1 * 2.45, 0.9 * 10 + 0.1 * 12]
    np.testing.assert_allclose(state.baseline_K, baseline)
    advantages([[NAN, NAN], [NAN, NAN]], algorithm, groups=GROUPS[:2], state=state)
    np.testing.assert_allclose(state.baseline_K, baseline)  # a step without its task forgets nothing


def test_the_larger_spread_takes_the_signal_and_the_share_says_so():
    rewards = np.array([[0, 0], [1, 10], [1, 0], [0, 10]], dtype=float)
    found = advantages(rewards, ALGORITHMS[0], groups=np.zeros(4, int))
    np.testing.assert_allclose(variance_share(found, np.ones(2)), [1 / 101, 100 / 101])
    np.testing.assert_allclose(variance_share(found, np.array([10.0, 1.0])), [0.5, 0.5])
    np.testing.assert_allclose(variance_share(found, np.array([-10.0, 0.0])), [1, 0])
    assert np.isnan(variance_share(np.zeros((4, 2)), np.ones(2))).all()


def test_every_algorithm_is_here():
    assert {a["name"] for a in ALGORITHMS} == set(CREDIT.names())


def test_batches_too_small_for_their_baseline_are_refused():
    run = {"model": {"id": "x"}, "objectives": {"happy_count": {}}, "data": {"train": ["a"], "heldout": ["b"]}}
    run["rollout"] = {"batch_size": 1, "num_generations": 1}
    RunConfig.model_validate({**run, "algorithm": {"name": "reinforce", "baseline": "ema"}})
    needs = ["num_generations", "num_generations", "num_generations", None, "batch_size"]
    for algorithm, name in zip(ALGORITHMS, needs, strict=True):
        if name:
            with pytest.raises(ValueError, match=rf"rollout.{name}: expected at least 2"):
                RunConfig.model_validate({**run, "algorithm": algorithm})


def gdpo(**changes):
    return tiny.config(algorithm={"name": "grpo", "normalize": "objective", **changes}).algorithm


def test_gdpo_equals_the_paper_by_hand():
    """Each reward's z-score in its group, their weighted sum, that divided by its deviation over the batch."""
    rewards = np.random.default_rng(0).normal(size=(12, 3)) * [1, 100, 0.01]
    group, weights = np.repeat(np.arange(3), 4), np.array([1, 2, -3])
    own = np.zeros_like(rewards)
    for g in range(3):
        part = rewards[group == g]
        own[group == g] = (part - part.mean(axis=0)) / (part.std(axis=0, ddof=1) + 1e-6)
    total = own @ weights
    expected = (total - total.mean()) / (total.std(ddof=1) + 1e-6)
    found = credit(rewards, group, weights, gdpo(), CreditState())
    np.testing.assert_allclose(found @ weights, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(variance_share(found, np.ones(3)), 1 / 3, atol=0.01)
    grpo = credit(rewards, group, np.ones(3), tiny.config().algorithm, CreditState())
    assert variance_share(grpo, np.ones(3))[1] > 0.99


def test_gdpo_where_an_objective_says_nothing_or_does_not_apply():
    """Constant in one group, absent from another, alone in a third; no warning, no NaN, and a flat batch gives 0."""
    group = np.repeat(np.arange(3), 4)
    rewards = np.random.default_rng(1).normal(size=(12, 2))
    rewards[:4, 0], rewards[4:8, 1], rewards[8:11, 1] = 0.7, np.nan, np.nan
    found = credit(rewards, group, np.ones(2), gdpo(), CreditState())
    assert np.isfinite(found).all() and not found[:4, 0].any() and not found[4:, 1].any() and found[:4, 1].any()
    assert (found.sum(axis=1)).std(ddof=1) == pytest.approx(1, rel=1e-4)
    assert not credit(np.full((12, 2), 0.7), group, np.ones(2), gdpo(), CreditState()).any()


def test_the_alarm_sounds_once_an_onset_and_names_the_owner():
    """Ten steps of 99 %; one step in balance ends it; steps without advantages are passed over."""
    alarm = Dominance()
    loud, even, none = np.array([[1.0, 0.1], [-1, 0.1]]), np.ones((2, 2)), np.zeros((2, 2))
    ones = np.ones(2)
    sounded = [alarm.onset(a, ones) for a in [loud] * 5 + [none] * 3 + [loud] * 30]
    assert [i for i, s in enumerate(sounded) if s] == [12]
    assert alarm.line(12, ["a", "b"]).startswith("[Alarm @ 12] a has owned more than 95% of")
    assert not alarm.onset(even, ones)
    other = [alarm.onset(a[:, ::-1], ones) for a in [loud] * 12]
    assert other.index(True) == 9 and alarm.line(1, ["a", "b"]).startswith("[Alarm @ 1] b ")
    single = Dominance()  # the other is measured, not trained: nobody is silenced
    assert not any([single.onset(loud, np.array([1.0, 0.0])) for _ in range(20)])
