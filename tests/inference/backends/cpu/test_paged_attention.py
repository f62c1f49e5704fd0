"""Attention over the paged KV cache, compared with a plain implementation."""

import pytest
import torch

from inference.backends.cpu.paged_attention import attend as act
from tests.inference.attention_cases import BLOCK, CHUNKS, SINGLES, attend


@pytest.mark.parametrize("size", [4, 8, 12, 64, 80, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (9, 3), (8, 1), (4, 4)])
@pytest.mark.parametrize("sequences", [SINGLES, CHUNKS], ids=["singles", "chunks"])
def test_equals_plain_attention(
    size: int, heads: int, kv_heads: int, sequences: list[tuple[int, int]]
) -> None:
    output, expected = attend(act, sequences, heads, kv_heads, size, size)
    assert (output - expected).abs().max() < 1e-5


@pytest.mark.parametrize("window", [1, 3, 32, 40])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize(
    "sequences", [[(1, 1), (30, 1), (32, 1), (77, 1)], [(1, 1), (30, 30), (77, 50), (130, 70)]]
)
def test_windows_and_softcaps(window: int, softcap: float, sequences: list[tuple[int, int]]) -> None:
    output, expected = attend(act, sequences, 4, 2, 16, 16, window, softcap)
    assert (output - expected).abs().max() < 1e-5


def test_values_may_have_another_size_than_keys() -> None:
    output, expected = attend(act, [(3, 1), (50, 1), (70, 40)], 4, 2, 24, 40)
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
        inputs = slots[rows], blocks[rows], torch.arange(len(rows) + 1), positions[rows]
        return torch.ops.tiller_cpu.paged_attention(*at, *caches, *inputs, BLOCK, 0.125, 0, 0.0)

    together = run(list(range(count)))
    for rows in ([0], [3, 4], [11, 2, 7], list(range(5))):
        assert torch.equal(run(rows), together[rows])


@pytest.mark.parametrize("window", [0, 50])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("size", [8, 20, 64, 80])
def test_a_token_does_not_depend_on_how_its_prompt_is_cut(window: int, softcap: float, size: int) -> None:
    torch.manual_seed(0)
    length, width = 170, 43
    blocks = torch.randperm(width).view(1, width).int()
    query, new = torch.randn(1, 6, length, size), torch.randn(1, 2, length, size)
    positions = torch.arange(length)
    slots = blocks[0].long()[positions // BLOCK] * BLOCK + positions % BLOCK

    def run(cuts: list[int]) -> torch.Tensor:
        caches = torch.zeros(width * BLOCK + 1, 2, size), torch.zeros(width * BLOCK + 1, 2, size)
        outputs = []
        for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
            part = slice(begin, end)
            at = [tensor[:, :, part] for tensor in (query, new, new)]
            inputs = slots[part], blocks, torch.tensor([0, end - begin]), positions[part]
            outputs.append(
                torch.ops.tiller_cpu.paged_attention(*at, *caches, *inputs, BLOCK, 0.125, window, softcap)
            )
        return torch.cat(outputs)

    whole = run([])
    for cuts in ([64], [2, 37], [100, 169], [33, 66, 99, 132], list(range(1, length))):
        assert torch.equal(run(cuts), whole)


def test_large_scores_do_not_overflow() -> None:
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
        torch.tensor([0, 1]),
        torch.tensor([3]),
        BLOCK,
        1.0,
        0,
        0.0,
    )
    assert torch.equal(output, torch.ones(1, 1, 8))
