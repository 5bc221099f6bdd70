"""The toy tokenizer: byte-level BPE that reads lower case and counts in digits.

It behaves as SimpleStories' does where training can go wrong: no BOS; EOS only where a document is
encoded, never after a prompt; a PAD that is not EOS. Text is lower-cased and nothing else is lost,
so newlines and indentation of code survive. Each digit is a token, so that sums can be learned.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"

# A newline with its indentation; one digit; letters; marks: each with the blank before it. No other case is left.
_PIECES = Regex(r"\n *| ?\d| ?[^\W\d]+| ?[^\w\s]+|\s+")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab_size` entries, among them all 256 bytes, so that UNK never occurs.

    Save with `save_pretrained`; `AutoTokenizer` loads it. Raises ValueError if the entries cannot
    hold the bytes and the three special tokens.
    """
    smallest = 256 + 3
    if vocab_size < smallest:
        raise ValueError(f"vocab_size: expected at least {smallest} (256 bytes, 3 special tokens); found {vocab_size}.")
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
    )


def encode_document(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> tuple[list[int], int]:
    """Ids of a whole document (the prompt as it is sampled from, the completion, EOS); how many are prompt."""
    prompt_ids, completion_ids = tokenizer([prompt, completion], add_special_tokens=False)["input_ids"]
    return [*prompt_ids, *completion_ids, tokenizer.eos_token_id], len(prompt_ids)
