"""The score Gram against explicit gradients, for everything that trains; and what its cosines mean."""

import numpy as np
import pytest
import tiny
import torch

from gradlab import models
from gradlab.adapters import attach
from gradlab.config import AdapterConfig
from gradlab.credit import CreditState, credit
from gradlab.gradients import Probe, conflict, objective_gram
from gradlab.loss import token_weights
from gradlab.microbatch import plan
from gradlab.optimizer import StackedAdamW
from gradlab.update import Batch, accumulate


def probed(adapter, rollout, scope, config, max_tokens=10_000, keep_scores=False):
    """The probe's scores by layer (R, B, P), filled as training fills it, and the training's own gradient."""
    configs = [config] * adapter.runs
    parameters = list(adapter.named_parameters().values())
    optimizer = StackedAdamW(parameters, adapter.stacked, [c.optimizer for c in configs], [1] * len(configs))
    advantage = torch.linspace(-1, 1, rollout.ids_NT.shape[0])
    batch = Batch.of(rollout, plan(rollout, adapter.runs, max_tokens), advantage, configs)
    probe = Probe(adapter, scope, keep_scores=keep_scores) if scope else None
    accumulate(adapter, batch, first=True, probe=probe)
    return probe, {name: p.grad.clone() for name, p in adapter.named_parameters().items()}, optimizer


def explicit(adapter, rollout, linears, config) -> torch.Tensor:
    """(R, B, P): for each row, autograd's gradient of sum_t w_t log pi_t, from the model's own logits."""
    runs, temperature = adapter.runs, config.rollout.temperature
    logp = torch.log_softmax(adapter.lm.model(input_ids=rollout.ids_NT, use_cache=False).logits / temperature, -1)
    length_RB = rollout.completion_len_N.view(runs, -1)
    weight = torch.cat(
        [token_weights(own, config.algorithm.loss_type, config.rollout.max_new_tokens) for own in length_RB]
    )
    parameters = [p for linear in linears for p in linear.parameters]
    rows = []
    for n, (start, end) in enumerate(zip(rollout.prompt_len_N.tolist(), rollout.length_N.tolist(), strict=True)):
        total = weight[n] * sum(logp[n, t - 1, rollout.ids_NT[n, t]] for t in range(start, end))
        gradients = torch.autograd.grad(total, parameters, retain_graph=True)
        run = n // (len(rollout.ids_NT) // runs)
        rows.append(torch.cat([(g[run] if adapter.stacked else g).flatten() for g in gradients]))
    return torch.stack(rows).view(runs, -1, rows[0].shape[0])


def check(adapter, scope, config, max_tokens=10_000):
    rollout = tiny.rollout(adapter, temperature=config.rollout.temperature)
    probe, _, _ = probed(adapter, rollout, scope, config, max_tokens, keep_scores=True)
    lean, _, _ = probed(adapter, rollout, scope, config, max_tokens)
    names, linears = probe.layers(), adapter.probed(scope)
    expected = []
    for layer in names:
        own = [x for x in linears if scope != "per_layer" or str(x.layer) == layer]
        expected.append(explicit(adapter, rollout, own, config))
        found = torch.cat([probe.score(linear) for linear in probe.parts()[layer]], dim=2)
        assert found.shape == expected[-1].shape
        torch.testing.assert_close(found, expected[-1], atol=1e-5 * expected[-1].abs().max().item(), rtol=1e-4)
    gram_RLBB = probe.gram()
    np.testing.assert_array_equal(lean.gram(), gram_RLBB)
    for index, score in enumerate(expected):
        target = torch.bmm(score.double(), score.double().mT).numpy()
        np.testing.assert_allclose(gram_RLBB[:, index], target, rtol=1e-4, atol=1e-5 * np.abs(target).max())
    np.testing.assert_allclose(gram_RLBB, gram_RLBB.swapaxes(-1, -2), rtol=1e-6)
    eigenvalues = np.linalg.eigvalsh(gram_RLBB)
    assert (eigenvalues >= -1e-6 * eigenvalues.max()).all()
    return rollout, gram_RLBB, expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_scores_equal_explicit_gradients_in_every_family(family, kind):
    """All trained linears, biases of Qwen 2 included; temperature 0.7."""
    lm = tiny.lm(family)
    adapter = tiny.lora(lm) if kind == "lora" else attach(lm, [AdapterConfig(kind="full")], [0])
    rollout_config = {"batch_size": 8, "num_generations": 4, "max_new_tokens": 12, "temperature": 0.7}
    check(adapter, "adapter", tiny.config(rollout=rollout_config))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "sequence"])
def test_scores_carry_the_token_weights_of_the_loss(loss_type):
    check(tiny.lora(tiny.lm()), "last_block", tiny.config(algorithm={"name": "grpo", "loss_type": loss_type}))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_layers_add_up_to_the_whole_and_the_last_is_the_last(kind):
    def adapter():
        lm = tiny.lm()
        return tiny.lora(lm) if kind == "lora" else attach(lm, [AdapterConfig(kind="full")], [0])

    config = tiny.config()
    _, whole, _ = check(adapter(), "adapter", config)
    _, layers, _ = check(adapter(), "per_layer", config)
    _, last, _ = check(adapter(), "last_block", config)
    np.testing.assert_allclose(layers.sum(axis=1), whole[:, 0], rtol=1e-5, atol=1e-6 * whole.max())
    np.testing.assert_allclose(layers[:, -1], last[:, 0], rtol=1e-5, atol=1e-6 * last.max())
    assert layers.shape[1] == 2


def test_scores_of_a_rollout_in_one_microbatch_are_let_go_during_the_backward_pass():
    adapter = tiny.lora(tiny.lm())
    rollout = tiny.rollout(adapter)
    for max_tokens, held in ((10_000, 0), (60, 14)):
        probe, _, _ = probed(adapter, rollout, "adapter", tiny.config(), max_tokens)
        assert len(probe._scores) == held
        probe.gram()
        assert not probe._scores


def test_packs_of_mixed_ranks_in_several_microbatches():
    adapter = tiny.lora(tiny.lm(), [2, 5])
    for scope in ("per_layer", "adapter"):
        rollout, _, _ = check(adapter, scope, tiny.config(), max_tokens=60)
    assert len(plan(rollout, 2, 60)) > 2


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantized_base(quantize, tmp_path):
    tiny.model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lm = models.load(models.ModelConfig(id=str(tmp_path), quantize=quantize), device="cpu")
    check(tiny.lora(lm), "adapter", tiny.config())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_k_objectives_gradients_are_those_that_training_takes(kind):
    """Three backward passes of the training loss, one an objective, against one probe."""
    lm = tiny.lm("qwen2")
    adapter = tiny.lora(lm) if kind == "lora" else attach(lm, [AdapterConfig(kind="full")], [0])
    config = tiny.config()
    rollout = tiny.rollout(adapter)
    probe, _, optimizer = probed(adapter, rollout, "adapter", config)
    advantages_BK = np.random.default_rng(0).normal(size=(8, 3))
    found = objective_gram(probe.gram()[0, 0], advantages_BK)
    gradients = []
    for k in range(3):
        optimizer.zero_grad()
        advantage = torch.from_numpy(advantages_BK[:, k]).float()
        accumulate(adapter, Batch.of(rollout, plan(rollout, 1, 10_000), advantage, [config]), True, None)
        own = [p.grad.flatten() for linear in adapter.probed("adapter") for p in linear.parameters]
        gradients.append(torch.cat(own).double().numpy())
    expected = np.stack(gradients) @ np.stack(gradients).T
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_probing_changes_no_bit_of_the_gradient():
    adapter = tiny.lora(tiny.lm(), [2, 5])
    rollout = tiny.rollout(adapter)
    _, without, _ = probed(adapter, rollout, None, tiny.config())
    for scope in ("last_block", "adapter", "per_layer"):
        _, found, _ = probed(adapter, rollout, scope, tiny.config())
        assert all(torch.equal(found[name], without[name]) for name in without)
    assert not any(m._forward_hooks for m in adapter.lm.model.modules())


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "sequence"])
def test_the_training_gradient_does_not_depend_on_the_microbatches(loss_type):
    config = tiny.config(algorithm={"name": "grpo", "loss_type": loss_type, "beta": 0.1})
    adapter = tiny.lora(tiny.lm(), [2, 5])
    rollout = tiny.rollout(adapter)
    _, whole, _ = probed(adapter, rollout, None, config)
    _, cut, _ = probed(adapter, rollout, None, config, max_tokens=1)  # one row of each run at a time
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, atol=1e-5 * value.abs().max().item(), rtol=1e-4)


def test_a_scope_that_matches_nothing_is_an_error():
    adapter = tiny.lora(tiny.lm(), targets=("layers.0.self_attn.q_proj",))
    with pytest.raises(ValueError, match=r"probe.scope: expected trained linears in 'last_block'; found none"):
        Probe(adapter, "last_block")
    assert Probe(adapter, "adapter").layers() == ["all"]


def cosines(rewards_BK: np.ndarray, gram_BB: np.ndarray, centred: bool = True) -> np.ndarray:
    group_B = np.repeat(np.arange(len(rewards_BK) // 8), 8)
    weights = np.ones(rewards_BK.shape[1])
    algorithm = tiny.config(algorithm={"name": "rloo"}).algorithm
    advantages = credit(rewards_BK, group_B, weights, algorithm, CreditState()) if centred else rewards_BK
    return conflict(objective_gram(gram_BB, advantages), 0.0).cosine_KK


def test_independent_rewards_have_cosine_zero_and_uncentred_ones_would_have_p():
    """400 draws of two independent 0/1 rewards of mean 0.7 on 32 rows of four prompts.

    One cosine has a standard deviation of about 1/sqrt(28), their mean of 0.0095: the limit of 0.038 is
    four of them, so that a new seed fails once in 16,000. Without centring the cosine is p: the mistake.
    """
    draw = np.random.default_rng(0)
    score = draw.normal(size=(32, 500))
    gram = score @ score.T
    rewards = (draw.random((400, 32, 2)) < 0.7).astype(float)
    assert abs(np.nanmean([cosines(r, gram)[0, 1] for r in rewards])) < 0.038
    assert np.mean([cosines(r, gram, centred=False)[0, 1] for r in rewards]) == pytest.approx(0.7, abs=0.05)


def test_the_same_reward_twice_has_cosine_one_and_negated_minus_one():
    draw = np.random.default_rng(1)
    score, reward, other = draw.normal(size=(32, 50)), draw.random(32), draw.random(32)
    found = cosines(np.stack([reward, reward, -3 * reward + 2, other], axis=1), score @ score.T)
    np.testing.assert_allclose(found[:3, :3], [[1, 1, -1], [1, 1, -1], [-1, -1, 1]], atol=1e-9)
    np.testing.assert_allclose(found[3, :3], found[3, 0] * np.array([1, 1, -1]), atol=1e-9)


def test_no_signal_is_nan_and_counted_never_zero():
    """A constant reward, one that applies to no row, and advantages that cancel in the gradient."""
    draw = np.random.default_rng(2)
    score = draw.normal(size=(32, 50))
    score[1] = score[0]
    gram = (score @ score.T).astype(np.float32).astype(float)  # as the probe has it
    rewards = np.stack([draw.random(32), np.full(32, 0.7), np.full(32, np.nan), draw.random(32)], axis=1)
    cosine = cosines(rewards, gram)
    assert np.isnan(cosine[1:3]).all() and np.isnan(cosine[:, 1:3]).all()
    assert np.isfinite(cosine[0, 3])
    cancel = np.zeros((32, 2))
    cancel[:2, 0], cancel[:, 1] = [1, -1], draw.normal(size=32)
    assert np.isnan(objective_gram(gram, cancel)[0]).all()


def test_conflict_by_hand():
    gram = np.array([[4.0, -1.0, 3.0], [-1.0, 1.0, 0.0], [3.0, 0.0, 9.0]])
    found = conflict(gram, tau=0.4)
    np.testing.assert_allclose(found.cosine_KK, [[1, -0.5, 0.5], [-0.5, 1, 0], [0.5, 0, 1]])
    np.testing.assert_allclose(found.norm_K, [2, 1, 3])
    np.testing.assert_allclose(found.synergy_K, [0, -0.25, 0.25])
    assert found.conflict_fraction == pytest.approx(1 / 3) and found.undefined_pairs == 0
    assert conflict(gram, tau=0.5).conflict_fraction == 0
    gram[1] = gram[:, 1] = np.nan
    found = conflict(gram, tau=0.0)
    np.testing.assert_allclose(found.synergy_K, [0.5, np.nan, 0.5])
    assert found.undefined_pairs == 2 and found.conflict_fraction == 0
    gram[0] = gram[:, 0] = np.nan
    assert np.isnan(conflict(gram, tau=0.0).conflict_fraction)


def scored(adapter, scope, space="gradient"):
    """A probe filled on a rollout of eight rows, and the optimizer whose gradient the same pass filled."""
    config = tiny.config()
    rollout = tiny.rollout(adapter)
    parameters = list(adapter.named_parameters().values())
    optimizer = StackedAdamW(parameters, adapter.stacked, [config.optimizer] * adapter.runs, [9] * adapter.runs)
    probe = Probe(adapter, scope, space, keep_scores=True)
    batch = Batch.of(
        rollout, plan(rollout, adapter.runs, 60), torch.linspace(-1, 1, len(rollout.ids_NT)), [config] * adapter.runs
    )
    accumulate(adapter, batch, True, probe)
    return probe, optimizer


def test_update_space_equals_materialised_changes_of_the_weights():
    """dW = s (dB A + B dA) of every row and linear, as an O x I matrix; mixed ranks in a pack."""
    adapter = tiny.lora(tiny.lm(), [2, 5])
    probe, _ = scored(adapter, "adapter", "update")
    expected = 0
    for linear in probe.linears:
        module, score = linear.module, probe.score(linear).double()
        A, B, scale = module.A_RrI.detach().double(), module.B_ROr.detach().double(), module.scale_R11.double()
        dA, dB = (
            score[..., : A[0].numel()].unflatten(2, A.shape[1:]),
            score[..., A[0].numel() :].unflatten(2, B.shape[1:]),
        )
        change = scale[..., None] * (dB @ A[:, None] + B[:, None] @ dA)
        expected = expected + change.flatten(2) @ change.flatten(2).mT
    assert probe.space == "update"
    np.testing.assert_allclose(probe.gram()[:, 0], expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_full_update_space_is_the_gradient():
    grams = []
    for space in ("gradient", "update"):
        adapter = attach(tiny.lm("qwen2"), [AdapterConfig(kind="full")], [0])
        grams.append(scored(adapter, "last_block", space)[0].gram())
    np.testing.assert_array_equal(*grams)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_preconditioned_scores_are_divided_as_adamw_divides(kind):
    """After two steps of other gradients: torch's own AdamW state, parameter by parameter."""
    lm = tiny.lm()
    adapter = tiny.lora(lm, [2, 5]) if kind == "lora" else attach(lm, [AdapterConfig(kind="full")], [0])
    probe, optimizer = scored(adapter, "adapter", "preconditioned")
    copies = [torch.nn.Parameter(p.detach().clone()) for p in optimizer._parameters]
    reference = torch.optim.AdamW(copies, lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        for copy, parameter in zip(copies, optimizer._parameters, strict=True):
            copy.grad = parameter.grad.clone()
        reference.step()
        optimizer.step(0, torch.full((adapter.runs,), 1e-3))  # a norm below the clip
    state = {
        p: 1 / ((reference.state[c]["exp_avg_sq"] / (1 - 0.999**2)).sqrt() + 1e-8)
        for p, c in zip(optimizer._parameters, copies, strict=True)
    }
    expected = 0
    for linear in probe.linears:
        scale = torch.cat([state[p].reshape(adapter.runs, -1) for p in linear.parameters], dim=1)
        score = (probe.score(linear) * scale[:, None]).double()
        expected = expected + score @ score.mT
    probe.measure(optimizer.preconditioner())
    np.testing.assert_allclose(probe.gram()[:, 0], expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("space", ["gradient", "update"])
def test_modules_add_up_to_their_layers(space):
    layers, _ = scored(tiny.lora(tiny.lm()), "per_layer", space)
    modules, _ = scored(tiny.lora(tiny.lm()), "per_module", space)
    assert layers.layers() == ["0", "1"]
    assert modules.layers() == ["0.attention", "0.mlp", "1.attention", "1.mlp"]
    by_layer = modules.gram().reshape(1, 2, 2, 8, 8).sum(axis=2)
    np.testing.assert_allclose(by_layer, layers.gram(), rtol=1e-5, atol=1e-7 * by_layer.max())
