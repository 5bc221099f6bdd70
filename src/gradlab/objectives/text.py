"""How completions are read: words, sentences, numbers. Case never matters.

Word-level tokenizers put spaces around punctuation (`can ' t`, `answer : - 7`); both spellings read alike.
"""

from __future__ import annotations

import re

_APOSTROPHE = re.compile("[\u2018\u2019\u02bc\u00b4\u2032\uff07`]")
_CONTRACTION = re.compile(r"(?<=\w)\s*'\s*(?=(?:t|s|m|d|re|ll|ve)\b)")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\W|$)")  # not the point of 3.5

NUMBER = r"[-\u2212]?\s*(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)"
"""A number: sign (a space may follow it), digits with or without thousands commas, decimals."""
_NUMBER = re.compile(NUMBER)
_MARKER = re.compile(r"\banswer\s*:", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters and digits, contractions kept whole (`can ' t` is `can't`)."""
    return _WORD.findall(_CONTRACTION.sub("'", _APOSTROPHE.sub("'", text.lower())))


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence. A tail with no full stop is one; a sentence with no word is none."""
    return [found for part in _SENTENCE_END.split(text) if (found := words(part))]


def final_number(text: str) -> float | None:
    """The number after the last `answer :`; with no such mark the last number. None: there is none.

    A minus right behind a digit or a bracket is a subtraction, not a sign (`10 - 3` ends in 3).
    """
    if marks := list(_MARKER.finditer(text)):
        numbers = _numbers(text[marks[-1].end() :])
        return numbers[0] if numbers else None
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _numbers(text: str) -> list[float]:
    values = []
    for match in _NUMBER.finditer(text):
        size = float(re.sub(r"[-\u2212\s,]", "", match[0]))
        before = text[: match.start()].rstrip()[-1:]
        negative = match[0][0] in "-\u2212" and not (before.isdigit() or before == ")")
        values.append(-size if negative else size)
    return values
