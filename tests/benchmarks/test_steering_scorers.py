"""The scorers and concepts of `make eval`: positive examples score higher, and odd answers have a score."""

import math
import statistics
from pathlib import Path

import msgspec
import pytest
import yaml

from app.concepts.concept import Example
from app.concepts.neutral_texts import NEUTRAL_TEXTS
from benchmarks.steering import scorers
from benchmarks.steering.scorers import SCORERS, word_repetition

ROOT = Path(__file__).parents[2]
WORDS = ROOT / "benchmarks/steering/words"
FILES = {
    path.stem: path for part in ("configs", "benchmarks/steering") for path in ROOT.glob(f"{part}/concepts/*")
}
OWN = sorted(path.stem for path in ROOT.glob("benchmarks/steering/concepts/*"))

# By how much positive examples score higher in the mean, and the share of pairs in the right order.
# A short German sentence may have no common German word that is not an English word.
MARGINS = {
    "sentiment": (1.5, 1.0),
    "formality": (0.4, 1.0),
    "child-friendly": (100.0, 1.0),
    "confidence": (0.3, 1.0),
    "french": (0.4, 1.0),
    "german": (0.4, 0.9),
    "uppercase": (0.9, 1.0),
    "past-tense": (1.5, 1.0),
    "food": (0.3, 1.0),
    "pirate": (0.3, 1.0),
    "spanish": (0.3, 1.0),
    "animals": (0.3, 1.0),
    "questions": (0.99, 1.0),
    "shakespeare": (0.2, 1.0),
}

# Written for this test: an answer that shows the concept, and one that does not.
ANSWERS = {
    "sentiment": ("What a splendid, happy evening!", "It was a sad and awful evening."),
    "formality": (
        "Furthermore, the committee requires written confirmation.",
        "Hey, we've gotta sign that stuff!",
    ),
    "child-friendly": (
        "A frog can hop. It eats bugs. It is green.",
        "Amphibians metamorphose, transitioning from aquatic respiration to pulmonary ventilation.",
    ),
    "confidence": ("No doubt: she will certainly win.", "I think she might win, but I'm not sure."),
    "french": ("J'ai vu l'océan avec mes amis, et c'était très beau.", "I saw the ocean with my friends."),
    "german": ("Ich habe das Meer mit meinen Freunden gesehen.", "I saw the sea with my friends."),
    "uppercase": ("THE BUS LEAVES AT 9.", "The bus leaves at 9."),
    "past-tense": ("He ran home and locked the door.", "He runs home and locks the door."),
    "food": (
        "I whisked eggs for two omelettes with mushrooms.",
        "I painted walls for two rooms with windows.",
    ),
    "pirate": (
        "Aye, we be sailin' for treasure, ye scurvy lubber!",
        "Yes, we are driving to the office today.",
    ),
    "spanish": ("Hemos visto el mar con nuestros amigos.", "We saw the sea with our friends."),
    "animals": ("The foxes sniffed at our hens and barked.", "The guests looked at our rooms and laughed."),
    "questions": ("Did you lock the door? Where is the key?", "I locked the door. Here is the key."),
    "shakespeare": (
        "Thou speakest truly, for he hath no friend but thee.",
        "You are right, because he has no friend but you.",
    ),
}


def examples(name: str) -> list[Example]:
    return msgspec.convert(yaml.safe_load(FILES[name].read_text())["examples"], list[Example])


def score(name: str, answer: str) -> float:
    if name == "sentiment":
        pytest.importorskip("vaderSentiment", reason="`make eval` installs it")
    return SCORERS[name][1](answer)


def entries(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [entry for line in lines if not line.startswith("#") for entry in line.split()]


def test_fourteen_concepts_have_a_scorer_and_nine_of_them_are_not_shipped() -> None:
    assert len(SCORERS) == 14
    assert set(SCORERS) == set(MARGINS) <= set(FILES)
    assert len(OWN) == 9
    assert set(OWN) < set(SCORERS)


@pytest.mark.parametrize("name", OWN)
def test_the_own_concepts_have_24_distinct_pairs(name: str) -> None:
    content = yaml.safe_load(FILES[name].read_text())
    assert content["name"] == name
    texts = [text for pair in examples(name) for text in (pair.positive, pair.negative)]
    assert len(texts) == len(set(texts)) == 48


@pytest.mark.parametrize("name", SCORERS)
def test_positive_examples_score_higher_than_negative_ones(name: str) -> None:
    scores = [(score(name, pair.positive), score(name, pair.negative)) for pair in examples(name)]
    margin, share = MARGINS[name]
    assert statistics.mean(positive - negative for positive, negative in scores) > margin
    assert statistics.mean(positive > negative for positive, negative in scores) >= share


@pytest.mark.parametrize("name", SCORERS)
def test_an_answer_with_the_concept_scores_higher_than_one_without(name: str) -> None:
    positive, negative = ANSWERS[name]
    assert score(name, positive) > score(name, negative)


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("answer", ["", " \n", "12 345", "..."])
def test_an_answer_without_words_scores_0(name: str, answer: str) -> None:
    assert score(name, answer) == 0


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(
    "answer",
    [
        "la " * 60,
        "lalala" * 60,
        "!" * 200,
        "你好，" * 60,
        "\N{PARROT}" * 60,
        "e\u0301 ß İ ﬁ \u0000",
        "'" * 60,
    ],
)
def test_odd_answers_have_a_score_within_the_scale(name: str, answer: str) -> None:
    limit = 120 if name == "child-friendly" else 1
    assert math.isfinite(score(name, answer))
    assert abs(score(name, answer)) <= limit


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("formality", "furthermore"),
        ("formality", "gonna"),
        ("formality", "considerable"),
        ("confidence", "certainly"),
        ("confidence", "perhaps"),
        ("french", "très"),
        ("german", "nicht"),
        ("food", "cheese"),
        ("pirate", "matey"),
        ("pirate", "mornin'"),
        ("spanish", "también"),
        ("animals", "horses"),
        ("questions", "why?"),
        ("shakespeare", "thou"),
        ("shakespeare", "speakest"),
    ],
)
def test_a_word_that_loops_counts_three_times(name: str, word: str) -> None:
    assert abs(score(name, " ".join([word] * 30))) == pytest.approx(3 / 30)


@pytest.mark.parametrize("name", ["french", "german", "pirate", "food", "spanish", "animals", "shakespeare"])
def test_english_about_other_things_scores_near_0(name: str) -> None:
    limit = 0.05 if name in ("food", "animals") else 0.005
    assert statistics.mean(score(name, text) for text in NEUTRAL_TEXTS) < limit


def test_french_and_german_are_told_apart() -> None:
    for name, other in (("french", "german"), ("german", "french")):
        assert statistics.mean(score(other, pair.positive) for pair in examples(name)) < 0.02


@pytest.mark.parametrize("other", ["french", "german"])
def test_french_and_german_are_not_taken_for_spanish(other: str) -> None:
    assert statistics.mean(scorers.spanish(pair.positive) for pair in examples(other)) < 0.02


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("¿Dónde está mi perro?", 3 / 4),
        ("El pan está muy caliente.", 3 / 5),
        ("DÓNDE ESTÁ", 1),
        ("No, come to me once a day with a son.", 0),
        ("Pan de la casa", 1 / 4),
    ],
)
def test_spanish_is_the_share_of_common_spanish_words(answer: str, share: float) -> None:
    assert scorers.spanish(answer) == pytest.approx(share)


def test_an_elided_french_word_counts() -> None:
    assert scorers.french("l'eau") == 0.5
    assert scorers.french("L’eau") == 0.5
    assert scorers.french("c'mon, I'd go") == 0


def test_a_longer_phrase_counts_instead_of_the_words_in_it() -> None:
    assert scorers.confidence("I am sure") == pytest.approx(1 / 3)
    assert scorers.confidence("I am not sure") == pytest.approx(-1 / 4)
    assert scorers.confidence("without any doubt") == pytest.approx(1 / 3)


def test_contractions_and_exclamation_marks_are_informal() -> None:
    assert scorers.formality("We cannot go.") == 0
    assert scorers.formality("We can't go.") == pytest.approx(-1 / 3)
    assert scorers.formality("We cannot go!") == pytest.approx(-1 / 4)


def test_capitals_are_counted_among_letters_with_case() -> None:
    assert scorers.capitals("ABcd 123 你好!") == 0.5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It rained.", 1),
        ("It rains.", -1),
        ("We cry, but she laughed.", 0),
        ("They often walk.", -1),
        ("A detailed plan to walk the needed red speed.", 0),
        ("The road is covered.", -1),
        ("The road was covered.", 1),
        ("I've finished.", -1),
        ("Some uses of the looks.", 0),
        ("He didn’t go.", 1),
    ],
)
def test_past_and_present_forms_are_told_from_participles_and_nouns(answer: str, expected: int) -> None:
    assert scorers.past_tense(answer) == expected


def test_reading_ease_is_that_of_flesch() -> None:
    assert scorers.reading_ease("The cat makes a happy sound. It purrs.") == pytest.approx(
        206.835 - 1.015 * 8 / 2 - 84.6 * 9 / 8
    )


@pytest.mark.parametrize(
    ("word", "syllables"),
    [
        ("cat", 1),
        ("make", 1),
        ("baked", 1),
        ("wanted", 2),
        ("horses", 2),
        ("table", 2),
        ("the", 1),
        ("metabolic", 4),
    ],
)
def test_syllables_are_counted_without_a_silent_e(word: str, syllables: int) -> None:
    expected = 206.835 - 1.015 - 84.6 * syllables
    assert scorers.reading_ease(word) == pytest.approx(min(120, max(-100, expected)))


def test_plurals_of_food_count() -> None:
    assert scorers.food("berries potatoes radishes carrots") == 1


def test_plurals_and_possessives_of_animals_count() -> None:
    assert scorers.animals("foxes puppies wolves geese ants") == 1
    assert scorers.animals("The dog's tail wags.") == 3 / 4
    assert scorers.animals("The Dog’s tail") == 2 / 3
    assert scorers.animals("Two rats, a cub and a doe") == 3 / 7


@pytest.mark.parametrize(
    "answer",
    [
        "She does cubes, rates, fines, wages and stages.",
        "The pack flies a kite.",
        "A category of carpets, not dogma.",
        "I pay the bill at the stable wall.",
    ],
)
def test_words_like_those_for_animals_do_not_count(answer: str) -> None:
    assert scorers.animals(answer) == 0


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("Why?", 1),
        ("Why? Because.", 1 / 2),
        ("Is it late?! Really?? Yes...", 2 / 3),
        ("Where is it? I have looked in the", 1 / 2),
        ("Where is the", 0),
        ("Some ideas:\n1. Where is it?\n\n2. Who has it?", 2 / 3),
        ("**Who?** (Which one?) “When?”", 1),
        ("She asks? so and leaves.", 1 / 2),
        ("See example.com/?a=b or 3.5 km.", 0),
        ("??? ! Who? ...", 1),
        ("Why? why? WHY? Why? Now.", 3 / 5),
    ],
)
def test_questions_are_the_share_of_sentences_that_end_in_a_question_mark(answer: str, share: float) -> None:
    assert scorers.questions(answer) == pytest.approx(share)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("He goeth and speaketh.", 2 / 4),
        ("The babe crieth, she seeth it.", 2 / 6),
        ("Speakest, lovest, runnest, CRIEST, seest", 1),
        ("Know'st what I think’st", 2 / 4),
        ("'Tis o'er, methinks.", 1),
        ("Prithee, he hath no sword.", 2 / 5),
    ],
)
def test_early_modern_words_and_verb_forms_count(answer: str, share: float) -> None:
    assert scorers.shakespeare(answer) == pytest.approx(share)


@pytest.mark.parametrize(
    "answer",
    [
        "Beneath the teeth, for a month, in good health.",
        "The twentieth or fiftieth, on the 4th",
        "Elizabeth, Seth, Beth and Kenneth saw Macbeth.",
        "An honest, modest guest in the forest had interest in the harvest.",
        "Please digest, invest, suggest, request, arrest, protest or contest it.",
        "The nearest, closest, cleanest, driest, longest, happiest, latest, best",
        "Rest in the west, lest an earnest tempest test the conquest.",
        "Flowers wilt, and modern art is mine.",
        "It's what's left, it must be",
        "est eth st",
    ],
)
def test_modern_words_like_early_modern_forms_do_not_count(answer: str) -> None:
    assert scorers.shakespeare(answer) == 0


def test_a_phrase_of_early_modern_english_counts_its_words() -> None:
    assert scorers.shakespeare("Thou art kind") == pytest.approx(2 / 3)
    assert scorers.shakespeare("Modern art is kind") == 0


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("", 0),
        ("a b c", 0),
        ("A b c a B c", 1 / 4),
        ("one two three four five", 0),
        ("la la la la la", 2 / 3),
        ("1, 2, 1, 2, 1", 1 / 3),
        ("ye'r'n'" * 10, 1 - 7 / 67),
        ("ha" * 20, 36 / 38),
    ],
)
def test_word_repetition_is_the_share_of_repeated_trigrams(answer: str, share: float) -> None:
    assert word_repetition(answer) == pytest.approx(share)


@pytest.mark.parametrize("path", sorted(WORDS.glob("*.txt")), ids=lambda path: path.stem)
def test_word_lists_are_lower_case_without_duplicates(path: Path) -> None:
    words = entries(path)
    assert words
    assert len(words) == len(set(words))
    assert all(word == word.lower() for word in words)


@pytest.mark.parametrize("pair", [("formal", "informal"), ("assertive", "hedging"), ("past", "present")])
def test_no_word_counts_both_for_and_against_a_concept(pair: tuple[str, str]) -> None:
    first, second = (set(entries(WORDS / f"{name}.txt")) for name in pair)
    assert not first & second
