"""Healthy text passes, each kind of collapse fails, and each measure equals a hand count."""

import random
import zlib
from itertools import combinations
from pathlib import Path

import pytest

from gradlab.data import load_examples
from gradlab.diversity import LIMITS, diversity, measure
from gradlab.objectives.text import words

STORIES = [
    "once there was a fox who wanted to fly. he climbed a hill and jumped. he landed in a pond and laughed.",
    "the baker woke before the sun. she made bread for the whole village, and the smell drew every child to her door.",
    "a small boat sailed far from home. the wind was strong, but the captain sang until the storm grew tired.",
    "under the old bridge lived a troll with a garden. people feared him, yet his roses were the best in the land.",
    "nora found a key in the snow. it opened nothing in her house, so she wore it around her neck for luck.",
    "every night the owl counted stars. one night a star was missing, and the owl flew off to look for it.",
    "ben had a loud drum. his neighbours begged for quiet, so he played it only in the middle of the lake.",
    "the queen lost her crown at the market. a boy gave it back and asked for nothing but a slice of cake.",
    "two frogs argued about the rain. while they argued it stopped, and neither could remember who was right.",
    "grandfather planted an apple tree on the day mia was born. now they both lean against it when they are tired.",
    "a dragon caught a cold and could not breathe fire. the knights brought soup and forgot to fight.",
    "the clock in the tower ran backwards. people arrived before they left, and nobody was ever late for supper.",
    "a mouse moved into the piano. at midnight it danced on the keys, and the family thought of ghosts.",
    "sam drew a door on the wall with chalk. he knocked three times, just in case, and something knocked back.",
    "the river was angry that summer. it took the road and two fences, then went quietly back to its bed.",
    "a painter had only blue. she painted the sea, the sky, and a very sad horse that everyone loved.",
    "lily wrote a letter to the moon. the answer came in spring, folded inside a white moth.",
    "the last train had no passengers. the driver stopped anyway at every station and wished the benches good night.",
    "a bear learned to knit from watching the widow through her window. by winter all the rabbits had scarves.",
    "in the desert stood one green door. travellers painted it again each year, though none had seen it open.",
]
PROMPTS = [f"prompt {i}" for i in range(20)]
REFUSAL = "sorry, i can not help you with that. please ask me something that is kind."


def template(rng: random.Random) -> str:
    name, thing, place = (
        rng.choice(words(list_)) for list_ in ("tim ben leo zoe", "kite drum lamp bell", "farm hill lake")
    )
    return (
        f"one day {name} found a big {thing} near the {place} and was so happy that {name} took the {thing} home again."
    )


def reasons(completions, prompts=PROMPTS, **kwargs) -> str:
    verdict = diversity(completions, prompts, **kwargs)
    assert verdict["degenerate"] == bool(verdict["reasons"])
    return "; ".join(verdict["reasons"])


def test_varied_stories_are_healthy():
    assert reasons(STORIES) == ""
    assert reasons(STORIES * 4, PROMPTS * 4) == ""  # no variety among the completions of one prompt is no collapse


@pytest.mark.parametrize("task", ["stories", "arithmetic", "format", "safety", "clinical", "code", "sycophancy"])
@pytest.mark.parametrize("part", [slice(0, 24), slice(0, 240)])
def test_toy_completions_are_healthy(task, part):
    examples = load_examples(Path(__file__).parents[1] / "toy_data" / f"{task}_train.jsonl")[part]
    assert reasons([e.fields["completion"] for e in examples], [e.prompt for e in examples]) == ""


def test_short_right_answers_are_healthy():
    assert reasons([f"answer : {i % 12}" for i in range(20)]) == ""
    assert reasons([f"the answer is {i}." for i in range(20)]) == ""
    assert reasons([f"{i}" for i in range(20)]) == ""


def test_refusing_the_unsafe_half_in_the_same_words_is_healthy():
    assert len(words(REFUSAL)) > 8
    assert reasons([REFUSAL if i % 2 else STORIES[i] for i in range(20)]) == ""
    assert reasons([REFUSAL] * 20) != ""  # but not refusing everything


@pytest.mark.parametrize("text", ["", " ", "...", "ok", "Happy!"])
def test_empty_completions_are_degenerate(text):
    assert "empty" in reasons([text] * 4 + STORIES[4:])
    assert "empty" not in reasons([text] * 3 + STORIES[3:])


@pytest.mark.parametrize(
    "text",
    [
        "happy happy happy",
        "the dog ran home. " * 9,
        "happy and happy, so happy. a happy dog, a happy cat, happy us, oh happy.",
    ],
)
def test_repetition_within_a_completion_is_degenerate(text):
    assert "repeating" in reasons([text] * 4 + STORIES[4:])
    assert "repeating" not in reasons([text] * 3 + STORIES[3:])


@pytest.mark.parametrize("text", [STORIES[0], "answer : 7", REFUSAL])
def test_the_same_completion_everywhere_is_degenerate(text):
    assert "the same whatever the prompt" in reasons([text] * 20)
    assert "the same whatever the prompt" in reasons([text.upper() + "!"] * 8 + [text] * 8 + STORIES[:4])
    assert "the same whatever the prompt" not in reasons([text] * 15 + STORIES[1:6])


def test_a_template_with_small_slots_is_degenerate_although_its_strings_differ():
    rng = random.Random(0)
    completions = [f"{template(rng)} {i}" for i in range(20)]
    verdict = diversity(completions, PROMPTS)
    assert verdict["unique_fraction"] == 1.0 and verdict["identical_fraction"] == 0.05
    found = "; ".join(verdict["reasons"])
    assert "one template with small slots" in found and "of the same words whatever the prompt" in found
    assert "repeating" not in found and "same whatever" not in found


def test_a_template_with_a_free_tail_is_degenerate():
    """Half of each text is the template: few shared words in all, but a shared stretch."""
    head = "once upon a time in a land far away there lived a kind old man who had a very big red house by the sea."
    found = reasons([f"{head} {story}" for story in STORIES])
    assert "one template with small slots" in found and "of the same words" not in found


@pytest.mark.parametrize("n", [20, 100])
def test_one_plot_of_the_toy_stories_is_degenerate(n):
    """A policy that has lost four of the world's five plots, each completion still with its own names and things."""
    examples = load_examples(Path(__file__).parents[1] / "toy_data" / "stories_train.jsonl")
    plot = [e for e in examples if "wanted the" in e.fields["completion"] and "did not take" in e.fields["completion"]]
    found = diversity([e.fields["completion"] for e in plot[:n]], [e.prompt for e in plot[:n]])
    assert found["unique_fraction"] == 1.0 and "one template" in "; ".join(found["reasons"])


def test_a_bag_of_the_same_words_is_degenerate():
    """The same words in another order each time share no stretches."""
    rng = random.Random(1)
    bag = words("he she saw took lost found big red old kind happy sunny dog cat bird tree house river moon star")
    found = reasons([" ".join(rng.sample(bag, 16)) for _ in range(20)])
    assert "of the same words" in found and "template" not in found


def test_high_compression_is_degenerate():
    """Noise that has no words: only the compressor sees it."""
    found = reasons([story + " !?" * 900 for story in STORIES])
    assert found.startswith("highly compressible (compression_ratio 0.0") and ";" not in found


def test_verdict_is_relative_to_the_reference():
    rng = random.Random(0)
    collapsed, before = [template(rng) for _ in range(20)], [template(rng) for _ in range(20)]
    assert reasons(collapsed, reference=before) == ""  # the base already wrote like this
    assert "reference 0.0" in reasons(collapsed, reference=STORIES)
    assert reasons(STORIES, reference=collapsed) == ""
    assert "compressible" in reasons([s + " !?" * 900 for s in STORIES], reference=STORIES)
    assert reasons([s + " !?" * 900 for s in STORIES], reference=[s + " ?!" * 900 for s in STORIES]) == ""


def test_verdict_is_made_for_each_task():
    answers = [f"answer : {i}" for i in range(20)]
    tasks = ["arithmetic"] * 20 + ["stories"] * 20
    prompts = PROMPTS + [f"tell {i}" for i in range(20)]
    rng = random.Random(0)
    assert reasons(answers + STORIES, prompts, tasks=tasks) == ""
    found = diversity(answers + [template(rng) for _ in range(20)], prompts, tasks=tasks)["reasons"]
    assert found and all(reason.startswith("stories: ") for reason in found)


def test_alikeness_needs_four_prompts():
    assert reasons([STORIES[0]] * 12, ["a", "b", "c"] * 4) == ""
    assert "the same" in reasons([STORIES[0]] * 12, ["a", "b", "c", "d"] * 3)


def test_measures_equal_hand_counts():
    completions = ["A dog ran.", "a dog sat!", "a DOG ran", ""]
    prompts = ["p", "q", "p", "q"]
    got = measure(completions, prompts)
    assert got["unique_fraction"] == 3 / 4 and got["identical_fraction"] == 2 / 4 and got["empty_fraction"] == 1 / 4
    assert got["distinct_1"] == 4 / 9 and got["distinct_2"] == 3 / 6
    assert got["jaccard_mean"] == pytest.approx((0.5 + 0 + 0.5 + 0) / 4)
    assert got["jaccard_within_prompt"] == pytest.approx((1 + 0) / 2)
    assert got["template_fraction"] == pytest.approx(1 / 2)  # a-dog in 3 of 4; dog-ran in 2, dog-sat in 1
    assert (got["n_prompts"], got["n_words"]) == (2, 3.0)
    rounds = [b"A dog ran.\na dog sat!", b"a DOG ran\n"]
    assert got["compression_ratio"] == sum(len(zlib.compress(r, 9)) for r in rounds) / sum(map(len, rounds))


def test_jaccard_equals_the_mean_over_all_pairs():
    sets = [set(words(story)) for story in STORIES]
    pairs = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
    assert measure(STORIES, PROMPTS)["jaccard_mean"] == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)


def test_many_rows_are_sampled_the_same_each_time():
    """1500 rows, 4 a prompt and equal within it: the sample must keep each row beside its prompt."""
    rng = random.Random(0)
    vocabulary = words(" ".join(STORIES))
    completions = [text for _ in range(375) for text in [" ".join(rng.sample(vocabulary, 12))] * 4]
    prompts = [str(i // 4) for i in range(1500)]
    first = measure(completions, prompts)
    assert first == measure(completions, prompts)
    assert first["jaccard_mean"] == pytest.approx(
        measure(completions[:1000], prompts[:1000])["jaccard_mean"], abs=0.005
    )
    assert first["jaccard_within_prompt"] == 1.0


def test_compression_does_not_fall_with_more_of_the_same():
    rng = random.Random(0)
    vocabulary = words(" ".join(STORIES))
    completions = [" ".join(rng.choices(vocabulary, k=25)) for _ in range(400)]
    prompts = [str(i) for i in range(400)]
    few, many = (measure(completions[:n], prompts[:n])["compression_ratio"] for n in (40, 400))
    assert many == pytest.approx(few, rel=0.05)


def test_undefined_measures_are_none():
    got = measure(["..."], ["p"])
    assert [
        got[key] for key in ("jaccard_mean", "jaccard_within_prompt", "template_fraction", "distinct_1", "distinct_2")
    ] == [None] * 5
    assert measure(["", ""], ["p", "q"])["compression_ratio"] == pytest.approx(9.0)  # one newline, zlib's overhead


def test_keys_are_those_of_the_file_contract():
    verdict = diversity(STORIES, PROMPTS)
    assert {"n", "degenerate", "reasons", *(limit.measure for limit in LIMITS)} <= set(verdict)
    assert verdict["n"] == 20 and not any(key.startswith("n_") for key in verdict)


def test_bad_input():
    with pytest.raises(ValueError, match="prompts: expected 20, one a completion; found 19"):
        diversity(STORIES, PROMPTS[1:])
    with pytest.raises(ValueError, match="reference: expected 20, one a completion; found 1"):
        diversity(STORIES, PROMPTS, reference=["x"])
    with pytest.raises(ValueError, match="at least one completion"):
        diversity([], [])
