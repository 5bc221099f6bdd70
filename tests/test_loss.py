"""Token weights by hand, the clipped loss in float64, and KL against enumeration of a tiny vocabulary."""

import math

import numpy as np
import pytest
import torch

from gradlab.loss import policy_loss, token_weights

LENGTHS = torch.tensor([2, 4, 1, 3])


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        ("grpo", [1 / 8, 1 / 16, 1 / 4, 1 / 12]),
        ("dapo", [1 / 10] * 4),
        ("dr_grpo", [1 / 20] * 4),  # 4 rows of at most 5 tokens
        ("sequence", [1 / 4] * 4),
    ],
)
def test_token_weights_by_hand(loss_type, expected):
    np.testing.assert_allclose(token_weights(LENGTHS, loss_type, 5), expected, rtol=1e-6)


def test_the_weights_are_the_means_that_they_are_named_after():
    values = [torch.arange(n) + 1.0 for n in LENGTHS.tolist()]
    sums = torch.tensor([v.sum() for v in values])
    means = torch.tensor([v.mean() for v in values])
    for loss_type, expected in [
        ("grpo", means.mean()),
        ("dapo", torch.cat(values).mean()),
        ("dr_grpo", sums.mean() / 5),
        ("sequence", sums.mean()),
    ]:
        torch.testing.assert_close((token_weights(LENGTHS, loss_type, 5) * sums).sum(), expected)


def loss_of(ratio, advantage, weight=0.3, epsilon=0.2, beta=0.0, reference=None):
    """The library's loss and d loss / d logp of one token."""
    logp = torch.tensor([math.log(ratio) - 1.0], requires_grad=True)
    found = policy_loss(
        logp,
        torch.tensor([-1.0]),
        torch.tensor([float(advantage)]),
        torch.tensor([weight]),
        torch.tensor([epsilon]),
        torch.tensor([beta]),
        None if reference is None else torch.tensor([reference]),
    )
    found.loss_M.sum().backward()
    return found, logp.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "slope", "clipped"),
    [
        (1.0, 2.0, 2.0, 2.0, False),
        (1.1, 2.0, 2.2, 2.2, False),
        (1.5, 2.0, 2.4, 0.0, True),  # already much likelier: no more reward for it
        (0.5, 2.0, 1.0, 1.0, False),  # good and too unlikely: the pull back is not clipped
        (1.5, -2.0, -3.0, -3.0, False),  # bad and too likely: nor is this
        (0.5, -2.0, -1.6, 0.0, True),
        (1.5, 0.0, 0.0, 0.0, False),
    ],
)
def test_the_clipped_surrogate_its_slope_and_when_it_counts_as_clipped(ratio, advantage, surrogate, slope, clipped):
    """PPO's figure 1, both signs of the advantage."""
    found, gradient = loss_of(ratio, advantage)
    assert found.loss_M.item() == pytest.approx(-0.3 * surrogate, rel=1e-5, abs=1e-7)
    assert gradient == pytest.approx(-0.3 * slope, rel=1e-5, abs=1e-7)
    assert bool(found.clipped_M) is clipped
    assert found.ratio_M.item() == pytest.approx(ratio, rel=1e-5)
    assert found.kl_M is None


def test_loss_with_kl_equals_float64_by_hand():
    draw = np.random.default_rng(0)
    logp, old, ref = (draw.normal(-2, 0.5, 50) for _ in range(3))
    adv, weight, eps, beta = draw.normal(size=50), draw.random(50), draw.uniform(0.1, 0.3, 50), draw.random(50)
    ratio = np.exp(logp - old)
    kl = np.exp(ref - logp) - (ref - logp) - 1
    surrogate = np.minimum(ratio * adv, np.clip(ratio, 1 - eps, 1 + eps) * adv)
    active = (ratio * adv <= np.clip(ratio, 1 - eps, 1 + eps) * adv) | (np.abs(ratio - 1) <= eps)
    slope = weight * (-ratio * adv * active + beta * (1 - np.exp(ref - logp)))
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (logp, old, adv, weight, eps, beta, ref)]
    tensors[0].requires_grad_()
    found = policy_loss(*tensors)
    found.loss_M.sum().backward()
    np.testing.assert_allclose(found.loss_M.detach(), weight * (beta * kl - surrogate), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.kl_M, kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tensors[0].grad, slope, rtol=1e-4, atol=1e-5)
    assert 5 < found.clipped_M.sum() < 45


def test_k3_is_kl_and_its_slope_is_the_reverse_kls():
    """Enumerated over 5 tokens with weights p: E[k3] = KL(p || q), and every k3 is at least 0.

    The gradient of sampled k3 with p's draws fixed is E[(1 - q/p) grad log p] = -sum_i q_i grad log p_i,
    that of KL(q || p): what GRPO's published estimator follows (and not the gradient of KL(p || q)).
    """
    torch.manual_seed(0)
    logits, q = torch.randn(5, requires_grad=True), torch.log_softmax(torch.randn(5), -1)
    logp = torch.log_softmax(logits, -1)
    p = logp.exp().detach()
    ones, zeros = torch.ones(5), torch.zeros(5)
    found = policy_loss(logp, logp.detach(), zeros, p, 0.2 * ones, ones, q)
    found.loss_M.sum().backward()
    assert found.loss_M.sum().item() == pytest.approx((p * (logp - q)).sum().item(), rel=1e-5)
    assert (found.kl_M >= 0).all()
    torch.testing.assert_close(logits.grad, p - q.exp())


def test_kl_to_oneself_is_zero_with_zero_slope_but_not_flat():
    found, gradient = loss_of(1.0, 0.0, beta=1.0, reference=-1.0)
    assert found.kl_M.item() == 0 and gradient == 0
    assert loss_of(1.0, 0.0, beta=1.0, reference=-1.5)[1] > 0.1  # and it acts at ratio 1
