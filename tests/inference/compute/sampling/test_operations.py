"""The operations of each back end choose what plain definitions choose. test_weighing.py has `weigh`."""

from collections.abc import Callable

import pytest
import torch

from inference.compute.sampling.operations import NOT_A_TOKEN, PIECE, Truncation
from tests.inference.compute.sampling.conftest import Kernels, load_kernels, random_numbers

not_finite = pytest.mark.filterwarnings("ignore:(invalid value|All-NaN):RuntimeWarning")
"""Warnings by Triton's interpreter for values that are not finite."""


@pytest.fixture(params=["torch", "cpu", "cuda"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load_kernels(request.param)


def piece_sums(weights: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.double().sum(-1) for part in weights.split(PIECE, dim=-1)], -1)


def kept_by_definition(weights: torch.Tensor, top_k: int | None, top_p: float | None) -> list[int]:
    """The kept ids of one row [N]: sort by falling weight and rising id, cut, add up, cut."""
    order = sorted(range(len(weights)), key=lambda i: (-weights[i].item(), i))[:top_k]
    numbers = weights.double().tolist()
    if top_p is not None:
        target, total = top_p * sum(numbers[i] for i in order), 0.0
        for rank, i in enumerate(order):
            if rank and total >= target:
                return order[:rank]
            total += numbers[i]
    return order


def check_truncation(
    kernels: Kernels, weights: torch.Tensor, limits: list[tuple[int | None, float | None]]
) -> None:
    """Truncates row i + 1 of `weights` by limits[i]. Row 0 and the rows after the limits must not change."""
    size, device = weights.shape[1], kernels.device
    expected = weights.clone()
    for row, (top_k, top_p) in enumerate(limits, start=1):
        dropped = set(range(size)) - set(kept_by_definition(weights[row], top_k, top_p))
        expected[row, list(dropped)] = 0
    ours, sums = weights.to(device), piece_sums(weights).to(device)
    top_k = torch.tensor([[k or size] for k, _ in limits], device=device)
    top_p = torch.tensor([[1.0 if p is None else p] for _, p in limits], dtype=torch.float64, device=device)
    truncation = Truncation(
        rows=torch.arange(1, len(limits) + 1, device=device),
        top_k=top_k if any(k is not None for k, _ in limits) else None,
        top_p=top_p if any(p is not None for _, p in limits) else None,
    )
    kernels.operations.truncate(ours, sums, truncation)
    assert torch.equal(ours.cpu(), expected)
    assert torch.allclose(sums.cpu(), piece_sums(expected), rtol=1e-13, atol=0)


Make = Callable[[int, int], torch.Tensor]


def softmax_weights(rows: int, size: int) -> torch.Tensor:
    scales = torch.linspace(0.01, 12, rows, device="cpu")[:, None]  # from flat to sharp
    logits = random_numbers(torch.device("cpu"), rows, size) * scales
    return (logits - logits.amax(-1, keepdim=True)).exp()


def tied_weights(rows: int, size: int) -> torch.Tensor:
    """Few different numbers, whose sums are exact. Each of them occurs in every part of a long row."""
    generator = torch.Generator("cpu").manual_seed(size)
    levels = torch.randint(0, 5, (rows, size), generator=generator, device="cpu")
    weights = 2.0 ** (-3.0 * levels)
    weights[:, -1] = 1.0
    return weights


def equal_weights(rows: int, size: int) -> torch.Tensor:
    return torch.ones(rows, size, device="cpu")


def single_weights(rows: int, size: int) -> torch.Tensor:
    """One token has all the weight, as at a very low temperature."""
    weights = torch.zeros(rows, size, device="cpu")
    weights[:, size // 2] = 1.0
    return weights


LIMITS = [
    (None, 0.5),
    (None, 5e-324),
    (1, None),
    (3, 0.999),
    (10**6, 0.25),
    (None, 0.999999),
    (None, 0.9),
    (7, None),
    (50, 0.75),
]


@pytest.mark.parametrize("make", [softmax_weights, tied_weights, equal_weights, single_weights])
@pytest.mark.parametrize(("size", "num_limits"), [(8, 9), (300, 4), (5001, 3)])
def test_truncation_keeps_the_defined_tokens(
    kernels: Kernels, make: Make, size: int, num_limits: int
) -> None:
    limits = [(k and min(k, size), p) for k, p in LIMITS[-num_limits:]]
    check_truncation(kernels, make(len(limits) + 2, size), limits)


@pytest.mark.parametrize("limits", [[(5, None)], [(None, 0.6)], [(5, None), (None, 0.6)]])
def test_rows_with_one_kind_of_limit(kernels: Kernels, limits: list[tuple[int | None, float | None]]) -> None:
    check_truncation(kernels, softmax_weights(len(limits) + 1, 5000), limits)


def test_the_largest_top_p_keeps_what_is_above_rounding(kernels: Kernels) -> None:
    """The sums of these weights are exact, so that no order of additions changes them."""
    check_truncation(kernels, tied_weights(2, 1000), [(None, 1 - 2**-53)])


def test_a_large_vocabulary(kernels: Kernels) -> None:
    size = 128_256 if kernels.device.type == "cuda" else 20_000  # Triton's interpreter is slow
    check_truncation(kernels, softmax_weights(3, size), [(None, 0.95), (1000, None)])


def test_neighbouring_numbers_are_told_apart(kernels: Kernels) -> None:
    bits = torch.arange(0x3F800000 - 40, 0x3F800001, dtype=torch.int32, device="cpu")
    weights = bits[torch.randperm(41, generator=torch.Generator("cpu").manual_seed(0), device="cpu")]
    check_truncation(kernels, weights.view(torch.float32).repeat(9, 1), [(k, None) for k in range(1, 9)])


def test_a_row_draws_what_the_definition_draws(kernels: Kernels) -> None:
    weights = softmax_weights(6, 5000)
    weights[:, 4000:] = 0  # whole pieces without weight, as after a truncation
    weights[:, ::3] = 0
    uniform = torch.linspace(0, 1 - 2**-32, 6, dtype=torch.float64, device="cpu")[:, None]
    cumulative = weights.double().cumsum(-1)
    expected = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    drawn = kernels.operations.invert(
        weights.to(kernels.device),
        piece_sums(weights).to(kernels.device),
        uniform.to(kernels.device),
        torch.zeros(6, device=kernels.device),
    )
    assert drawn.tolist() == expected.tolist()


@pytest.mark.parametrize("size", [1, 100, 256, 9001])
def test_every_drawn_token_has_weight(kernels: Kernels, size: int) -> None:
    weights = torch.zeros(64, size, device=kernels.device)
    weights[:, size // 3] = 1e-30
    uniform = torch.linspace(0, 1 - 2**-32, 64, dtype=torch.float64, device=kernels.device)[:, None]
    highest = torch.zeros(64, device=kernels.device)
    sums = piece_sums(weights)
    assert kernels.operations.invert(weights, sums, uniform, highest).tolist() == [size // 3] * 64


@not_finite
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_gives_no_token(kernels: Kernels, broken: float) -> None:
    operations, device = kernels
    logits = random_numbers(device, 3, 600)
    logits[1] = broken
    assert (operations.choose_highest(logits) == NOT_A_TOKEN).tolist() == [False, True, False]
    highest, sums = operations.weigh(logits, torch.ones(3, 1, device=device), PIECE)
    truncation = Truncation(
        rows=torch.arange(3, device=device),
        top_k=torch.tensor([[3]] * 3, device=device),
        top_p=torch.tensor([[0.5]] * 3, dtype=torch.float64, device=device),
    )
    operations.truncate(logits, sums, truncation)
    uniform = torch.full((3, 1), 0.5, dtype=torch.float64, device=device)
    drawn = operations.invert(logits, sums, uniform, highest)
    assert (drawn == NOT_A_TOKEN).tolist() == [False, True, False]


@pytest.mark.parametrize("size", [1, 255, 9001, 49152])
def test_the_greedy_choice_is_the_lowest_id_of_the_highest_logit(kernels: Kernels, size: int) -> None:
    logits = random_numbers(kernels.device, 3, size)
    logits[0] = 2.0
    logits[1, [size // 2, size - 1]] = 9.0
    chosen = kernels.operations.choose_highest(logits)
    assert chosen.tolist() == [0, size // 2, logits[2].argmax().item()]


@pytest.mark.parametrize("k", [1, 5, 20, 40])
@pytest.mark.parametrize("size", [40, 300, 9001])
def test_top_values_are_ordered_by_value_and_then_by_id(kernels: Kernels, size: int, k: int) -> None:
    rows = torch.stack(
        [
            random_numbers(torch.device("cpu"), size),
            random_numbers(torch.device("cpu"), size).round(),  # many equal values
            torch.zeros(size, device="cpu"),
            torch.full((size,), -torch.inf, device="cpu"),
        ]
    )
    rows[3, 5] = -1.0
    values, ids = kernels.operations.find_top(rows.to(kernels.device), k)
    for row, found, found_values in zip(rows, ids.tolist(), values.tolist(), strict=True):
        numbers = row.tolist()
        expected = sorted(range(size), key=lambda i: (-numbers[i], i))[:k]
        assert found == expected
        assert found_values == [numbers[i] for i in expected]
