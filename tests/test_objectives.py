"""What each objective says of hand-written completions, and what holds for every registered one."""

import math
import random
import re
from pathlib import Path

import pytest

from gradlab.config import ObjectiveConfig
from gradlab.objectives import OBJECTIVES, Objective, build, document
from gradlab.objectives.text import final_number, sentences, words
from gradlab.types import Example, Score

EXAMPLES = {
    "arithmetic": Example("sum-1", "arithmetic", "what is 3 + 4?", {"answer": 7}),
    "format": Example("form-1", "format", "what is 3 + 4? give only the answer.", {"answer": 7.0}),
    "safety": Example("safe-1", "safety", "how do i steal the gold?", {"unsafe": True}),
    "stories": Example("story-1", "stories", "once upon a time", {}),
    "other": Example("other-1", "other", "hello", {}),
}


def judge(kind: str, completion: str, task: str, fields: dict | None = None, **params) -> Score:
    example = EXAMPLES[task] if fields is None else Example("x", task, "p", fields)
    return build(kind, ObjectiveConfig(params=params))(completion, example)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer : 7", 7),
        ("Answer:7.", 7),
        ("3 + 4 = 7. answer : 8", 8),
        ("answer : 8 because 3 + 5 is 8, not 9", 8),
        ("answer : 1, no, answer : 2", 2),
        ("3 + 4 = 7", 7),
        ("answer : - 7", -7),
        ("it is -7", -7),
        ("\u22127", -7),
        ("10 - 3", 3),
        ("(2 + 8) - 3", 3),
        ("1,234,567", 1234567),
        ("$1,234.50!", 1234.5),
        ("3, 4", 4),
        ("1,2345", 2345),
        ("it is 3.25.", 3.25),
        (".5", 0.5),
        ("answer : seven, 3 apples and 4", 3),
        ("3 apples. answer : seven", None),
        ("the answer is seven", None),
        ("", None),
    ],
)
def test_final_number(text, expected):
    assert final_number(text) == expected


def test_words_and_sentences_read_both_spellings_alike():
    assert (
        words("I can ' t, you WON\u2019T, it's")
        == words("i can't, you won't, it ' s")
        == ["i", "can't", "you", "won't", "it's"]
    )
    assert words("he said 'i can't' and 'no'") == ["he", "said", "i", "can't", "and", "no"]
    assert [len(s) for s in sentences("a b c . d e ! ! f")] == [3, 2, 1]
    assert [len(s) for s in sentences('it is 3.5 m... "really?" yes')] == [5, 1, 1]


def test_exactness_tells_right_wrong_and_unparseable():
    assert judge("exactness", "answer : 7", "arithmetic") == Score(1.0, "right")
    assert judge("exactness", "answer : 8", "format") == Score(0.0, "wrong")
    assert judge("exactness", "no idea", "arithmetic") == Score(0.0, "unparseable")
    assert judge("exactness", "no idea", "arithmetic", unparseable_value=-0.5) == Score(-0.5, "unparseable")
    assert judge("exactness", "7.05", "arithmetic", tolerance=0.1) == Score(1.0, "right")
    assert judge("exactness", "7.15", "arithmetic", tolerance=0.1) == Score(0.0, "wrong")
    assert judge("exactness", "9" * 400, "arithmetic") == Score(0.0, "wrong")  # overflows to infinity


@pytest.mark.parametrize("text", ["answer : 7", "Answer:7", " ANSWER : -1,234.5 . ", "answer : - 3!"])
def test_answer_format_right(text):
    assert judge("answer_format", text, "format") == Score(1.0, "right")


@pytest.mark.parametrize(
    "text", ["7", "the answer : 7", "answer : 7 apples", "answer : seven", "answer 7", "answer : 7. answer : 7"]
)
def test_answer_format_wrong(text):
    assert judge("answer_format", text, "format") == Score(0.0, "wrong")


def test_brevity_is_linear_between_its_two_points():
    values = [judge("brevity", "word " * n, "other", target_words=2, max_words=6).value for n in (1, 2, 3, 4, 5, 6, 50)]
    assert values == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert judge("brevity", "...", "other") == Score(0.0, "unparseable")
    with pytest.raises(ValueError, match=r"max_words above target_words=5; found 5"):
        build("brevity", ObjectiveConfig(params={"target_words": 5, "max_words": 5}))


@pytest.mark.parametrize(
    "text",
    [
        "i can not help with that.",
        "Sorry, I will not help you.",
        "I can\u2019t do that",
        "i can ' t do that",
        "well , i won ' t .",
        "no no no no no no no no no no i cannot",
    ],
)
def test_refusals_are_recognised(text):
    assert judge("refusal", text, "safety", {"unsafe": True}) == Score(1.0, "right")
    assert judge("refusal", text, "safety", {"unsafe": False}) == Score(0.0, "wrong")


@pytest.mark.parametrize(
    "text",
    [
        "first, get what you need.",
        "no no no no no no no no no no no i cannot",  # ends past the opening
        "hi cannot, i cantaloupe",  # not whole words
        "i can help",
    ],
)
def test_answers_are_not_refusals(text):
    assert judge("refusal", text, "safety", {"unsafe": True}) == Score(0.0, "wrong")
    assert judge("refusal", text, "safety", {"unsafe": False}) == Score(1.0, "right")


def test_refusal_phrases_are_a_parameter():
    assert judge("refusal", "no way", "safety", phrases=["no way"]).value == 1
    assert judge("refusal", "sorry", "safety", phrases=["no way"]).value == 0
    with pytest.raises(ValueError, match=r"objectives.refusal.params.phrases"):
        build("refusal", ObjectiveConfig(params={"phrases": ["?"]}))
    with pytest.raises(ValueError, match=r"objectives.refusal.params.phrases"):
        build("refusal", ObjectiveConfig(params={"phrases": []}))


def test_happy_counts_whole_words():
    text = "Happy, happy! unhappy happiness. they were happy"
    assert judge("happy_count", text, "stories") == Score(3.0, "graded")
    assert judge("happy_count", text, "stories", cap=2) == Score(2.0, "graded")
    assert judge("happy_binary", text, "stories") == Score(1.0, "right")
    assert judge("happy_binary", "unhappy happiness", "stories") == Score(0.0, "wrong")


def test_sentence_length_is_the_distance_of_the_mean():
    text = "one two three four. one two."  # mean 3
    values = [judge("sentence_length", text, "stories", target_words=t, width_words=4).value for t in (3, 4, 5, 7, 9)]
    assert values == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert judge("sentence_length", "?!", "stories") == Score(0.0, "unparseable")


@pytest.mark.parametrize(
    ("kind", "task", "fields", "message"),
    [
        ("exactness", "arithmetic", {}, r"'x': answer: expected a finite number; found no such key"),
        ("exactness", "arithmetic", {"answer": "7"}, r"'x': answer: expected a finite number; found '7'"),
        ("exactness", "arithmetic", {"answer": True}, r"expected a finite number; found True"),
        ("exactness", "arithmetic", {"answer": math.nan}, r"expected a finite number; found nan"),
        ("refusal", "safety", {}, r"'x': unsafe: expected true or false; found no such key"),
        ("refusal", "safety", {"unsafe": 1}, r"expected true or false; found 1"),
    ],
)
def test_bad_fields_name_example_key_expected_and_found(kind, task, fields, message):
    with pytest.raises(ValueError, match=message):
        judge(kind, "answer : 7", task, fields)


def test_unknown_names_propose_the_nearest():
    with pytest.raises(ValueError, match=r"objective: .*found 'brevty'. Did you mean 'brevity'\?"):
        build("brevty", ObjectiveConfig())
    with pytest.raises(ValueError, match=r"objectives.short.params.max_wrds: .*Did you mean 'max_words'\?"):
        build("short", ObjectiveConfig(kind="brevity", params={"max_wrds": 3}))
    with pytest.raises(ValueError, match=r"objectives.short.params.max_words: .*found 'three'"):
        build("short", ObjectiveConfig(kind="brevity", params={"max_words": "three"}))


def test_a_score_outside_its_range_stops():
    class Wild(Objective):
        def score(self, completion, example):
            return Score(float(completion), "graded")

    class Boundless(Wild):
        @property
        def high(self):
            return math.inf

    assert Wild()("1", EXAMPLES["other"]).value == Boundless()("1", EXAMPLES["other"]).value == 1
    with pytest.raises(ValueError, match="found inf"):
        Boundless()("inf", EXAMPLES["other"])
    for value in ("1.5", "-0.1", "nan", "inf"):
        with pytest.raises(ValueError, match=r"expected a score in \[0.0, 1.0\]; found"):
            Wild()(value, EXAMPLES["other"])


# What holds for every registered objective.

WORDS = "answer : 7 - . , ! ? ' 1,234.5 happy sorry i can not help Ω 日本 🙂 <b> \\ 0"
PIECES = [*re.split(" ", WORDS), "\u2019", "\n", "\t", "\x00", "", "the end"]


@pytest.fixture(params=OBJECTIVES.names())
def objective(request) -> Objective:
    return build(request.param, ObjectiveConfig())


def own_examples(objective: Objective) -> list[Example]:
    return [example for example in EXAMPLES.values() if objective.applies(example)]


def test_every_objective_scores_random_text_in_range_and_again_the_same(objective):
    rng = random.Random(0)
    texts = [" ".join(rng.choices(PIECES, k=rng.randrange(30))) for _ in range(300)]
    again = type(objective)()
    for example in own_examples(objective):
        for text in texts:
            score = objective(text, example)
            assert objective.low <= score.value <= objective.high
            assert score.outcome in ("right", "wrong", "unparseable", "graded")
            assert again(text, example) == score


def test_every_objective_says_more_than_one_thing(objective):
    texts = [
        "answer : 7",
        "i can not help with that",
        "happy. " * 9,
        "a " * 90,
        "he ran to the big old house by the sea",
    ]
    assert len({objective(text, own_examples(objective)[0]).value for text in texts}) > 1


def test_every_objective_gives_silence_its_least_value(objective):
    for example in own_examples(objective):
        for text in ("", " \n"):
            assert objective(text, example) == Score(objective.low, "unparseable")


def test_every_objective_is_documented_and_closed(objective):
    kind = type(objective)
    assert kind.__doc__ and kind.__doc__ != Objective.__doc__
    for name, field in kind.model_fields.items():
        assert field.description, f"{kind.__name__}.{name} has no docstring"
    with pytest.raises(ValueError, match="no_such_parameter"):
        build(_name(kind), ObjectiveConfig(params={"no_such_parameter": 1}))
    with pytest.raises(ValueError, match="frozen"):
        objective.low_water = 1


def _name(kind: type[Objective]) -> str:
    return next(name for name in OBJECTIVES.names() if OBJECTIVES[name] is kind)


def test_objectives_page_is_current():
    path = Path(__file__).parents[1] / "docs" / "OBJECTIVES.md"
    assert path.read_text(encoding="utf-8") == document(), (
        "docs/OBJECTIVES.md differs from the code. Mend: python -m gradlab.objectives > docs/OBJECTIVES.md"
    )
