"""Attention in place, against attention written down plainly."""

import pytest
import torch

BLOCK = 4


def plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int, softcap: float
) -> torch.Tensor:
    """One query [heads, size] over its context [L, kv_heads, size]; [heads, value_size] in float64."""
    shared = len(query) // keys.shape[1]
    keys, values = (x.double().repeat_interleave(shared, 1) for x in (keys, values))
    scores = torch.einsum("hd,lhd->hl", query.double(), keys) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if window:
        scores[:, : max(0, len(keys) - window)] = -torch.inf
    return torch.einsum("hl,lhd->hd", scores.softmax(-1), values)


def attend(
    lengths: list[int],
    heads: int,
    kv_heads: int,
    size: int,
    value_size: int,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel says of sequences of these lengths, and the truth."""
    torch.manual_seed(sum(lengths) + size)
    width = -(-max(lengths) // BLOCK)
    blocks = torch.randperm(len(lengths) * width).view(len(lengths), width).int()
    keys, values = (torch.randn(len(lengths) * width * BLOCK + 1, kv_heads, n) for n in (size, value_size))
    tokens = len(lengths)
    query, key = (torch.randn(1, tokens, n, size).transpose(1, 2) for n in (heads, kv_heads))
    value = torch.randn(1, tokens, kv_heads, value_size).transpose(1, 2)
    positions = torch.tensor(lengths) - 1
    slots = blocks.long().gather(1, positions[:, None] // BLOCK)[:, 0] * BLOCK + positions % BLOCK
    output = torch.ops.tiller_cpu.paged_attention(
        query, key, value, keys, values, slots, blocks, positions, BLOCK, 0.3, window, softcap
    )
    assert torch.equal(keys[slots], key[0].transpose(0, 1)), "the new keys are stored"
    assert torch.equal(values[slots], value[0].transpose(0, 1))
    expected = []
    for i, length in enumerate(lengths):
        context = (blocks[i].long()[:, None] * BLOCK + torch.arange(BLOCK)).view(-1)[:length]
        expected.append(plain(query[0, :, i], keys[context], values[context], 0.3, window, softcap))
    return output, torch.stack(expected)


@pytest.mark.parametrize("size", [4, 8, 12, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (8, 1), (4, 4)])
def test_it_equals_plain_attention(size: int, heads: int, kv_heads: int) -> None:
    output, expected = attend([1, 2, 5, 31, 32, 33, 64, 100], heads, kv_heads, size, size)
    assert (output - expected).abs().max() < 1e-5


@pytest.mark.parametrize("window", [1, 3, 32, 40])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_windows_and_softcaps(window: int, softcap: float) -> None:
    output, expected = attend([1, 30, 32, 77], 4, 2, 16, 16, window, softcap)
    assert (output - expected).abs().max() < 1e-5


def test_values_may_have_a_size_of_their_own() -> None:
    output, expected = attend([3, 50], 4, 2, 24, 40)
    assert (output - expected).abs().max() < 1e-5


def test_a_sequence_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    count, length = 12, 70
    width = -(-length // BLOCK)
    keys, values = (
        torch.randn(count * width * BLOCK + 1, 2, 64),
        torch.randn(count * width * BLOCK + 1, 2, 64),
    )
    blocks = torch.randperm(count * width).view(count, width).int()
    query, new = torch.randn(1, 4, count, 64), torch.randn(1, 2, count, 64)
    positions = torch.randint(1, length, (count,))
    slots = blocks.long().gather(1, positions[:, None] // BLOCK)[:, 0] * BLOCK + positions % BLOCK

    def run(rows: list[int]) -> torch.Tensor:
        at = [tensor[:, :, rows] for tensor in (query, new, new)]
        caches = keys.clone(), values.clone()
        return torch.ops.tiller_cpu.paged_attention(
            *at, *caches, slots[rows], blocks[rows], positions[rows], BLOCK, 0.125, 0, 0.0
        )

    together = run(list(range(count)))
    for rows in ([0], [3, 4], [11, 2, 7], list(range(5))):
        assert torch.equal(run(rows), together[rows])


def test_far_apart_scores_do_not_overflow() -> None:
    keys = torch.tensor([0.0, 1e4, -1e4, 3e3]).view(4, 1, 1).repeat(1, 1, 8)
    values = torch.arange(4.0).view(4, 1, 1).repeat(1, 1, 8)
    query, new = torch.ones(1, 1, 1, 8), torch.full((1, 1, 1, 8), 3e3)
    output = torch.ops.tiller_cpu.paged_attention(
        query,
        new,
        new,
        keys,
        values,
        torch.tensor([3]),
        torch.zeros(1, 1, dtype=torch.int32),
        torch.tensor([3]),
        BLOCK,
        1.0,
        0,
        0.0,
    )
    assert torch.equal(output, torch.ones(1, 1, 8))
