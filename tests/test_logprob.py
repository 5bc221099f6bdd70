"""Log-probs, entropies and their gradients against float64 written out by hand."""

import numpy as np
import pytest
import tiny
import torch

from gradlab import logprob
from gradlab.logprob import reference_logp, token_logp
from gradlab.microbatch import plan


def by_hand(h, weight, ids, temperature):
    """Token by token in float64, with the softmax summed in a Python loop over the vocabulary."""
    logps, entropies = [], []
    for n, i in enumerate(ids.tolist()):
        logits = [(h[n] * weight[v]).sum() / temperature[n] for v in range(len(weight))]
        top = max(x.item() for x in logits)
        norm = top + torch.log(sum(torch.exp(x - top) for x in logits))
        logps.append(logits[i] - norm)
        entropies.append(-sum(torch.exp(x - norm) * (x - norm) for x in logits))
    return torch.stack(logps), torch.stack(entropies)


@pytest.fixture
def case():
    torch.manual_seed(0)
    n, width, vocabulary = 7, 6, 11
    h, weight = torch.randn(n, width), torch.randn(vocabulary, width)
    return h, weight, torch.randint(0, vocabulary, (n,)), torch.tensor([1.0, 0.5, 2.0, 0.7, 1.0, 1.3, 3.0])


def test_values_entropy_and_both_gradients_equal_a_float64_loop(case, monkeypatch):
    monkeypatch.setattr(logprob, "_CHUNK_ELEMENTS", 3 * 11)  # three tokens a chunk: 7 is 3 + 3 + 1
    h, weight, ids, temperature = case
    coefficient = torch.linspace(-1, 2, len(ids))
    h64, w64 = h.double().requires_grad_(), weight.double().requires_grad_()
    expected, entropy64 = by_hand(h64, w64, ids, temperature.double())
    (expected * coefficient).sum().backward()

    h.requires_grad_(), weight.requires_grad_()
    logp, entropy, unit = token_logp(h, weight, ids, temperature)
    (logp * coefficient).sum().backward()
    torch.testing.assert_close(logp.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), entropy64.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(h.grad.double(), h64.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weight.grad.double(), w64.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((unit * coefficient[:, None]).double(), h64.grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(reference_logp(h, weight, ids, temperature), logp)


def test_chunks_do_not_matter(case, monkeypatch):
    whole = token_logp(*case)
    monkeypatch.setattr(logprob, "_CHUNK_ELEMENTS", 1)
    for one, many in zip(whole, token_logp(*case), strict=True):
        torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-6)


def test_far_from_the_top_is_finite():
    """A token 4000 nats below the top has that log-prob, not -inf; and the top has 0, not NaN."""
    h = torch.tensor([[1.0], [1.0]])
    weight = torch.tensor([[4000.0], [0.0]])
    logp, entropy, _ = token_logp(h, weight, torch.tensor([1, 0]), torch.ones(2))
    assert logp.tolist() == [-4000.0, 0.0]
    assert entropy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_padded_batch_equals_one_row_at_a_time(family):
    """The tokens scored, and their log-probs, are those of each row alone without padding."""
    lm = tiny.lm(family)
    adapter = tiny.lora(lm)
    rollout = tiny.rollout(adapter, new_tokens=20)
    found = torch.zeros_like(rollout.logp_NC)
    for micro in plan(rollout, 1, 100):
        logp, _, _ = token_logp(micro.hidden(lm), lm.head_weight, micro.target_M, torch.ones(len(micro.target_M)))
        found[micro.row_M, micro.column_M] = logp.detach()
    expected = torch.zeros_like(found)
    with torch.no_grad():
        for n, (ids, start, end) in enumerate(
            zip(rollout.ids_NT, rollout.prompt_len_N.tolist(), rollout.length_N.tolist(), strict=True)
        ):
            logits = lm.model(input_ids=ids[None, :end], use_cache=False).logits[0].double()
            for t in range(start, end):  # token t is predicted at t - 1, which has not seen it
                expected[n, t - start] = torch.log_softmax(logits[t - 1], -1)[ids[t]]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert (found != 0).sum() == rollout.completion_len_N.sum()
