"""Generated answers: how they are read back, and when they count as moved and fluent."""

import math

import numpy as np
import pytest

from inference.scheduling.probe import Answer, Probe
from inference.steering.answers import Answers, AnswerSheet, has_room, is_fluent, moved, repetition, words
from tests.inference.steering.conftest import make_direction


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], 0.0),
        ([1, 2], 0.0),
        ([1, 2, 3], 0.0),
        ([1, 2, 3, 4, 5], 0.0),
        ([1, 1, 1, 1], 0.5),
        ([1, 2, 3, 1, 2, 3], 1 / 4),
        ([7] * 40, 37 / 38),
    ],
)
def test_repetition_is_the_share_of_repeated_trigrams(tokens: list[int], expected: float) -> None:
    assert repetition(tokens) == pytest.approx(expected)


def test_words_are_tokens_with_those_that_go_on_with_them() -> None:
    continues = np.array([0, 1, 0, 1, 0], np.uint8)
    assert words([0, 1, 3, 2, 4, 1, 9], continues) == [(0, 1, 3), (2,), (4, 1), (9,)]
    assert words([1, 0], continues) == [(1,), (0,)]
    assert words([], continues) == []


def test_a_long_word_is_no_repetition() -> None:
    """Capitals are cut into many tokens, so that one repeated word would look like a loop."""
    continues = np.array([0, 1, 1, 1, 0, 0], np.uint8)
    tokens = [0, 1, 2, 3, 4, 0, 1, 2, 3, 5]
    assert repetition(tokens) > 0.2
    assert repetition(words(tokens, continues)) == 0.0


@pytest.mark.parametrize("period", range(1, 10))
def test_a_loop_inside_a_word_is_a_repetition(period: int) -> None:
    """ "hahaha..." or "ye'r'n'ye'r'n'...": all tokens but the first go on with its word."""
    tokens = [number % period for number in range(40)]
    assert repetition(words(tokens, np.ones(10, np.uint8))) >= 1 - period / 38


def make_answers(
    readings: list[float], logprob: float = -1.0, repetitions: list[float] | None = None
) -> Answers:
    count = len(readings)
    return Answers(
        list(range(count)),
        [[1]] * count,
        np.array(readings),
        np.full(count, logprob),
        np.array(repetitions or [0.0] * count),
    )


def test_an_answer_moves_by_half_of_the_distance_between_the_examples() -> None:
    plain = make_answers([0.0, 0.0, 0.0, 0.4])
    steered = make_answers([0.5, 0.49, -0.6, 0.89])
    assert moved(plain, steered, 1.0).tolist() == [1, 0, 0, 0]
    assert moved(plain, steered, -1.0).tolist() == [0, 0, 1, 0]


PLAIN = make_answers([0.0] * 10)


@pytest.mark.parametrize(
    ("steered", "own_cost", "fluent"),
    [
        (make_answers([0.0] * 10, repetitions=[0.169] * 10), 0.0, True),
        (make_answers([0.0] * 10, repetitions=[0.18] * 10), 0.0, False),
        (make_answers([0.0] * 10, repetitions=[0.5] + [0.0] * 9), 0.0, True),
        (make_answers([0.0] * 10, repetitions=[0.5, 0.45] + [0.0] * 8), 0.0, True),
        (make_answers([0.0] * 10, repetitions=[0.5, 0.5] + [0.0] * 8), 0.0, False),
        (make_answers([0.0] * 10, -2.19), 0.0, True),
        (make_answers([0.0] * 10, -2.2), 0.0, False),
        (make_answers([0.0] * 10, -2.2), 0.5, True),
        (make_answers([0.0] * 10, -2.2), -0.5, False),
    ],
)
def test_fluency_has_limits(steered: Answers, own_cost: float, fluent: bool) -> None:
    assert is_fluent(PLAIN, steered, own_cost) is fluent


@pytest.mark.parametrize(
    ("steered", "fluent"),
    [
        (make_answers([0.0] * 10, repetitions=[0.084] * 10), True),
        (make_answers([0.0] * 10, repetitions=[0.086] * 10), False),
        (make_answers([0.0] * 20, repetitions=[0.5] + [0.0] * 19), True),
        (make_answers([0.0] * 20, repetitions=[0.5] * 2 + [0.0] * 18), False),
        (make_answers([0.0] * 10, -1.59), True),
        (make_answers([0.0] * 10, -1.6), False),
    ],
)
def test_half_of_each_limit(steered: Answers, fluent: bool) -> None:
    assert is_fluent(make_answers([0.0] * len(steered.readings)), steered, 0.0, part=0.5) is fluent


def test_answers_that_loop_without_steering_do_not_count_against_it() -> None:
    plain = make_answers([0.0] * 4, repetitions=[0.9, 0.9, 0.0, 0.0])
    assert is_fluent(plain, plain, 0.0)


def test_answers_are_generated_with_steering_and_read_without() -> None:
    direction = make_direction(1, 0.5, (0, 1), reading_block=1, reading_range=(2.0, 4.0))
    sheet = AnswerSheet([[8] * 100, [5, 6], [7] * 97], (1,), max_tokens=100)
    work = sheet.ask(direction, [0.0, -1.5])
    asked = next(work)
    assert all(isinstance(answer, Answer) for answer in asked)
    assert [answer.prompt_token_ids for answer in asked] == [[5, 6], [7] * 97] * 2
    assert [answer.max_tokens for answer in asked] == [40, 3] * 2
    assert [answer.stop_token_ids for answer in asked] == [(1,)] * 4
    assert [answer.steering is None for answer in asked] == [True, True, False, False]
    for answer in asked[2:]:
        assert answer.steering.added.blocks == (0, 1)
        np.testing.assert_array_equal(answer.steering.added.vectors, direction.vectors(-1.5))
    for number, answer in enumerate(asked):
        answer.token_ids[:] = [10 + number] * number  # the first one is empty
    probes = work.send(None)
    assert all(isinstance(probe, Probe) and probe.steering is None for probe in probes)
    assert [probe.content_token_ids for probe in probes] == [[11], [12] * 2, [13] * 3]
    for probe in probes:
        [reader] = probe.readers
        assert (reader.block, reader.first) == (1, probe.content_start)
        for position in range(len(probe.content_token_ids)):
            reader.store(reader.first + position, 3.0 + position)
        probe.logprobs[:] = -2.0
    with pytest.raises(StopIteration) as end:
        next(work)
    answers = end.value.value
    assert answers[0.0].questions == [1, 2]
    assert answers[0.0].token_ids == [[], [11]]
    assert answers[0.0].readings.tolist() == [0.0, 0.5]
    assert answers[-1.5].readings.tolist() == [0.75, 1.0]
    assert answers[-1.5].perplexity == pytest.approx(math.exp(2.0))
    assert answers[-1.5].repetitions.tolist() == [0.0, 0.0]
    assert answers[0.0].repetitions.tolist() == [1.0, 0.0]


def test_an_answer_that_says_nothing_has_not_moved_and_is_not_fluent() -> None:
    plain = make_answers([0.6] * 4)
    empty = Answers([0, 1, 2, 3], [[]] * 4, np.zeros(4), np.zeros(4), np.ones(4))
    assert moved(plain, empty, -1.0).tolist() == [0, 0, 0, 0]
    assert not is_fluent(plain, empty, 0.0)
    assert moved(empty, plain, 1.0).tolist() == [0, 0, 0, 0]
    mixed = Answers([0, 1], [[1], []], np.array([0.0, 0.0]), np.array([-2.0, 0.0]), np.array([0.0, 1.0]))
    assert mixed.perplexity == pytest.approx(math.exp(2.0))


def test_empty_answers_say_nothing_about_the_room_to_move() -> None:
    some = Answers([0, 1], [[], [1]], np.array([0.0, 0.8]), np.array([0.0, -1.0]), np.array([1.0, 0.0]))
    assert has_room(some, -1.0)
    assert not has_room(some, 1.0)
    empty = Answers([0], [[]], np.zeros(1), np.zeros(1), np.ones(1))
    assert not has_room(empty, 1.0)
    assert not has_room(empty, -1.0)


def test_without_answers_to_compare_with_no_perplexity_is_too_high() -> None:
    empty = Answers([0], [[]], np.zeros(1), np.zeros(1), np.ones(1))
    assert is_fluent(empty, make_answers([0.0], -5.0), 0.0)
