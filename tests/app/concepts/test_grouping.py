"""Examples that are almost alike count once, in whatever order they are given."""

import random
from pathlib import Path

import pytest
import yaml

from app.concepts.concept import Example
from app.concepts.grouping import Arrangement, arrange

SHIPPED = Path(__file__).parents[3] / "configs" / "concepts"
CHEF = Example(
    "The chef stirred the creamy sauce and added fresh basil.",
    "The mechanic tightened the rusty bolt and added fresh oil.",
)
NAMES = ("Tom", "Anna", "Christopher", "Li", "Bob", "Mary Jane")


def pirates(names: tuple[str, ...] = NAMES) -> list[Example]:
    return [
        Example(
            f"Arr, {name} be a fine pirate, matey, and the sea be calm.",
            f"Well, {name} is a good worker, my friend, and the road is quiet.",
        )
        for name in names
    ]


def sizes(arrangement: Arrangement) -> list[int]:
    """The number of examples in each group, the largest first."""
    counts = [arrangement.groups.count(group) for group in set(arrangement.groups)]
    return sorted(counts, reverse=True)


def test_exact_duplicates_are_dropped() -> None:
    arrangement = arrange([CHEF, *pirates(("Tom",)), CHEF, CHEF])
    assert sorted(arrangement.order) == [0, 1]
    assert sizes(arrangement) == [1, 1]


def test_examples_that_differ_in_a_name_are_one_group() -> None:
    assert sizes(arrange([*pirates(), CHEF])) == [6, 1]


@pytest.mark.parametrize(
    "other",
    [
        Example(CHEF.positive, "Rain fell on the quiet town all afternoon."),
        Example("Rain fell on the quiet town all afternoon.", CHEF.negative),
        Example(CHEF.negative, "Rain fell on the quiet town all afternoon."),
    ],
    ids=["positive", "negative", "swapped"],
)
def test_examples_that_share_a_text_are_one_group(other: Example) -> None:
    assert sizes(arrange([CHEF, other])) == [2]


def test_groups_are_transitive() -> None:
    first, last = Example("one", "two"), Example("three", "four")
    between = Example("one", "four")
    assert sizes(arrange([first, last])) == [1, 1]
    assert sizes(arrange([first, last, between])) == [3]


def test_one_side_alike_is_not_enough() -> None:
    [first, second, *_] = pirates()
    other = Example(second.positive, "Rain fell on the quiet town all afternoon.")
    assert sizes(arrange([first, other])) == [1, 1]


def test_a_text_counts_together_with_its_prompt() -> None:
    """Multiple-choice data sets have the same two answers to each question."""
    questions = ["Do you like tea?", "Shall we attack at dawn?", "Is the moon made of cheese?"]
    assert sizes(arrange([Example("(A)", "(B)", prompt) for prompt in questions])) == [1, 1, 1]
    assert sizes(arrange([Example("(A)", "(B)", questions[0]), Example("(A)", "(C)", questions[0])])) == [2]


def test_the_order_of_the_examples_changes_nothing() -> None:
    examples = [CHEF, *pirates(), CHEF, Example("one", "two"), Example("three", "four", "why?")]
    expected = arrange(examples)
    for seed in range(5):
        shuffled = random.Random(seed).sample(examples, len(examples))
        arrangement = arrange(shuffled)
        assert arrangement.groups == expected.groups
        assert [shuffled[i] for i in arrangement.order] == [examples[i] for i in expected.order]


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_no_two_examples_of_a_shipped_concept_are_alike(file: Path) -> None:
    examples = [Example(**pair) for pair in yaml.safe_load(file.read_text())["examples"]]
    assert set(sizes(arrange(examples))) == {1}


def test_no_examples_have_no_groups() -> None:
    assert arrange([]) == Arrangement([], [])


def test_a_prompt_or_a_persona_that_all_examples_have_does_not_make_them_alike() -> None:
    texts = ["tea is nice", "the sea is blue", "dogs run fast", "my car broke down"]
    prompt = "Please answer as well as you can, and tell me what you think about this. " * 3
    assert sizes(arrange([Example(text, f"no {text[::-1]}", prompt) for text in texts])) == [1] * 4
    happy, sad = "I am a very happy person today. " * 2, "I am a very sad person today. " * 2
    assert sizes(arrange([Example(happy + text, sad + text) for text in texts])) == [1] * 4
