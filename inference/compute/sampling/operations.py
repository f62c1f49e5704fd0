"""The operations of sampling on matrices of logits or weights, in torch. A back end may replace each one.

A weight is a probability times a factor per row. Weights come with the float64 sums of their pieces. A
piece is PIECE tokens of the vocabulary; the last piece of a row may be shorter.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

NOT_A_TOKEN = -1
"""The result for a row whose logits are not finite."""

PIECE = 256  # sampling adds up single tokens only inside one piece

_SORTED_ROWS = 32  # rows sorted at a time, since sorting takes ten times a row's memory


@dataclass(frozen=True)
class Truncation:
    """The rows of a batch that use top_k or top_p."""

    rows: torch.Tensor
    """[R'] int64, rows of the weights."""
    top_k: torch.Tensor | None
    """[R', 1] int64, at least 1; at least the size of the vocabulary in a row without top_k. None: no row
    uses it."""
    top_p: torch.Tensor | None
    """[R', 1] float64 in (0, 1]; 1 in a row without top_p. None: no row uses it."""


ChooseHighest = Callable[[torch.Tensor], torch.Tensor]
Weigh = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
Truncate = Callable[[torch.Tensor, torch.Tensor, Truncation], None]
Invert = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
FindTop = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def choose_highest(logits: torch.Tensor) -> torch.Tensor:
    """The lowest id [S] of each row's highest logit [S, N], or NOT_A_TOKEN if a logit is nan or inf."""
    highest, tokens = logits.max(-1)  # the first one of equal logits
    return _tokens_of_finite_rows(tokens, highest)


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces `logits` [R, N] by weights: the probabilities at `temperature` [R, 1] times a factor per row.

    Returns each row's highest logit [R], and float64 sums [R, ceil(N / piece)] of every `piece` weights. The
    highest logit is not finite if the row has a nan or inf, or if all its logits are -inf.
    """
    # The maximum becomes 0, so that exp cannot overflow at any temperature.
    highest = logits.amax(-1)
    logits.sub_(highest[:, None]).div_(temperature).exp_()
    return highest, _sum_pieces(logits, piece)


def truncate(weights: torch.Tensor, sums: torch.Tensor, truncation: Truncation) -> None:
    """Applies top_k and then top_p: sets the weights [R, N] of all other tokens to 0, and updates the sums.

    Keeps the first top_k tokens, and of these the fewest whose sum reaches top_p of their total. The order is
    by falling weight; equal weights are in the order of their ids.
    top_p: Holtzman et al., arXiv:1904.09751.
    """
    for start in range(0, len(truncation.rows), _SORTED_ROWS):
        part = slice(start, start + _SORTED_ROWS)
        rows = truncation.rows[part]
        chosen = weights[rows]
        ranked = _sort(chosen).flip(-1)
        kept = _count_kept(ranked.double(), truncation, part)  # [R', 1]
        lowest = ranked.gather(-1, kept - 1)
        num_equal = kept - (ranked > lowest).sum(-1, keepdim=True)  # kept tokens with the lowest weight
        equal = chosen == lowest
        chosen.masked_fill_((chosen < lowest) | (equal & (equal.cumsum(-1) > num_equal)), 0.0)
        weights[rows] = chosen
        sums[rows] = _sum_pieces(chosen, PIECE)


def invert(
    weights: torch.Tensor, sums: torch.Tensor, uniform: torch.Tensor, highest: torch.Tensor
) -> torch.Tensor:
    """Samples a token [R] for each row, by inverting the cumulative sums of its weights.

    The token is the first index at which the cumulative sum of `weights` [R, N] exceeds `uniform` [R, 1]
    float64 times the total. Adds up the pieces' `sums` first, and then the weights of one piece only. Returns
    NOT_A_TOKEN where `highest` [R] is not finite.
    """
    size = weights.shape[-1]
    cumulative = sums.cumsum(-1)
    target = uniform * cumulative[:, -1:]
    piece = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)
    before = cumulative.gather(-1, piece) - sums.gather(-1, piece)
    ids = piece * PIECE + torch.arange(PIECE, device=weights.device)
    parts = weights.gather(-1, ids.clamp(max=size - 1)).double().masked_fill_(ids >= size, 0.0)
    found = torch.searchsorted(parts.cumsum(-1), target - before, right=True)
    # Only rounding can give an index after the last token with a weight above 0.
    last = torch.where(parts > 0, ids, 0).amax(-1, keepdim=True)
    return _tokens_of_finite_rows(torch.minimum(piece * PIECE + found, last)[:, 0], highest)


def find_top(logprobs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's k highest values [P, k] and their ids. Equal values are in the order of their ids.

    `topk` does not say which of equal values it takes. So it gives only the values above the k-th one here,
    and the ids of values equal to the k-th one are searched for.
    """
    size = logprobs.shape[-1]
    values, ids = logprobs.topk(k)
    lowest = values[:, -1:]
    positions = torch.arange(size, dtype=torch.int32, device=logprobs.device)
    equal = torch.where(logprobs == lowest, positions, size).topk(k, largest=False).values.long()
    above = values > lowest
    ids = torch.cat([torch.where(above, ids, size), equal], -1)
    values = torch.cat([torch.where(above, values, -torch.inf), lowest.expand(-1, k)], -1)
    ids, order = ids.sort(-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values[:, :k], ids.gather(-1, order)[:, :k].clamp(max=size - 1)


@dataclass(frozen=True)
class SamplingOperations:
    """Each field is one operation, described at the function that is its default."""

    choose_highest: ChooseHighest = choose_highest
    weigh: Weigh = weigh
    truncate: Truncate = truncate
    invert: Invert = invert
    find_top: FindTop = find_top


def _count_kept(ranked: torch.Tensor, truncation: Truncation, part: slice) -> torch.Tensor:
    """How many entries [R', 1] of the float64 weights [R', N], in falling order, top_k and top_p keep."""
    ranks = torch.arange(ranked.shape[-1], device=ranked.device)
    kept = (ranks == 0) | (ranked > 0)  # The first entry stays even if top_p times the sum is 0.
    if truncation.top_k is not None:
        within = ranks < truncation.top_k[part]
        kept &= within
        ranked = ranked * within
    if truncation.top_p is not None:
        before = ranked.cumsum(-1) - ranked
        kept &= (before < truncation.top_p[part] * ranked.sum(-1, keepdim=True)) | (ranks == 0)
    return kept.sum(-1, keepdim=True).clamp(min=1)  # 0 only if the row has a nan


def _sort(weights: torch.Tensor) -> torch.Tensor:
    if weights.device.type == "cpu":  # numpy takes a quarter of torch's time
        return torch.from_numpy(np.sort(weights.numpy(), axis=-1))
    return weights.sort(-1).values


def _sum_pieces(weights: torch.Tensor, piece: int) -> torch.Tensor:
    whole = weights.shape[-1] // piece * piece
    sums = weights[:, :whole].view(len(weights), -1, piece).sum(-1, dtype=torch.float64)
    if whole < weights.shape[-1]:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], 1)
    return sums


def _tokens_of_finite_rows(tokens: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    return torch.where(highest.abs() < torch.inf, tokens, NOT_A_TOKEN)
