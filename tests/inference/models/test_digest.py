"""The digest of weights: a function of names, shapes and values."""

import pytest
import torch

from inference.models import digest
from inference.models.digest import digest_of

WEIGHTS = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0))
EXACT = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
def test_the_same_numbers_have_the_same_digest_in_each_dtype(dtype: torch.dtype) -> None:
    narrow = (WEIGHTS * 4).to(dtype)
    digests = {digest_of({"a": narrow}), digest_of({"a": narrow.float()})}
    assert len(digests) == 1
    assert digest_of({"a": WEIGHTS * 4}) not in digests, "rounding changes the numbers"


@pytest.mark.parametrize("dtype", [torch.float32, *EXACT, torch.float64, torch.int8, torch.int64], ids=str)
def test_every_single_number_counts(dtype: torch.dtype) -> None:
    numbers = (WEIGHTS * 20).to(dtype)
    digests = {digest_of({"a": numbers})}
    for position in range(numbers.numel()):
        changed = numbers.clone()
        changed.view(torch.uint8).view(numbers.numel(), -1)[position, 0] ^= 1
        digests.add(digest_of({"a": changed}))
    assert len(digests) == 1 + numbers.numel()


@pytest.mark.parametrize("dimension", [0, 1, 2])
def test_the_order_counts(dimension: int) -> None:
    size = WEIGHTS.shape[dimension]
    turned = (WEIGHTS.roll(shift, dimension) for shift in range(size))
    assert len({digest_of({"a": weights}) for weights in turned}) == size


def test_names_and_shapes_count() -> None:
    flat = torch.arange(12.0)
    given = [
        {"a": flat},
        {"b": flat},
        {"a": flat.view(3, 4)},
        {"a": flat.view(4, 3)},
        {"a": flat.view(12, 1)},
    ]
    given += [{"a": flat[:0]}, {"a": flat[5]}, {"a": flat[:1]}, {}]
    assert len(set(map(digest_of, given))) == len(given)


def test_the_order_of_the_tensors_and_their_strides_do_not_count() -> None:
    matrix = WEIGHTS[0]
    assert digest_of({"a": matrix, "b": WEIGHTS}) == digest_of({"b": WEIGHTS, "a": matrix.T.contiguous().T})


@pytest.mark.parametrize("part", [1, 4, 7, 20, 119])
def test_a_large_tensor_has_the_same_digest_in_parts(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    whole = digest_of({"a": WEIGHTS, "b": WEIGHTS.bfloat16(), "c": WEIGHTS.flatten()})
    monkeypatch.setattr(digest, "_PART", part)
    assert digest_of({"a": WEIGHTS, "b": WEIGHTS.bfloat16(), "c": WEIGHTS.flatten()}) == whole
