"""The C++ operations give what torch's give, and each row for itself."""

import pytest
import torch

from inference.backends.cpu import steering
from inference.compute.steering import ProjectionBatch
from inference.steering import injection

TOKENS, SIZE, ROWS = 37, 70, 9


def bank() -> torch.Tensor:
    vectors = torch.randn(ROWS, SIZE)
    vectors[0] = 0
    return vectors


def wide_states() -> torch.Tensor:
    """With other numbers between the rows."""
    return torch.randn(TOKENS, 2 * SIZE)[:, :SIZE]


def projections(terms: int) -> ProjectionBatch:
    """Of every second token, from the last one on; some have fewer terms."""
    tokens = torch.arange(TOKENS - 1, -1, -2)
    reads, writes = torch.randint(0, ROWS, (2, len(tokens), terms))
    return ProjectionBatch(tokens, reads, writes)


@pytest.mark.parametrize("states", [lambda: torch.randn(TOKENS, SIZE), wide_states])
def test_vectors_are_added(states: object) -> None:
    assert callable(states)
    hidden, vectors, rows = states(), bank(), torch.randint(0, ROWS, (TOKENS,))
    expected = hidden + vectors[rows]
    steering.steer(hidden, vectors, rows)
    assert torch.equal(hidden, expected)


def test_a_token_without_steering_keeps_its_values() -> None:
    hidden = torch.full((2, SIZE), float("nan"))
    steering.steer(hidden, bank(), torch.tensor([0, 0]))
    steering.project(hidden, bank(), ProjectionBatch(torch.tensor([1]), *torch.zeros(2, 1, 3).long()))
    assert hidden.isnan().all()


@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("states", [lambda: torch.randn(TOKENS, SIZE), wide_states])
def test_projections_are_those_of_torch(terms: int, states: object) -> None:
    assert callable(states)
    hidden, vectors, wanted = states(), bank(), projections(terms)
    expected = hidden.clone()
    injection.project(expected, vectors, wanted)
    steering.project(hidden, vectors, wanted)
    assert torch.allclose(hidden, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(hidden[TOKENS - 1], states()[TOKENS - 1])


def test_readings_are_those_of_torch() -> None:
    hidden, vectors = wide_states(), bank()
    tokens, rows = torch.randint(0, TOKENS, (50,)), torch.randint(0, ROWS, (50,))
    expected = injection.read(hidden, vectors, tokens, rows)
    assert torch.allclose(steering.read(hidden, vectors, tokens, rows), expected, rtol=1e-5, atol=1e-4)


def test_a_token_is_the_same_in_any_batch() -> None:
    hidden, vectors, wanted = torch.randn(TOKENS, SIZE), bank(), projections(3)
    alone = [hidden[token][None].clone() for token in wanted.tokens]
    steering.project(hidden, vectors, wanted)
    for one, token, reads, writes in zip(alone, wanted.tokens, wanted.reads, wanted.writes, strict=True):
        steering.project(one, vectors, ProjectionBatch(torch.tensor([0]), reads[None], writes[None]))
        assert torch.equal(one[0], hidden[token])


@pytest.mark.parametrize("states", [torch.randn(SIZE, TOKENS).T, torch.randn(TOKENS, SIZE).bfloat16()])
def test_other_layouts_and_dtypes_are_left_to_torch(states: torch.Tensor) -> None:
    vectors, rows = bank(), torch.randint(0, ROWS, (TOKENS,))
    wanted = projections(2)
    expected = states.clone()
    injection.project(expected, vectors, wanted)
    injection.steer(expected, vectors, rows)
    steering.project(states, vectors, wanted)
    steering.steer(states, vectors, rows)
    assert torch.equal(states, expected)
    read = steering.read(states, vectors, wanted.tokens, wanted.reads[:, 0])
    assert torch.equal(read, injection.read(expected, vectors, wanted.tokens, wanted.reads[:, 0]))


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="as long as the hidden states"):
        steering.steer(torch.randn(2, SIZE), torch.randn(3, SIZE + 1), torch.tensor([1, 2]))
