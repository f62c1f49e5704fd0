"""Samples a token from each row of logits, with the row's own parameters. Knows no model and no text.

Order: penalties, logit_bias, temperature, top_k, top_p, sampling. An option that no row of the batch uses
is None in the SamplingBatch and costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from inference.compute.transfer import AsyncCopy, upload
from inference.interface.protocol import SamplingParams, TokenLogprobs
from inference.scheduling.sequence import FloatArray, IntArray, Sequence

_PIECE = 256  # tokens per partial sum; sampling adds up single tokens only inside one piece of the vocabulary
_SORTED_ROWS = 32  # rows sorted at a time, since sorting takes ten times a row's memory
_MIN_TEMPERATURE = 1e-5  # at lower temperatures, sampling from float32 logits gives the maximum anyway

NOT_A_TOKEN = -1
"""The result for a row whose logits are not finite."""


class Sampled:
    """The sampled token of each row. `read` gives it once the device has computed it."""

    def __init__(self, tokens: torch.Tensor, logprobs: torch.Tensor | None, batch: "SamplingBatch") -> None:
        self.tokens = tokens
        """[S] on the device; NOT_A_TOKEN for a row whose logits are not finite."""
        self._copy = AsyncCopy(tokens)
        self._logprobs = logprobs
        self._batch = batch

    def read(self) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Waits until the device has sampled these tokens, but not for work launched later."""
        return self._copy.read(), _token_logprobs(self._logprobs, self.tokens, self._batch)


@dataclass(frozen=True)
class Entries:
    """Values for single entries of the [S, vocab_size] logits."""

    rows: torch.Tensor  # [N]
    columns: torch.Tensor  # [N]
    values: torch.Tensor  # [N] float32


class RowEntries(NamedTuple):
    """The part of Entries that belongs to one row."""

    row: int
    columns: IntArray
    values: FloatArray


@dataclass(frozen=True)
class SamplingBatch:
    """The sampling parameters of S rows."""

    penalties: Entries | None
    bias: Entries | None
    allowed_tokens: Entries | None
    """In a row that has entries here, only these tokens can be sampled. The values are 0."""
    random_rows: torch.Tensor | None  # [R] rows that sample at random; the others take the maximum
    temperature: torch.Tensor  # [R, 1]
    uniform: torch.Tensor  # [R, 1] float64 in [0, 1)
    truncated: torch.Tensor | None  # [R'] indices into R: rows with top_k or top_p
    top_k: torch.Tensor  # [R', 1]
    top_p: torch.Tensor  # [R', 1]
    logprob_rows: torch.Tensor | None  # [P]
    num_logprobs: list[int | None]
    """[S] How many of the most likely tokens to report; None: no log probabilities for this row."""


Weigh = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""See `weigh`."""


def weigh(logits: torch.Tensor, temperature: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Replaces `logits` [R, N] by weights: the probabilities at `temperature` [R, 1] times a factor per row.

    Returns each row's highest logit [R], and float64 sums [R, ceil(N / piece)] of every `piece` weights. The
    highest logit is not finite if the row has a nan or inf, or if all its logits are -inf.
    """
    # The maximum becomes 0, so that exp cannot overflow at any temperature.
    highest = logits.amax(-1)
    logits.sub_(highest[:, None]).div_(temperature).exp_()
    whole = logits.shape[-1] // piece * piece
    sums = logits[:, :whole].view(len(logits), -1, piece).sum(-1, dtype=torch.float64)
    if whole < logits.shape[-1]:
        sums = torch.cat([sums, logits[:, whole:].sum(-1, keepdim=True, dtype=torch.float64)], 1)
    return highest, sums


class Sampler:
    def __init__(self, vocab_size: int, device: torch.device, weigh: Weigh = weigh) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._weigh = weigh

    def prepare(self, sequences: list[Sequence], ahead: bool = False) -> SamplingBatch:
        """The parameters for each sequence's next token, or with `ahead` for the token after it."""
        params = [sequence.sampling for sequence in sequences]
        random_rows = [row for row, p in enumerate(params) if not _is_greedy(p)]
        drawn = [params[row] for row in random_rows]
        truncated = [i for i, p in enumerate(drawn) if p.top_k is not None or p.top_p < 1]
        num_logprobs = [p.top_logprobs for p in params]
        logprob_rows = [row for row, k in enumerate(num_logprobs) if k is not None]
        arrays = {
            **_entries("penalties", _penalties(sequences)),
            **_entries("bias", _biases(sequences)),
            **_entries("allowed_tokens", _allowed_tokens(sequences)),
            "random_rows": np.array(random_rows, np.int64),
            "temperature": _column([p.temperature for p in drawn], np.float32),
            "uniform": _column([_uniform(sequences[row], ahead) for row in random_rows], np.float64),
            "truncated": np.array(truncated, np.int64),
            "top_k": _column([drawn[i].top_k or self.vocab_size for i in truncated], np.int64),
            "top_p": _column([drawn[i].top_p for i in truncated], np.float64),
            "logprob_rows": np.array(logprob_rows, np.int64),
        }
        tensors = upload(arrays, self.device)
        return SamplingBatch(
            penalties=_take_entries("penalties", tensors),
            bias=_take_entries("bias", tensors),
            allowed_tokens=_take_entries("allowed_tokens", tensors),
            random_rows=tensors["random_rows"] if random_rows else None,
            temperature=tensors["temperature"],
            uniform=tensors["uniform"],
            truncated=tensors["truncated"] if truncated else None,
            top_k=tensors["top_k"],
            top_p=tensors["top_p"],
            logprob_rows=tensors["logprob_rows"] if logprob_rows else None,
            num_logprobs=num_logprobs,
        )

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> Sampled:
        """Samples from `logits` [S, vocab_size] float32 and overwrites them. Does not wait for the device."""
        logprobs = None
        if batch.logprob_rows is not None:
            logprobs = logits[batch.logprob_rows].log_softmax(-1)
        if batch.penalties is not None:
            _add(logits, batch.penalties)
        if batch.bias is not None:
            _add(logits, batch.bias)
        if batch.allowed_tokens is not None:
            _keep_only(logits, batch.allowed_tokens)
        return Sampled(self._choose(logits, batch), logprobs, batch)

    def _choose(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        if batch.random_rows is not None and len(batch.random_rows) == len(logits):
            highest, tokens = self._draw(logits, batch)
        else:
            highest, tokens = logits.max(-1)  # the first one of equal logits
            if batch.random_rows is not None:
                _, tokens[batch.random_rows] = self._draw(logits[batch.random_rows], batch)
        return torch.where(highest.isfinite(), tokens, NOT_A_TOKEN)

    def _draw(self, logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row's highest logit [R] and a sampled token [R]. Overwrites `logits` [R, vocab_size].

        Samples by inverting each row's cumulative distribution at its uniform number.
        """
        highest, sums = self._weigh(logits, batch.temperature, _PIECE)
        tokens = _invert_in_two_steps(logits, sums, batch.uniform)
        if batch.truncated is not None:
            parts = (batch.truncated, batch.top_k, batch.top_p)
            for rows, top_k, top_p in zip(*(torch.split(part, _SORTED_ROWS) for part in parts), strict=True):
                tokens[rows] = _draw_truncated(logits[rows], batch.uniform[rows], top_k, top_p)
        return highest, tokens


def _entries(name: str, parts: list[RowEntries]) -> dict[str, NDArray[np.generic]]:
    """Joins the entries of all rows, without a Python loop over entries."""
    if not parts:
        return {}
    return {
        f"{name}.rows": np.repeat([part.row for part in parts], [len(part.columns) for part in parts]),
        f"{name}.columns": np.concatenate([part.columns for part in parts]),
        f"{name}.values": np.concatenate([part.values for part in parts]),
    }


def _take_entries(name: str, tensors: dict[str, torch.Tensor]) -> Entries | None:
    if f"{name}.rows" not in tensors:
        return None
    return Entries(*(tensors[f"{name}.{part}"] for part in ("rows", "columns", "values")))


def _column(values: list[float] | list[int], dtype: DTypeLike) -> NDArray[np.generic]:
    return np.array(values, dtype)[:, None]


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature < _MIN_TEMPERATURE or params.top_p == 0 or params.top_k == 1


def _uniform(sequence: Sequence, ahead: bool) -> float:
    """In [0, 1), with only 32 bits, so that its product with a float64 sum stays below the sum."""
    return sequence.draw(ahead) / 2**32


def _penalties(sequences: list[Sequence]) -> list[RowEntries]:
    """Subtracts frequency_penalty for each occurrence of a token in the output, and presence_penalty once."""
    parts = []
    for row, sequence in enumerate(sequences):
        sampling = sequence.sampling
        for penalty, occurrences in (
            (sampling.frequency_penalty, sequence.output_token_ids),
            (sampling.presence_penalty, sequence.distinct_output_token_ids),
        ):
            if penalty and occurrences:
                columns = np.array(occurrences)
                parts.append(RowEntries(row, columns, np.full(len(columns), -penalty, np.float32)))
    return parts


def _biases(sequences: list[Sequence]) -> list[RowEntries]:
    return [
        RowEntries(row, sequence.bias.token_ids, sequence.bias.values)
        for row, sequence in enumerate(sequences)
        if sequence.bias is not None
    ]


def _allowed_tokens(sequences: list[Sequence]) -> list[RowEntries]:
    return [
        RowEntries(
            row, sequence.bias.allowed_token_ids, np.zeros(len(sequence.bias.allowed_token_ids), np.float32)
        )
        for row, sequence in enumerate(sequences)
        if sequence.bias is not None and len(sequence.bias.allowed_token_ids)
    ]


def _add(logits: torch.Tensor, entries: Entries) -> None:
    logits.index_put_((entries.rows, entries.columns), entries.values, accumulate=True)


def _keep_only(logits: torch.Tensor, allowed_tokens: Entries) -> None:
    selected = torch.zeros_like(logits, dtype=torch.bool)
    selected[allowed_tokens.rows, allowed_tokens.columns] = True
    logits.masked_fill_(selected.any(-1, keepdim=True) & ~selected, float("-inf"))


def _invert_in_two_steps(weights: torch.Tensor, sums: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index [R] at which the cumulative sum of `weights` [R, N] exceeds `uniform` [R, 1] * total.

    First adds up the `sums` of the row's pieces, and then the weights of one piece only.
    """
    size = weights.shape[-1]
    cumulative = sums.cumsum(-1)
    target = uniform * cumulative[:, -1:]
    piece = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)
    before = cumulative.gather(-1, piece) - sums.gather(-1, piece)
    ids = piece * _PIECE + torch.arange(_PIECE, device=weights.device)
    parts = weights.gather(-1, ids.clamp(max=size - 1)).double().masked_fill_(ids >= size, 0.0)
    found = torch.searchsorted(parts.cumsum(-1), target - before, right=True)
    # Only rounding can give an index after the last token with a weight above 0.
    last = torch.where(parts > 0, ids, 0).amax(-1, keepdim=True)
    return torch.minimum(piece * _PIECE + found, last)[:, 0]


def _draw_truncated(
    weights: torch.Tensor, uniform: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor
) -> torch.Tensor:
    """Tokens [R'], sampled from `weights` [R', vocab_size] after top_k and top_p."""
    ranked, ids = weights.sort(dim=-1, descending=True, stable=True)
    chosen = _invert(_truncate(ranked.double(), top_k, top_p).cumsum(-1), uniform)
    return ids.gather(-1, chosen[:, None])[:, 0]


def _truncate(ranked: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keeps the first top_k entries, and of these the fewest that reach top_p of their sum. Zeroes the rest.

    `ranked`: probabilities [R', vocab_size] times a factor per row, in falling order.
    top_p: Holtzman et al., arXiv:1904.09751.
    """
    ranks = torch.arange(ranked.shape[-1], device=ranked.device)
    ranked = ranked * (ranks < top_k)
    before = ranked.cumsum(-1) - ranked
    # The first entry stays even if top_p is so small that the product is 0.
    return ranked * ((before < top_p * ranked.sum(-1, keepdim=True)) | (ranks == 0))


def _invert(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index [R] at which the cumulative sum exceeds `uniform` * total."""
    indices = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
    return indices.clamp(max=cumulative.shape[-1] - 1)  # larger only if the sums are nan


def _token_logprobs(
    logprobs: torch.Tensor | None, tokens: torch.Tensor, batch: SamplingBatch
) -> list[TokenLogprobs | None]:
    results: list[TokenLogprobs | None] = [None] * len(batch.num_logprobs)
    if logprobs is None or batch.logprob_rows is None:
        return results
    chosen = logprobs.gather(-1, tokens[batch.logprob_rows, None].clamp(min=0))[:, 0].tolist()
    most = max(k for k in batch.num_logprobs if k is not None)
    values, ids = _top(logprobs, min(most, logprobs.shape[-1]))
    logprob_rows = [row for row, k in enumerate(batch.num_logprobs) if k is not None]
    rows = zip(logprob_rows, chosen, ids.tolist(), values.tolist(), strict=True)
    for row, logprob, top_ids, top_values in rows:
        k = batch.num_logprobs[row]
        results[row] = TokenLogprobs(logprob, list(zip(top_ids[:k], top_values[:k], strict=True)))
    return results


def _top(logprobs: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's k highest values and their ids. Orders equal values by id, which topk does not guarantee."""
    ids = torch.arange(logprobs.shape[-1], device=logprobs.device)
    # Smaller than the distance between any two float32 log probabilities that can be among the highest.
    found = (logprobs.double() - ids * 1e-13).topk(k).indices
    return logprobs.gather(-1, found), found
