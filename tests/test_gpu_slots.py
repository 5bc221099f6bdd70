"""What a job is estimated to need of a GPU, against real models, and what a call offers it."""

from types import SimpleNamespace

import pytest
import tiny
import torch

from gradlab import evaluate, logprob, models
from gradlab.adapters import attach
from gradlab.config import AdapterConfig, BaseConfig, ModelConfig
from gradlab.gpu.devices import Gpu
from gradlab.gpu.shapes import shape_of
from gradlab.gpu.slots import EVALUATION_ROWS, HEAD_ELEMENTS, SLOT_GIB, Capacity, peak_gib, slots
from gradlab.pretrain import build_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3")


class Tokens(SimpleNamespace):
    eos_token_id, pad_token_id = 1, 0

    def __len__(self):
        return self.size


def base(family="llama", **sizes):
    return BaseConfig(family=family, corpus=("corpus.jsonl",), **sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_made_here_is_counted_exactly(family, tmp_path):
    config = base(family, vocab_size=300, hidden_size=48, intermediate_size=80, num_layers=3, num_heads=4)
    model = build_model(config, Tokens(size=300))
    shape = shape_of(ModelConfig(id="base/x"), config)
    assert shape.parameters == model.num_parameters()
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    assert shape.block_weights == sum(m.weight.numel() for m in linears)
    model.config.save_pretrained(tmp_path)
    assert shape_of(ModelConfig(id=str(tmp_path)), None).block_weights == shape.block_weights


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "down_proj"), ("layers.0.self_attn.k_proj",)])
def test_adapters_are_counted(targets):
    from gradlab.gpu.slots import _trained

    config = tiny.config(adapter={"rank": 3, "targets": targets})
    made = base(vocab_size=len(tiny.tokenizer()), hidden_size=32, intermediate_size=64, num_layers=2)
    lm = models.wrap(tiny.model(), tiny.tokenizer())
    adapter = attach(lm, [config.adapter], [0])
    found = sum(p.numel() for p in adapter.named_parameters().values())
    counted = _trained(config, shape_of(config.model, made))
    assert counted == found if targets[0] != "layers.0.self_attn.k_proj" else counted == 2 * found, "an upper bound"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind,dtype", [("lora", "float32"), ("lora", "bfloat16"), ("full", "float32")])
def test_activations_are_at_most_what_is_estimated(family, kind, dtype):
    """What autograd saves of a token in one more block."""
    from gradlab.gpu.slots import _SAVED

    width, mlp, tokens = 64, 160, 2 * 64

    def saved(layers):
        sizes = {"hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "head_dim": 16}
        lm = models.wrap(tiny.model(family, **sizes).to(getattr(torch, dtype)), tiny.tokenizer())
        attach(lm, [AdapterConfig(kind=kind, rank=1)], [0])
        weights = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
        kept = {}  # held, so that no storage's address is used twice

        def keep(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            lm.hidden(torch.randint(5, 250, (2, tokens // 2), generator=torch.Generator().manual_seed(0)))
        return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)

    by_width, by_mlp = _SAVED[kind, dtype != "float32"]
    found, estimate = (saved(3) - saved(2)) / tokens, by_width * width + by_mlp * mlp
    assert 0.5 * estimate < found <= 1.02 * estimate, (found, estimate)  # the rank's products are left out


def test_constants_are_those_of_the_code_they_speak_of():
    assert HEAD_ELEMENTS == logprob._CHUNK_ELEMENTS_CUDA
    assert EVALUATION_ROWS == evaluate.ROWS


@pytest.mark.parametrize(
    "name,millions",
    [
        ("SimpleStories/SimpleStories-1.25M", 1.25),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135),
        ("Qwen/Qwen2-0.5B-Instruct", 500),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1100),
        ("someone/llama-3.2-8b-4bit", 8000),
        ("mistralai/Mixtral-8x7B-v0.1", 56000),
        ("Qwen/Qwen3-30B-A3B", 30000),
    ],
)
def test_a_hub_models_name_tells_its_size(name, millions):
    shape = shape_of(ModelConfig(id=name), None)
    assert shape.parameters == round(millions * 1e6)
    assert 0.4 * shape.parameters < shape.block_weights <= shape.parameters


def test_a_model_of_unknown_size_needs_a_number(tmp_path):
    message = r"placement.gpu_slots: expected a number for model.id '{}', which {}; found auto. Give the GPU slots"
    for name in ("openai-community/gpt2", "microsoft/Phi-3-mini-4k-instruct"):
        with pytest.raises(ValueError, match=message.format(name, "does not tell its size in its name")):
            slots([tiny.config(model={"id": name})])
    for text, why in ((None, "has no config.json"), ("{", "has a config.json that is no JSON"), ("{}", "has no 'hidd")):
        if text:
            (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=why):
            slots([tiny.config(model={"id": str(tmp_path)})])
    assert slots([tiny.config(model={"id": "gpt2"}, placement={"gpu_slots": 3})]) == 3


BIG = {"model": {"id": "meta/Llama-7B", "dtype": "bfloat16"}}
WIDE = {"batch_size": 16, "num_generations": 4, "max_new_tokens": 512}


def half_b(**changes):
    return tiny.config(model={"id": "Qwen/Qwen2-0.5B", "dtype": "bfloat16"}, **changes)


@pytest.mark.parametrize(
    "more",
    [
        {"adapter": {"rank": 256}},
        {"rollout": {"batch_size": 16, "num_generations": 4, "max_new_tokens": 12}},
        {"model": {"id": "Qwen/Qwen2-1.5B", "dtype": "bfloat16"}},
        {"model": {"id": "Qwen/Qwen2-0.5B"}},
        {"model": {"id": "Qwen/Qwen2-0.5B"}, "adapter": {"kind": "full"}},
    ],
)
def test_what_is_larger_is_estimated_larger(more):
    assert peak_gib([tiny.config(**{"model": {"id": "Qwen/Qwen2-0.5B", "dtype": "bfloat16"}} | more)]) > peak_gib(
        [half_b()]
    )


def test_smaller_by_quantization_and_microbatch():
    large = {"rollout": {"batch_size": 256, "num_generations": 4, "max_new_tokens": 256}}
    assert peak_gib([half_b(**large)]) > 1.5 * peak_gib([half_b(**large, placement={"microbatch_tokens": 2048})])
    quantized = tiny.config(model={"id": "Qwen/Qwen2-0.5B", "dtype": "bfloat16", "quantize": "4bit"})
    assert peak_gib([quantized]) < peak_gib([half_b()])
    cut = {"placement": {"microbatch_tokens": 512}}
    all_graphs_at_once = half_b(**cut, weighting={"name": "mgda"})
    assert peak_gib([all_graphs_at_once]) > 2 * peak_gib([half_b(**cut)])


def test_a_pack_holds_the_frozen_weights_once():
    alone, pair = peak_gib([tiny.config(**BIG)]), peak_gib([tiny.config(**BIG, seed=s) for s in range(2)])
    frozen = 2 * 7e9 / 2**30
    assert 0 < pair - alone < alone - frozen
    ranks = [half_b(adapter={"rank": 4}), half_b(adapter={"rank": 256})]
    assert peak_gib(ranks) == peak_gib([ranks[1], ranks[1]]), "ranks are padded"


def test_slots_are_the_estimate_over_the_size_of_one():
    run = half_b()
    assert slots([run]) == -(-peak_gib([run]) // SLOT_GIB)
    assert slots([run], slot_gib=0.5) == -(-peak_gib([run]) // 0.5)
    given = [half_b(placement={"gpu_slots": n}) for n in (2, 5)]
    assert slots(given) == 5
    assert slots([half_b(placement={"device": "cpu", "gpu_slots": 5})]) == 0


CARD = Gpu("GPU-a", 24576)


def test_without_a_gpu_slots_are_inert():
    none = Capacity(4)
    assert none.ask("s/r", [tiny.config(model={"id": "gpt2"}, placement={"gpu_slots": 9})], None) == 0
    assert none.on_gpus is None
    insisting = tiny.config(placement={"gpu_slots": 9, "device": "cuda"})
    with pytest.raises(ValueError, match=r"gpu_slots: expected at most 4, the limit of this call; found 9 for s/r\. R"):
        none.ask("s/r", [insisting], None)


def test_a_slot_is_a_gpus_memory_over_the_slots_it_offers():
    """So that slots that are all taken are memory that is all used, on a small card and on a large one."""
    assert Capacity(4, [CARD]).size_gib == pytest.approx(0.95 * 24 / 4)
    assert Capacity(16, [CARD, CARD]).size_gib == pytest.approx(0.95 * 24 / 8)
    assert Capacity(16, [CARD, Gpu("GPU-b", 8192)]).size_gib == pytest.approx(0.95 * 8 / 8), "the smallest card's"
    assert Capacity(4, [Gpu("MIG-a", None)]).size_gib == SLOT_GIB
    assert Capacity(4, [CARD], slot_gib=2.0).size_gib == 2.0
    unlimited = Capacity(None, [CARD, CARD])
    assert (unlimited.size_gib, unlimited.on_gpus) == (SLOT_GIB, 10)
    assert Capacity(4, [CARD], cluster=True).size_gib == SLOT_GIB
    assert Capacity(4, cluster=True).ask("s/r", [half_b()], None) == slots([half_b()])
    assert Capacity(4, [CARD], cluster=True).on_gpus is None


def test_what_one_gpu_does_not_offer_is_refused():
    two = Capacity(4, [CARD, CARD])
    assert two.ask("s/r", [half_b()], None) == 1
    message = r"expected at most 2, what one of 2 GPU\(s\) offers of 4 slots; found 3 for s/r\. Raise the l"
    with pytest.raises(ValueError, match=message):
        two.ask("s/r", [half_b(placement={"gpu_slots": 3})], None)
    with pytest.raises(ValueError, match=r"found 4 for s/r \(about 3\d\.\d GiB in slots of 11\.4\)\. Lower"):
        two.ask("s/r", [half_b(rollout=WIDE)], None)
    assert two.ask("s/r", [half_b(rollout=WIDE, placement={"gpu_slots": 2})], None) == 2, "a number stands"
    message = r"gpu_slots: expected at most 4 slots of gpu_slot_gib=8 on 2 GPU\(s\) with 22.8 GiB each; found 16"
    with pytest.raises(ValueError, match=message):
        Capacity(16, [CARD, CARD], slot_gib=8.0).ask("s/r", [half_b()], None)
    with pytest.raises(
        ValueError, match=r"at most 4, the limit .* found 7 for s/r \(about 3\d.* GiB .*\)\. Lower placem"
    ):
        Capacity(4, [CARD]).ask("s/r", [half_b(rollout=WIDE)], None)
    with pytest.raises(ValueError, match=r"expected at most 0, the limit of this call; found 3 .* Raise the limit"):
        Capacity(0, [CARD]).ask("s/r", [half_b()], None)
