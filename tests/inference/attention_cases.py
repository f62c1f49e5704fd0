"""Reference attention over a paged KV cache, and the output of a kernel for the same inputs."""

import torch

from inference.compute.attention import Attend, PagedInputs

BLOCK = 4


def plain(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int, softcap: float
) -> torch.Tensor:
    """Attention of one query [heads, size] over its context [L, kv_heads, size], in float64.

    Returns [heads, value_size].
    """
    shared = len(query) // keys.shape[1]
    keys, values = (x.double().repeat_interleave(shared, 1) for x in (keys, values))
    scores = torch.einsum("hd,lhd->hl", query.double(), keys) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if window:
        scores[:, : max(0, len(keys) - window)] = -torch.inf
    return torch.einsum("hl,lhd->hd", scores.softmax(-1), values)


def attend(
    act: Attend,
    sequences: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    size: int,
    value_size: int,
    window: int = 0,
    softcap: float = 0.0,
    like: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of the kernel `act` and the reference, both on the CPU.

    `sequences`: the length of each sequence and the number of its new tokens. `like`: a tensor with the dtype
    and the device for the kernel. Default: float32 on the CPU.
    """
    like = torch.empty(0, device="cpu") if like is None else like
    with torch.device("cpu"):  # the default device of the tests may be a GPU
        return _attend(act, sequences, (heads, kv_heads, size, value_size), window, softcap, like)


def _attend(
    act: Attend,
    sequences: list[tuple[int, int]],
    shape: tuple[int, int, int, int],
    window: int,
    softcap: float,
    like: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    heads, kv_heads, size, value_size = shape
    generator = torch.Generator().manual_seed(sum(length for length, _ in sequences) + size)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(like.dtype)

    width = -(-max(length for length, _ in sequences) // BLOCK)
    order = torch.randperm(len(sequences) * width, generator=generator)
    blocks = order.view(len(sequences), width).int()
    keys, values = (normal(len(sequences) * width * BLOCK + 1, kv_heads, n) for n in (size, value_size))
    positions = [torch.arange(length - new, length) for length, new in sequences]
    slot_rows = [
        row.long()[at // BLOCK] * BLOCK + at % BLOCK for row, at in zip(blocks, positions, strict=True)
    ]
    starts = torch.tensor([0, *(new for _, new in sequences)]).cumsum(0)
    tokens = int(starts[-1])
    query, key = (normal(1, tokens, n, size).transpose(1, 2) for n in (heads, kv_heads))
    value = normal(1, tokens, kv_heads, value_size).transpose(1, 2)
    caches = keys.to(like.device, copy=True), values.to(like.device, copy=True)
    slots = torch.cat(slot_rows)
    inputs = PagedInputs(
        *caches, *(x.to(like.device) for x in (slots, blocks, starts, torch.cat(positions))), BLOCK
    )
    new = (x.to(like.device) for x in (query, key, value))
    num_decodes = next((i for i, (_, count) in enumerate(sequences) if count > 1), len(sequences))
    with like.device:
        output = act(*new, inputs, num_decodes, 0.3, window, softcap)
    keys[slots], values[slots] = key[0].transpose(0, 1), value[0].transpose(0, 1)
    assert torch.equal(caches[0].cpu(), keys), "the new keys are stored, and nothing else is"
    assert torch.equal(caches[1].cpu(), values)
    expected = []
    for i, at in enumerate(positions):
        context = (blocks[i].long()[:, None] * BLOCK + torch.arange(BLOCK)).view(-1)
        for token, position in enumerate(at.tolist(), int(starts[i])):
            seen = context[: position + 1]
            expected.append(plain(query[0, :, token], keys[seen], values[seen], 0.3, window, softcap))
    return output.cpu(), torch.stack(expected)


SINGLES = [(length, 1) for length in (1, 2, 5, 31, 32, 33, 64, 100)]
CHUNKS = [(1, 1), (2, 2), (40, 3), (32, 32), (33, 33), (100, 100), (97, 31), (50, 1), (150, 64)]
