"""Weightings: what they make of a Gram, alone and inside the loop."""

from __future__ import annotations

import re
import warnings
from typing import get_args

import numpy as np
import pytest
import tiny
import torch
from test_engine import assert_close, config, factors, metrics, stop_before, train, trainer, world  # noqa: F401 (a fixture)
from torchjd import aggregation

from gradlab import config as configuration
from gradlab import engine, requirements, update
from gradlab.explain import branches
from gradlab.gradients import objective_gram
from gradlab.identity import MEANING
from gradlab.loss import token_weights
from gradlab.sweep import _check
from gradlab.weighting import WEIGHTINGS, build
from gradlab.weighting.base import spread
from gradlab.weighting.ctwa import correlations
from gradlab.weighting.mixing import check_gram, check_weights, step_generator

REQUIRED = {"linear": {"end": {}}, "cosine": {"end": {}}, "pcd": {"primary": "brevity"}}
EXPLICIT = [name for name in WEIGHTINGS.names() if name in requirements.EXTRA]


def weighting(name: str, start=(1.0, 1.0), **options):
    """Of objectives brevity, happy_count, terse, ... with the configured weights `start`."""
    kinds = [
        {"params": {"target_words": 1, "max_words": 8}},
        {},
        {"kind": "brevity", "params": {"target_words": 1, "max_words": 3}},
    ]
    labels = ["brevity", "happy_count", "terse"]
    objectives = {k: {**kind, "weight": w} for k, kind, w in zip(labels, kinds, start, strict=False)}
    # With fewer than 3 objectives krum is refused when configured, and would leave all weights alone.
    run = tiny.config(objectives=objectives, steps=11)
    chosen = {"name": name, **REQUIRED.get(name, {}), **options}
    model = next(m for m in KINDS if name in get_args(m.model_fields["name"].annotation))
    return build(run.model_copy(update={"weighting": model.model_validate(chosen)}))


KINDS = branches(configuration.RunConfig.model_fields["weighting"].annotation)[0]


def test_every_weighting_can_be_configured_and_has_a_meaning():
    configured = {name for kind in KINDS for name in get_args(kind.model_fields["name"].annotation)}
    assert set(WEIGHTINGS.names()) == configured == {m.split("/")[1] for m in MEANING if m.startswith("weighting/")}


@pytest.mark.parametrize("name", WEIGHTINGS.names())
@pytest.mark.parametrize("start", [2.5, -0.3])
def test_one_objective_is_left_as_it_is(name, start):
    own = weighting(name, [start])
    for step in range(3):
        weights_K = own.weights(step)
        gram = np.array([[7.0]]) * start**2
        np.testing.assert_allclose(own.combine(gram, weights_K, step_generator(0, step)), [start], rtol=1e-12)
        own.observe(np.array([[0.0], [1.0]]), np.array([[-1.0], [1.0]]), np.array([-1.0, 1.0]), gram)


@pytest.mark.parametrize("name", [n for n in EXPLICIT if n != "krum"])
def test_an_objective_without_signal_keeps_its_weight_and_changes_nothing_for_the_rest(name):
    gram = np.array([[18.0, -22.0], [-22.0, 38.0]])
    alone = weighting(name).combine(gram, np.ones(2), step_generator(0, 0))
    larger = np.full((3, 3), np.nan)
    larger[:2, :2] = gram
    found = weighting(name, [1, 1, 0.7]).combine(larger, np.array([1, 1, 0.7]), step_generator(0, 0))
    np.testing.assert_allclose(found, [*alone, 0.7], rtol=1e-9)


# What TorchJD's documentation and tests publish for J = [[-4, 1, 1], [6, 1, 1]]; PCGrad projects each once for K = 2.
GOLDEN = {
    "aligned_mtl": [0.2133, 0.9673, 0.9673],
    "cagrad": [0.1835, 1.2041, 1.2041],
    "dualproj": [0.5563, 1.1109, 1.1109],
    "imtl_g": [0.0767, 1.0000, 1.0000],
    "mgda": [0.0, 1.0000, 1.0000],
    "nash_mtl": [0.0542, 0.7061, 0.7061],
    "pcgrad": [0.5848, 3.8012, 3.8012],
    "upgrad": [0.2929, 1.9004, 1.9004],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_published_vectors(name):
    """Through our Gram: three rows whose scores are the axes, the Jacobian as their advantages."""
    jacobian = np.array([[-4.0, 1, 1], [6, 1, 1]])
    gram_KK = objective_gram(np.eye(3), jacobian.T)
    w_K = weighting(name).combine(gram_KK, np.ones(2), step_generator(0, 0))
    np.testing.assert_allclose(w_K @ jacobian, GOLDEN[name], atol=6e-5)


@pytest.mark.parametrize("name", [n for n in EXPLICIT if n != "krum"])
def test_rescaling_keeps_the_mean_of_the_weights_multiples(name):
    gram = np.array([[18.0, -22.0], [-22.0, 38.0]])
    start = np.array([0.5, -2.0])
    found = weighting(name, start, rescale="mean").combine(gram, start, step_generator(0, 0)) / start
    assert found.mean() == pytest.approx(1)


def test_random_numbers_are_those_of_the_step_and_nobody_elses():
    gram = np.eye(3) + 0.1 - 0.9 * np.eye(3)[::-1]
    gram = gram @ gram.T - 2.0 + 3 * np.eye(3)

    def draw(name, seed, step):
        before = torch.get_rng_state()
        found = weighting(name, [1, 1, 1]).combine(gram, np.ones(3), step_generator(seed, step))
        assert torch.equal(torch.get_rng_state(), before)
        return found

    for name in ("random", "pcgrad"):
        torch.manual_seed(0)
        first = draw(name, 1, 2)
        torch.manual_seed(1)
        np.testing.assert_array_equal(draw(name, 1, 2), first)
    assert (draw("random", 1, 2) != draw("random", 1, 3)).all() and (draw("random", 1, 2) != draw("random", 2, 2)).all()


def test_schedules_by_hand():
    linear, cosine = (weighting(n, [1.0, 2.0], end={"brevity": 0.0}) for n in ("linear", "cosine"))
    for step, share, slow in ((0, 0, 0), (2, 0.2, (1 - np.cos(0.2 * np.pi)) / 2), (5, 0.5, 0.5), (10, 1, 1)):
        np.testing.assert_allclose(linear.weights(step), [1 - share, 2], atol=1e-12)
        np.testing.assert_allclose(cosine.weights(step), [1 - slow, 2], atol=1e-12)


def test_synergy_by_hand_bounded_and_mean_preserving():
    """After one probe exp(eta * net synergy); after many the bounds hold, and the mean is still that of the start."""
    gram = np.array([[4.0, -0.6, 1.0], [-0.6, 1, 0], [1, 0, 1]])
    cosine = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    net = (cosine.sum(axis=1) - 1) / 2
    own = weighting("synergy", [1.0, 1.0, 1.0], eta=0.5, low=0.5, high=1.4)
    own.observe(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), None)
    np.testing.assert_array_equal(own.weights(1), np.ones(3))  # between probes nothing moves
    own.observe(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), gram)
    expected = np.exp(0.5 * net)
    np.testing.assert_allclose(own.weights(2), expected / expected.mean(), rtol=1e-9)
    for _ in range(100):
        own.observe(np.empty((0, 3)), np.empty((0, 3)), np.empty(0), gram)
    found = own.weights(3)
    assert (found > 0.499).all() and (found < 1.401).all() and found.mean() == pytest.approx(1)
    assert found.min() == pytest.approx(0.5) or found.max() == pytest.approx(1.4)


def test_undefined_synergy_leaves_the_weight():
    own = weighting("synergy", [1.0, 1.0])
    own.observe(np.empty((0, 2)), np.empty((0, 2)), np.empty(0), np.full((2, 2), np.nan))
    np.testing.assert_allclose(own.weights(1), [1, 1], rtol=1e-9)


def test_spread_meets_both_bounds_and_the_mean():
    draw = np.random.default_rng(0)
    for _ in range(100):
        start, multiple = draw.normal(size=4), np.exp(3 * draw.normal(size=4))
        found = spread(multiple, start, 0.2, 5.0)
        assert (found >= 0.2 - 1e-12).all() and (found <= 5 + 1e-12).all()
        assert np.abs(found * start).sum() == pytest.approx(np.abs(start).sum())
        assert (np.diff(found[np.argsort(multiple)]) >= 0).all()


def test_ctwa_by_hand():
    """Rewards 1 to 4 and their reverse under the advantage of the first; the second does not apply to the last row."""
    rewards = np.array([[1.0, 4], [2, 3], [3, 2], [4, np.nan]])
    advantage = np.array([-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_allclose(correlations(rewards, advantage), [1, -1])
    own = weighting("ctwa", [1.0, 1.0], target=0.5, ema=0.25, lr=0.2)
    own.observe(rewards, rewards, advantage, None)
    expected = np.array([1.0, np.exp(0.2 * 1.5)])  # 1 is above the target; -1 falls short by 1.5
    np.testing.assert_allclose(own.weights(1), expected / expected.mean(), rtol=1e-9)
    own.observe(rewards[:, ::-1], rewards, np.array([1.5, 0.5, -0.5, -1.5]), None)
    np.testing.assert_allclose(own.memory["correlation_K"], [1, -1])
    constant = np.array([[1.0, 1], [1, 2], [1, 3], [1, 4]])
    own.observe(constant, constant, advantage, None)
    np.testing.assert_allclose(own.memory["correlation_K"], [1, 0.75 * -1 + 0.25 * 1])
    assert np.isnan(correlations(constant, advantage)[0])


def test_ctwa_stops_where_the_reward_is_reached_and_turns_with_a_negative_weight():
    rewards, advantage = np.array([[1.0, 4], [2, 3], [3, 2], [4, 1]]), np.array([-1.5, -0.5, 0.5, 1.5])
    own = weighting("ctwa", [1.0, 1.0], reached={"happy_count": 2.5})
    own.observe(rewards, rewards, advantage, None)
    np.testing.assert_allclose(own.weights(1), [1, 1], rtol=1e-9)
    own = weighting("ctwa", [1.0, -1.0])  # the second is to fall, and does
    own.observe(rewards, rewards, advantage, None)
    np.testing.assert_allclose(own.weights(1), [1, -1], rtol=1e-9)


def test_the_running_gram_is_that_of_the_probes_before():
    first, second = np.array([[4.0, -1], [-1, 1]]), np.array([[np.nan, np.nan], [np.nan, 2.0]])
    own = weighting("upgrad", gram="ema", ema_decay=0.75)
    assert not own.needs_gram
    np.testing.assert_array_equal(own.combine(None, np.ones(2), step_generator(0, 0)), [1, 1])
    own.observe(*[np.empty((0, 2))] * 2, np.empty(0), first)
    own.observe(*[np.empty((0, 2))] * 2, np.empty(0), None)
    own.observe(*[np.empty((0, 2))] * 2, np.empty(0), second)
    mean = np.array([[3.0, -0.75], [-0.75, 1.25]])
    np.testing.assert_allclose(own.memory["gram_KK"], mean)
    expected = weighting("upgrad").combine(mean, np.ones(2), step_generator(0, 0))
    np.testing.assert_allclose(own.combine(None, np.ones(2), step_generator(0, 9)), expected)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, np.nan], [np.inf, 1.0]])
def test_weights_that_train_nothing_are_refused(weights):
    with pytest.raises(ValueError, match=r"step 7: expected finite weights, not all 0; found \["):
        check_weights(7, np.array(weights))


def test_a_gram_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"step 7: expected a positive semi-definite Gram .* eigenvalues \[-1"):
        check_gram(7, np.array([[1.0, 2.0], [2.0, 1.0]]))
    check_gram(7, np.array([[1.0, 1 + 1e-9], [1 + 1e-9, 1.0]]))


def test_a_missing_package_is_found_before_the_first_job(monkeypatch):
    plain = requirements.find_spec
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "qpsolvers" else plain(name))
    requirements.check_installed(tiny.config(weighting={"name": "pcgrad"}))
    run = tiny.config(weighting={"name": "upgrad"})
    with pytest.raises(ValueError, match=r"found no qpsolvers\. Install: pip install 'torchjd\[quadprog-projector\]'"):
        _check(run, "config/bases")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weighting": {"name": "cosine", "end": {"brief": 0}}}, "weighting.end: expected an enabled objective"),
        ({"weighting": {"name": "pcd", "primary": "brief"}}, "weighting.primary: expected an enabled objective"),
        ({"weighting": {"name": "krum"}}, "weighting.name: expected at least 3 objectives for krum"),
        ({"weighting": {"name": "synergy"}, "probe": {"every": 0}}, "probe.every: expected at least 1"),
        ({"weighting": {"name": "mgda", "gram": "ema"}, "probe": {"every": 0}}, "probe.every: expected at least 1"),
        ({"weighting": {"name": "mgda"}, "probe": {"space": "preconditioned"}}, "weighting.gram: expected ema"),
        ({"algorithm": {"name": "grpo", "normalize": "objective", "scale_rewards": "none"}}, "algorithm.scale_rewards"),
    ],
)
def test_configurations_that_can_not_work_say_why(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny.config(**changes)


# Inside the loop. A random model answers nothing right: exactness has no signal, brevity and terse conflict.


def explicit_gradients(run, batch, rows) -> torch.Tensor:
    """(K, P): autograd's gradient of each weighted objective's policy loss, from the model's own logits."""
    rollout, setup = batch.rollout, run.configs[0]
    logits = run.adapter.lm.model(input_ids=rollout.ids_NT, use_cache=False).logits / setup.rollout.temperature
    logp = torch.log_softmax(logits, -1)
    weight = token_weights(rollout.completion_len_N, setup.algorithm.loss_type, setup.rollout.max_new_tokens)
    spans = zip(rollout.prompt_len_N.tolist(), rollout.length_N.tolist(), strict=True)
    sums = torch.stack(
        [
            weight[n] * sum(logp[n, t - 1, rollout.ids_NT[n, t]] for t in range(start, end))
            for n, (start, end) in enumerate(spans)
        ]
    )
    parameters = list(run.adapter.named_parameters().values())
    found = []
    for label, objective in setup.enabled_objectives.items():
        advantage = torch.tensor([row["advantages"][label] for row in rows]) * objective.weight
        gradient = torch.autograd.grad(-(sums * advantage).sum(), parameters, retain_graph=True)
        found.append(torch.cat([g.flatten() for g in gradient]))
    return torch.stack(found).double()


TORCHJD = {
    "aligned_mtl": ("AlignedMTL", {}),
    "cagrad": ("CAGrad", {"c": 0.5}),
    "imtl_g": ("IMTLG", {}),
    "mgda": ("MGDA", {}),
    "nash_mtl": ("NashMTL", {"n_tasks": 2}),
    "pcgrad": ("PCGrad", {}),
    "upgrad": ("UPGrad", {}),
}


def aggregate(name: str, jacobian: torch.Tensor) -> torch.Tensor:
    kind, options = TORCHJD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy on the speed of repeated solves
        return getattr(aggregation, kind)(**options)(jacobian)


@pytest.mark.parametrize("name", TORCHJD)
def test_the_update_is_the_explicit_combination_of_explicit_gradients(world, monkeypatch, name):  # noqa: F811
    """K backward passes, their Gramian, TorchJD's own aggregator: against one backward of ours."""
    seen = []
    plain = engine.accumulate

    def recording(adapter, batch, *rest):
        result = plain(adapter, batch, *rest)
        seen.append((batch, torch.cat([p.grad.flatten() for p in adapter.named_parameters().values()]).clone()))
        return result

    monkeypatch.setattr(engine, "accumulate", recording)
    run = trainer(
        [
            config(
                weighting={"name": name},
                probe={"every": 1, "scope": "adapter"},
                rollout={"batch_size": 16, "num_generations": 4, "max_new_tokens": 12},
                placement={"microbatch_tokens": 100},
            )
        ]
    )
    before = run.optimizer.theta.clone()
    run.step(0)
    batch, found = seen[0]
    assert len(batch.microbatches) > 1
    run.optimizer.theta.copy_(before)
    explicit_KP = explicit_gradients(run, batch, metrics(run, file="samples.jsonl"))
    assert explicit_KP[0].any() and not explicit_KP[1].any() and explicit_KP[2].any()
    both = explicit_KP[[0, 2]]
    expected = aggregate(name, both)
    torch.testing.assert_close(found.double(), expected, atol=2e-5 * float(expected.abs().max()), rtol=2e-3)
    row = metrics(run)[0]
    assert row["weight/exactness"] == 1
    weights = torch.tensor([row["weight/brevity"], row["weight/terse"] / -0.5], dtype=torch.float64)
    torch.testing.assert_close(weights @ both, expected, atol=2e-5 * float(expected.abs().max()), rtol=2e-3)


STATEFUL = [
    ({"name": "gradvac"}, "target_KK"),
    ({"name": "nash_mtl"}, "solution_K"),
    ({"name": "pcd", "primary": "terse"}, "squared_norm_K"),
    ({"name": "upgrad", "gram": "ema"}, "gram_KK"),
    ({"name": "synergy", "eta": 1.0}, "multiple_K"),
    ({"name": "ctwa", "lr": 0.5}, "multiple_K"),
]


def several(steps: int = 4):
    """A pack of weightings, two of which wait for the batch's Gram; two inner epochs."""
    grpo = {"name": "grpo", "inner_epochs": 2}
    return [
        config(weighting=chosen, algorithm=grpo, seed=seed, steps=steps)
        for seed, chosen in enumerate(
            [*(chosen for chosen, _ in STATEFUL), {"name": "pcgrad"}, {"name": "cosine", "end": {"brevity": 0.1}}]
        )
    ]


def test_a_weighted_run_in_a_pack_is_the_run_alone(world):  # noqa: F811
    """Synergy and CTWA see no more of the Gram for sitting beside runs that need it at every step."""
    configs = several()
    together = train(configs, "pack")
    for r, own in enumerate(configs):
        alone = train([own], f"alone{r}-")
        for file in ("metrics.jsonl", "probe/probe.jsonl"):
            for a, b in zip(metrics(alone, 0, file), metrics(together, r, file), strict=True):
                a.pop("sampler_logp_gap_max_nats", 0), b.pop("sampler_logp_gap_max_nats", 0)
                assert_close(a, b)
        start, end, packed = (
            torch.cat([value.flatten() for value in factors(run, of).values()])
            for run, of in ((trainer([own], f"start{r}-"), 0), (alone, 0), (together, r))
        )
        # As a whole: AdamW's first steps move an entry whose gradient is rounding as far as any other.
        assert (packed - end).norm() < 2e-3 * (end - start).norm(), own.weighting.name
    probed = sorted(p.name for p in (together.logs[0].folder / "probe").glob("gram*"))
    assert probed == ["gram_step0000.npz", "gram_step0002.npz"]


def test_weights_are_logged_at_every_step_and_move(world):  # noqa: F811
    for r, run in enumerate(several()):
        rows = metrics(train([run], f"run{r}-"))
        brevity = [row["weight/brevity"] for row in rows]
        assert len(rows) == 4 and all(row["weight/exactness"] is not None for row in rows)
        assert len(set(brevity)) > 1, run.weighting.name


def test_a_stateful_weighting_resumes_exactly(world):  # noqa: F811
    """Stopped two steps after a checkpoint, all of them in one pack: parameters, memories and logs, bit for bit."""
    configs = several(steps=7)
    whole = train(configs, "whole")
    stop_before(trainer(configs, "cut"), 5)
    second = trainer(configs, "cut")
    assert second.next_step == 3
    second.train()
    assert torch.equal(second.optimizer.theta, whole.optimizer.theta)
    for r, (_, name) in enumerate(STATEFUL):
        assert whole.weightings[r].memory[name].any()
    for r in range(len(configs)):
        assert second.weightings[r].memory.keys() == whole.weightings[r].memory.keys()
        for key, value in whole.weightings[r].memory.items():
            np.testing.assert_array_equal(second.weightings[r].memory[key], value)
        assert metrics(second, r) == metrics(whole, r)
        assert second.dominances[r] == whole.dominances[r]


@pytest.mark.parametrize(("gram", "order"), [("batch", "ffbb"), ("ema", "fbfb")])
def test_one_graph_is_alive_at_a_time_unless_weights_wait_for_the_gram(world, monkeypatch, gram, order):  # noqa: F811
    calls = []
    loss, forward = update.policy_loss, update.token_logp
    monkeypatch.setattr(update, "policy_loss", lambda *args: (calls.append("b"), loss(*args))[1])
    monkeypatch.setattr(update, "token_logp", lambda *args: (calls.append("f"), forward(*args))[1])
    run = trainer([config(weighting={"name": "upgrad", "gram": gram}, placement={"microbatch_tokens": 130})])
    run.step(0)
    assert "".join(calls) == order


def test_the_gram_acted_on_sees_this_batch(world):  # noqa: F811
    """`batch` moves the weights at the first step already, `ema` from the second on."""
    batch = metrics(train([config(weighting={"name": "mgda"})], "batch"))
    ema = metrics(train([config(weighting={"name": "mgda", "gram": "ema"})], "ema"))
    assert batch[0]["weight/brevity"] != 1 and ema[0]["weight/brevity"] == 1 and ema[1]["weight/brevity"] != 1


def test_layers_and_modules_of_the_scope_act_as_one_gram(world):  # noqa: F811
    first = [
        metrics(train([config(weighting={"name": "mgda"}, probe={"every": 2, "scope": scope}, steps=1)], scope))[0]
        for scope in ("adapter", "per_layer", "per_module")
    ]
    for found in first[1:]:
        assert found["weight/brevity"] == pytest.approx(first[0]["weight/brevity"], rel=1e-4)
    last = metrics(train([config(weighting={"name": "mgda"}, steps=1)], "last"))[0]
    assert abs(last["weight/brevity"] - first[0]["weight/brevity"]) > 1e-3


def test_a_step_that_fails_leaves_what_weightings_remember(world, monkeypatch):  # noqa: F811
    """The weights are known and the method has moved its state when the gradient turns out not to be finite."""
    run = trainer([config(weighting={"name": "gradvac"})])
    run.step(0)
    before = dict(run.weightings[0].memory)
    plain = engine.accumulate

    def poisoned(*args):
        result = plain(*args)
        run.optimizer.grad[0] = float("nan")
        return result

    monkeypatch.setattr(engine, "accumulate", poisoned)
    with pytest.raises(engine.TrainingDiverged):
        run.step(1)
    assert run.weightings[0].memory.keys() == before.keys()
    np.testing.assert_array_equal(run.weightings[0].memory["target_KK"], before["target_KK"])
