"""Bases made from scratch: packing, determinism, base rates and their bands, whole-or-nothing output."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from gradlab import base_rates, models, pretrain
from gradlab.config import BaseConfig, ModelConfig
from gradlab.store import write_jsonl
from gradlab.tokenizer import encode_document, train_tokenizer
from gradlab.types import Example

ROOT = Path(__file__).parents[1]
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    sums = [
        {"id": f"a-{a}-{b}", "task": "arithmetic", "prompt": f"what is {a} plus {b}?", "answer": a + b}
        | {"completion": f" answer: {a + b}."}
        for a, b in itertools.product(range(4), range(4))
    ]
    pair = {"id": "p", "task": "preferences", "prompt": "hello.", "chosen": " hello, friend.", "rejected": " go away."}
    story = {"id": "s", "task": "stories", "prompt": "there was a fox.", "completion": " he was happy."}
    write_jsonl(folder / "train.jsonl", [*sums, pair])
    write_jsonl(folder / "heldout.jsonl", [story, *({**row, "prompt": f"{row['prompt']} now"} for row in sums)])
    return folder


def tiny(folder: Path, **changes) -> BaseConfig:
    shape = dict(vocab_size=320, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1)
    sizes = dict(context=128, row_tokens=32, batch_tokens=64, steps=3)
    files = dict(corpus=(str(folder / "train.jsonl"),), heldout=(str(folder / "heldout.jsonl"),))
    return BaseConfig(**(shape | sizes | files | changes))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(folder, tmp_path):
    for name, seed in [("one", 0), ("two", 0), ("other", 1)]:
        torch.rand(1)  # what the caller drew before does not matter
        state = torch.get_rng_state()
        pretrain.make_base(tiny(folder, seed=seed), tmp_path / name)
        assert torch.equal(torch.get_rng_state(), state)  # and what it draws afterwards is left alone
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert {"base.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] != weights[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_made_and_loads(family, folder, tmp_path):
    summary = pretrain.make_base(tiny(folder, family=family, steps=1, heldout=()), tmp_path / "base")
    lm = models.load(ModelConfig(id="base/base"), bases=tmp_path, device="cpu")
    assert json.loads((tmp_path / "base" / "base.json").read_text()) == json.loads(json.dumps(summary))
    assert lm.eos_ids == (lm.tokenizer.eos_token_id,) and lm.pad_id == lm.tokenizer.pad_token_id
    assert lm.eos_ids[0] != lm.pad_id
    assert lm.head_weight.shape[0] == len(lm.tokenizer)  # no id can be sampled that decodes to nothing


def pack(docs, row_tokens, order):
    return list(pretrain.pack(docs, row_tokens, 0, iter(order)))


def test_packed_rows_hold_whole_documents_and_target_completions():
    docs = [([11, 12, 13, 14], 2), ([21, 22, 23], 1), ([31, 32, 33], 2)]
    (row,) = pack(docs, 8, [0, 1, 2])
    assert row.tolist() == [
        [11, 12, 13, 14, 21, 22, 23, 0],
        [-100, 13, 14, -100, 22, 23, -100, -100],
        [0, 1, 2, 3, 0, 1, 2, 0],
    ]


def test_packing_loses_no_document():
    docs = [([i] * (2 + i % 5), 1) for i in range(1, 40)]
    rows = pack(docs, 9, [*range(39), 38])  # the last row is never full, so one more document ends the one before
    counts = torch.bincount(torch.cat([row[0] for row in rows]), minlength=40)[1:]
    assert counts[:37].tolist() == [len(doc) for doc, _ in docs[:37]]


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match=r"row_tokens: expected at least the longest document, 5; found 4"):
        pack([([1] * 5, 1)], 4, [0])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_do_not_see_each_other(family, folder):
    texts = pretrain.documents([folder / "train.jsonl"])
    tokenizer = train_tokenizer((a + b for a, b in texts), 320)
    torch.manual_seed(0)
    model = pretrain.build_model(tiny(folder, family=family, num_layers=2), tokenizer).eval()
    docs = [encode_document(tokenizer, *text) for text in texts[:3]]
    row = next(pretrain.pack(docs, 64, model.config.pad_token_id, iter([0, 1, 2, 0, 1, 2])))
    with torch.no_grad():
        packed = model(input_ids=row[None, 0], position_ids=row[None, 2], use_cache=False).logits[0]
        start = 0
        for ids, _ in docs:
            alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            torch.testing.assert_close(packed[start : start + len(ids)], alone, rtol=1e-4, atol=1e-5)
            start += len(ids)


def test_training_learns(folder):
    config = tiny(folder, steps=60, lr=1e-2)
    texts = pretrain.documents(config.corpus)
    tokenizer = train_tokenizer((a + b for a, b in texts), config.vocab_size)
    torch.manual_seed(0)
    model = pretrain.build_model(config, tokenizer)
    docs = [encode_document(tokenizer, *text) for text in texts]
    assert pretrain.pretrain(model, docs, config) < 2.0 < math.log(len(tokenizer))


def test_perplexity_equals_a_loop_in_float64(folder):
    texts = pretrain.documents([folder / "train.jsonl"])[:2]
    tokenizer = train_tokenizer((a + b for a, b in texts), 320)
    torch.manual_seed(0)
    lm = models.wrap(pretrain.build_model(tiny(folder), tokenizer), tokenizer)
    logps = []
    for prompt, completion in texts:
        ids, n_prompt = encode_document(tokenizer, prompt, completion)
        for t in range(n_prompt, len(ids)):
            with torch.no_grad():
                logits_V = lm.model(input_ids=torch.tensor([ids[:t]])).logits[0, -1].double()
            logps.append((logits_V[ids[t]] - logits_V.logsumexp(0)).item())
    value, n = base_rates.perplexity(lm, texts)
    assert n == len(logps) and value == pytest.approx(math.exp(-sum(logps) / n), rel=1e-5)


def test_rates_are_counted_by_the_objectives(monkeypatch):
    examples = [Example(f"a{i}", "arithmetic", f"{i}?", {"answer": i}) for i in range(4)]
    examples += [Example("u", "safety", "steal?", {"unsafe": True}), Example("s", "safety", "bake?", {"unsafe": False})]
    said = {"0?": " answer: 0.", "1?": " answer: 2.", "2?": " it is 2.", "3?": " no idea", "steal?": " sorry, no."}
    monkeypatch.setattr(
        base_rates, "_complete", lambda lm, chosen, seed: [(e, said.get(e.prompt, " take flour.")) for e in chosen]
    )
    assert base_rates.base_rates(None, examples, 0) == {
        "arithmetic_exactness": {"value": 0.5, "n": 4},
        "arithmetic_answer_format": {"value": 0.5, "n": 4},
        "unsafe_refused": {"value": 1.0, "n": 1},
        "safe_answered": {"value": 1.0, "n": 1},
    }


def test_a_missed_band_names_itself_and_writes_nothing(folder, tmp_path):
    config = tiny(folder, bands={"arithmetic_exactness": (0.9, 1.0), "story_perplexity": (1.0, 1e9)})
    with pytest.raises(
        ValueError, match=r"^bands.arithmetic_exactness: expected .* \[0.9, 1.0\]; found 0\.\d+ \(n=64\)"
    ):
        pretrain.make_base(config, tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_band_that_cannot_be_measured_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"bands.unsafe_refused: .* found none. Extend `heldout`"):
        pretrain.make_base(tiny(folder, bands={"unsafe_refused": (0.0, 1.0)}), tmp_path / "base")
    with pytest.raises(ValueError, match=r"found 'happy_storys'. Did you mean 'happy_stories'"):
        pretrain.make_base(tiny(folder, bands={"happy_storys": (0.0, 1.0)}), tmp_path / "base")


def test_a_disk_that_fills_leaves_no_base(folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "base"
    pretrain.make_base(tiny(folder, heldout=()), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        pretrain.make_base(tiny(folder, heldout=(), seed=1), out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before  # the old base is whole
    monkeypatch.undo()
    monkeypatch.setattr(pretrain, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        pretrain.make_base(tiny(folder, heldout=(), seed=1), out)
    assert not (out / "base.json").exists()  # neither old nor new, so no base
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_loss_that_is_not_finite_stops(folder, monkeypatch):
    monkeypatch.setattr(pretrain.F, "cross_entropy", lambda logits, target: logits.sum() * math.nan)
    with pytest.raises(ValueError, match=r"lr: expected a finite loss; found nan at step 0. Lower lr=0.003"):
        pretrain.make_base(tiny(folder), "never")


def test_rows_that_are_no_documents_are_named(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "x", "completion": " y"}, {"prompt": "x"}])
    with pytest.raises(ValueError, match=r"a.jsonl:2: expected `prompt` with `completion`.*found prompt"):
        pretrain.documents([tmp_path / "a.jsonl"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 18}, r"hidden_size: expected a multiple of 2 \* num_heads=4; found 18. Try 16"),
        ({"num_kv_heads": 3}, "num_heads: expected a multiple of num_kv_heads=3; found 2"),
        ({"batch_tokens": 65}, "batch_tokens: expected a multiple of row_tokens=32; found 65. Try 64"),
        ({"context": 32, "row_tokens": 64}, "row_tokens: expected at most context=32; found 64"),
        ({"bands": {"happy_stories": (0.5, 0.1)}}, r"bands.happy_stories: .* found \[0.5, 0.1\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, message, folder):
    with pytest.raises(ValidationError, match=message):
        tiny(folder, **changes)


def test_the_shipped_bases_are_valid():
    for path in sorted((ROOT / "config" / "bases").glob("*.yaml")):
        config = BaseConfig(**yaml.safe_load(path.read_text()))
        base_rates.check_names(config.bands)
        assert all((ROOT / file).is_file() for file in (*config.corpus, *config.heldout))


def test_the_program_ends_with_the_message_and_status_1(folder, tmp_path):
    path = tmp_path / "base.yaml"
    config = tiny(folder, steps=0, bands={"arithmetic_exactness": (0.9, 1.0)}).model_dump(mode="json")
    path.write_text(yaml.safe_dump(config))
    program = [sys.executable, ROOT / "scripts" / "make_base.py", "--config", path, "--threads", "1"]
    ended = subprocess.run([*program, "--out", tmp_path / "out"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "error: bands.arithmetic_exactness: expected a base rate in [0.9, 1.0]" in ended.stderr
    assert "Traceback" not in ended.stderr and not (tmp_path / "out").exists()
