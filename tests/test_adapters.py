"""Adapters against PEFT, against themselves alone, and against the base that they must leave as it was."""

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from gradlab import models
from gradlab.adapters import attach
from gradlab.adapters.lora import LoRALinear
from gradlab.config import AdapterConfig, OptimizerConfig
from gradlab.optimizer import StackedAdamW

# PEFT reads a property that transformers renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS = torch.arange(5, 65).view(6, 10)


def logits(lm: models.LanguageModel, ids: torch.Tensor = IDS) -> torch.Tensor:
    return lm.model(input_ids=ids, use_cache=False).logits


def gradients(adapter) -> dict[str, torch.Tensor]:
    for parameter in adapter.named_parameters().values():
        parameter.grad = None
    (torch.log_softmax(logits(adapter.lm), -1)[..., 7] * torch.arange(6)[:, None]).sum().backward()
    return {name: p.grad for name, p in adapter.named_parameters().items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_fresh_lora_is_the_base_and_its_reference_stays_the_base(family):
    base = logits(tiny.lm(family))
    lm = tiny.lm(family)
    fresh = attach(lm, [AdapterConfig(rank=3), AdapterConfig(rank=5)], [0, 1])
    assert torch.equal(logits(lm), base)
    with torch.no_grad():
        for parameter in fresh.named_parameters().values():
            parameter.add_(0.3)
    moved = logits(lm)
    assert not torch.allclose(moved, base)
    with fresh.reference() as reference:
        assert torch.equal(logits(reference), base)
    assert torch.equal(logits(lm), moved)
    with pytest.raises(ZeroDivisionError), fresh.reference():
        raise ZeroDivisionError
    assert torch.equal(logits(lm), moved)


def test_the_base_is_never_written_and_has_no_gradient():
    adapter = tiny.lora(tiny.lm())
    gradients(adapter)
    expected = tiny.model().state_dict()
    own = {name.replace(".base.", "."): p for name, p in adapter.lm.model.named_parameters()}
    assert all(torch.equal(own[name], value) and own[name].grad is None for name, value in expected.items())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_saved_lora_is_the_same_in_peft_and_back_here(family, tmp_path):
    """PEFT loads the files by itself; logits and the gradients of all factors agree with ours."""
    ours = tiny.lora(tiny.lm(family), [4], alpha=6.0)
    ours.save(0, tmp_path)
    theirs = PeftModel.from_pretrained(tiny.model(family), str(tmp_path), is_trainable=True)
    out = theirs(input_ids=IDS, use_cache=False).logits
    torch.testing.assert_close(out, logits(ours.lm), atol=1e-5, rtol=1e-6)
    (torch.log_softmax(out, -1)[..., 7] * torch.arange(6)[:, None]).sum().backward()
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    found = gradients(ours)
    assert len(found) == len(expected) == 2 * len(ours.modules)
    for name, value in found.items():
        target = expected[f"base_model.model.{name}.default.weight"]
        torch.testing.assert_close(value[0], target, atol=1e-5 * target.abs().max().item(), rtol=1e-5)

    again = attach(tiny.lm(family), [AdapterConfig(rank=4, alpha=6.0)], [9])
    again.load(0, tmp_path)
    assert torch.equal(logits(again.lm), logits(ours.lm))


def test_initial_factors_are_distributed_as_peft_draws_them():
    adapter = attach(tiny.lm(), [AdapterConfig(rank=8)], [0])
    theirs = get_peft_model(tiny.model(), LoraConfig(r=8, target_modules="all-linear"))
    for name, module in adapter.modules.items():
        A = theirs.get_submodule(f"base_model.model.{name}.lora_A.default").weight
        bound = 1 / A.shape[1] ** 0.5
        assert A.shape == module.A_RrI[0].shape
        assert bound * 0.9 < A.abs().max() <= bound and bound * 0.9 < module.A_RrI.abs().max() <= bound
        assert not module.B_ROr.any()


def test_a_file_that_does_not_fit_is_refused(tmp_path):
    tiny.lora(tiny.lm(), [4]).save(0, tmp_path)
    with pytest.raises(ValueError, match=r"expected LoRA of rank 2 .* found rank 4"):
        tiny.lora(tiny.lm(), [2]).load(0, tmp_path)
    with pytest.raises(ValueError, match="expected LoRA of rank 4 on 2 linears"):
        tiny.lora(tiny.lm(), [4], targets=("q_proj",)).load(0, tmp_path)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_stack_of_mixed_ranks_equals_separate_runs(family):
    """Logits and gradients of three runs, each with its own rows, rank and scale; padding stays zero."""
    ranks = [2, 5, 3]
    stack = tiny.lora(tiny.lm(family), ranks)
    rows = torch.cat([IDS + r for r in range(3)])
    together = logits(stack.lm, rows)
    together.square().sum().backward()
    for run, rank in enumerate(ranks):
        alone = tiny.lora(tiny.lm(family), [rank])
        own = logits(alone.lm, IDS + run)
        own.square().sum().backward()
        torch.testing.assert_close(together.view(3, 6, 10, -1)[run], own, atol=1e-4, rtol=1e-5)
        for name, module in stack.modules.items():
            other = alone.modules[name]
            for found, expected in (
                (module.A_RrI.grad[run, :rank], other.A_RrI.grad[0]),
                (module.B_ROr.grad[run, :, :rank], other.B_ROr.grad[0]),
            ):
                torch.testing.assert_close(found, expected, atol=5e-5 * expected.abs().max().item(), rtol=1e-5)
            assert not module.A_RrI.grad[run, rank:].any() and not module.B_ROr.grad[run, :, rank:].any()


def test_the_merged_weight_is_the_forward():
    adapter = tiny.lora(tiny.lm("qwen2"), [2, 5])
    for module in adapter.modules.values():
        x = torch.randn(2, 4, module.base.in_features)
        merged = torch.bmm(x, adapter.weight(module))
        if module.base.bias is not None:
            merged = merged + module.base.bias
        torch.testing.assert_close(merged, module(x), atol=1e-4, rtol=1e-5)
        with adapter.reference():
            assert torch.equal(adapter.weight(module)[0], module.base.weight.mT)
    assert any(isinstance(m, LoRALinear) and m.base.bias is not None for m in adapter.lm.model.modules())


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_full_saves_a_model_that_transformers_loads_and_the_reference_stays(family, tmp_path):
    lm = tiny.lm(family)
    base = logits(lm).detach()
    adapter = attach(lm, [AdapterConfig(kind="full")], [0])
    adapter.keep_reference()
    parameters = list(adapter.named_parameters().values())
    optimizer = StackedAdamW(parameters, False, [OptimizerConfig(lr=1e-2)], [1])
    logits(lm)[..., 7].sum().backward()
    optimizer.step(0, optimizer.gradient_norms())
    trained = logits(lm)
    assert not torch.allclose(trained, base)
    with adapter.reference() as reference:
        assert torch.equal(logits(reference), base)
    adapter.save(0, tmp_path)
    loaded = models.load(models.ModelConfig(id=str(tmp_path)), device="cpu")
    assert torch.equal(logits(loaded), trained)
    again = attach(tiny.lm(family), [AdapterConfig(kind="full")], [0])
    again.load(0, tmp_path)
    assert torch.equal(logits(again.lm), trained)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"intermediate_size": 32}])
def test_full_refuses_the_weights_of_another_model(change, tmp_path):
    attach(tiny.lm(**change), [AdapterConfig(kind="full")], [0]).save(0, tmp_path)
    with pytest.raises(ValueError, match="expected the weights of this model; found others"):
        attach(tiny.lm(), [AdapterConfig(kind="full")], [0]).load(0, tmp_path)


def test_full_is_never_packed_and_kinds_do_not_mix():
    full, lora = AdapterConfig(kind="full"), AdapterConfig()
    with pytest.raises(ValueError, match="expected one `full` run a process"):
        attach(tiny.lm(), [full, full], [0, 1])
    with pytest.raises(ValueError, match=r"adapter.kind: expected one kind in a pack"):
        attach(tiny.lm(), [full, lora], [0, 1])
