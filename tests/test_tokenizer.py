"""The tokenizer's behaviours that decide whether training on its ids is right."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from gradlab.tokenizer import encode_document, train_tokenizer

TEXTS = [
    "once upon a time there was a fox named tim.",
    "question: what is 12 plus 7? answer: 19.",
    "write a function.\ndef add_2(x):\n    if x > 2:\n        return x + 2",
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


@pytest.mark.parametrize("text", [*TEXTS[:3], "unseen: café, 中文 🙂\t\tzebra!?", "a  b \n\n   c ", "can't"])
def test_text_survives_a_round_trip(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_case_is_lowered_and_nothing_else(tokenizer):
    assert tokenizer.decode(tokenizer("Tim  SAID:\n    Hi")["input_ids"]) == "tim  said:\n    hi"


def test_prompts_carry_no_special_token_and_documents_end_in_eos(tokenizer):
    prompt, completion = "question: what is 12 plus 7?", " answer: 19."
    prompt_ids = tokenizer(prompt)["input_ids"]
    assert not set(prompt_ids) & set(tokenizer.all_special_ids)
    ids, n_prompt = encode_document(tokenizer, prompt, completion)
    assert ids[:n_prompt] == prompt_ids  # what is trained on is what will be sampled from
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[:-1]
    assert tokenizer.decode(ids[n_prompt:-1]) == completion


def test_pad_eos_and_unk_differ_and_there_is_no_bos(tokenizer):
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer.bos_token_id is None


def test_every_digit_is_a_token(tokenizer):
    tokens = tokenizer.tokenize("12 plus 1234, x7")
    assert all(sum(c.isdigit() for c in token) <= 1 for token in tokens)
    assert [t for t in tokens if any(c.isdigit() for c in t)] == ["1", "2", "Ġ1", "2", "3", "4", "7"]


def test_ids_fit_the_vocabulary_and_training_is_repeatable(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert len(tokenizer) <= 400
    again = train_tokenizer(TEXTS, 400)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_autotokenizer_loads_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:3]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.pad_token, loaded.eos_token, loaded.unk_token) == ("<pad>", "<eos>", "<unk>")
    assert loaded.padding_side == "left"


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match=r"vocab_size: expected at least 259 .* found 100"):
        train_tokenizer(TEXTS, 100)
