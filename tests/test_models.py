"""The border: what is loaded, what is refused, and what a prompt is made of."""

import copy

import pytest
import tiny
import torch
from tokenizers import processors
from transformers import Gemma2Config, Gemma2ForCausalLM

from gradlab import models
from gradlab.adapters import attach
from gradlab.config import AdapterConfig, ModelConfig
from gradlab.types import Example


def example(prompt: str = "what is 2 plus 3?") -> Example:
    return Example("e7", "arithmetic", prompt)


def test_every_family_has_a_plain_head():
    for family in tiny.FAMILIES:
        tiny.lm(family)  # wrap() checks it


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_a_soft_capped_head_is_refused_even_where_logits_are_small(std):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=std,
    )
    with pytest.raises(ValueError, match="soft cap"):
        models.wrap(Gemma2ForCausalLM(config), tiny.tokenizer())


@pytest.mark.parametrize("change", [lambda x: 1.05 * x, lambda x: x + 0.5])
def test_a_scaled_or_shifted_head_is_refused(change):
    model = tiny.model()
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: change(output))
    with pytest.raises(ValueError, match="whose head adds something"):
        models.wrap(model, tiny.tokenizer())


def test_an_eos_that_the_tokenizer_appends_is_taken_off_the_prompt():
    lm = tiny.lm()
    plain = models.encode_prompt(lm, example(), chat_template=False)
    tokenizer = copy.deepcopy(lm.tokenizer)
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, eos)]
    )
    assert tokenizer(example().prompt)["input_ids"] == [*plain, eos]
    assert models.encode_prompt(models.wrap(lm.model, tokenizer), example(), chat_template=False) == plain
    assert not set(plain) & set(lm.eos_ids)


def test_every_eos_of_the_generation_config_ends_a_completion():
    model = tiny.model()
    model.generation_config.eos_token_id = [1, 7]
    assert models.wrap(model, tiny.tokenizer()).eos_ids == (1, 7)
    model.generation_config.eos_token_id = None
    assert models.wrap(model, tiny.tokenizer()).eos_ids == (tiny.tokenizer().eos_token_id,)


def test_without_a_pad_the_eos_pads_and_no_token_of_a_row_is_lost():
    """Masks come from lengths: with PAD == EOS the rollout is the one with a PAD of its own."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.pad_token = None
    lm = models.wrap(tiny.model(), tokenizer)
    assert lm.pad_id == lm.eos_ids[0]
    own, shared = tiny.rollout(tiny.lora(tiny.lm())), tiny.rollout(tiny.lora(lm))
    assert torch.equal(own.length_N, shared.length_N)
    assert torch.equal(own.logp_NC, shared.logp_NC)


def test_no_eos_at_all_is_an_error():
    tokenizer, model = copy.deepcopy(tiny.tokenizer()), tiny.model()
    tokenizer.eos_token, model.generation_config.eos_token_id = None, None
    with pytest.raises(ValueError, match="expected an EOS token"):
        models.wrap(model, tokenizer)


def test_a_prompt_longer_than_the_context_is_named():
    lm = tiny.lm(max_position_embeddings=20)
    models.check_context(lm, {"short": [5] * 10}, max_new_tokens=10)
    with pytest.raises(ValueError, match=r"example 'long': expected at most 10 tokens .* found 11"):
        models.check_context(lm, {"short": [5] * 10, "long": [5] * 11}, max_new_tokens=10)
    with pytest.raises(
        ValueError, match=r"rollout.max_new_tokens: expected less than the context of 20 tokens; found 20"
    ):
        models.check_context(lm, {"short": [5] * 10}, max_new_tokens=20)


def test_a_prompt_without_tokens_and_a_missing_chat_template_are_errors():
    with pytest.raises(ValueError, match="'e7': expected at least one token"):
        models.encode_prompt(tiny.lm(), example("<eos>"), chat_template=False)
    with pytest.raises(ValueError, match=r"model.chat_template: expected a tokenizer with a chat template"):
        models.encode_prompt(tiny.lm(), example(), chat_template=True)


def test_a_chat_template_wraps_one_user_turn_and_opens_the_answer():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}bot:{% endif %}"
    )
    ids = models.encode_prompt(models.wrap(tiny.model(), tokenizer), example("2 plus 3?"), chat_template=True)
    assert tokenizer.decode(ids) == "user: 2 plus 3?<eos>bot:"


def test_a_base_that_was_not_made_is_an_error_that_says_how(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scripts/make_base\.py"):
        models.load(ModelConfig(id="base/none"), bases=tmp_path)


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"placement.device: expected a CUDA device"):
        models.pick_device("cuda")
    assert models.pick_device("auto").type == "cpu"


@pytest.fixture
def saved(tmp_path):
    tiny.model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


def test_what_is_loaded_is_what_was_saved_frozen_and_in_evaluation_mode(saved):
    lm = models.load(ModelConfig(id=saved), device="cpu")
    expected = tiny.model().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in lm.model.state_dict().items())
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantized_on_cpu_trains_as_its_dequantized_weights_would(tmp_path, quantize):
    """Hidden states, and LoRA's gradients in every layer, are those of a float32 model with the same
    (quantized, then dequantized) weights; a forward without gradients before it changes nothing."""
    tiny.model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)  # NF4's blocks are of 64
    tiny.tokenizer().save_pretrained(tmp_path)
    lm = models.load(ModelConfig(id=str(tmp_path), quantize=quantize), device="cpu")
    twin = models.load(ModelConfig(id=str(tmp_path)), device="cpu")
    ids = torch.arange(5, 25).unsqueeze(0)
    exact = twin.hidden(ids)
    linears = {n: m for n, m in lm.model.named_modules() if type(m).__name__ in ("Linear8bitLt", "Linear4bit")}
    assert len(linears) == 14
    with torch.no_grad():
        lm.hidden(ids)
        for name, linear in linears.items():
            bias = 0 if linear.bias is None else linear.bias
            weight = linear(torch.eye(linear.in_features)) - bias
            twin.model.get_submodule(name).weight.copy_(weight.T)

    def gradients(lm):
        adapter = tiny.lora(lm, [2])
        hidden = lm.hidden(ids)
        (hidden * torch.linspace(-1, 1, 64)).sum().backward()
        return hidden, {name: p.grad for name, p in adapter.named_parameters().items()}

    (expected, expected_grad), (found, found_grad) = gradients(twin), gradients(lm)
    assert not torch.allclose(expected, exact, atol=1e-2)  # it is quantized
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    for name, gradient in found_grad.items():
        scale = expected_grad[name].abs().max().item()
        torch.testing.assert_close(gradient, expected_grad[name], atol=1e-3 * scale, rtol=1e-3)


def test_an_unknown_lora_target_names_the_nearest():
    with pytest.raises(ValueError, match=r"adapter.targets: expected one of .*q_proj.*Did you mean 'q_proj'\?"):
        attach(tiny.lm(), [AdapterConfig(targets=("q_prj",))], [0])
    with pytest.raises(ValueError, match=r"adapter.targets"):
        attach(tiny.lm(), [AdapterConfig(targets=("lm_head",))], [0])
    adapter = attach(tiny.lm(), [AdapterConfig(targets=("q_proj", "layers.1.mlp.up_proj"))], [0])
    assert sorted(adapter.modules) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
    ]
