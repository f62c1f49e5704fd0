"""The sampling parameters of a step as tensors, and how they come from the sequences' parameters."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from inference.compute.sampling.logprobs import LogprobRows
from inference.compute.sampling.operations import Truncation
from inference.compute.sampling.output_history import OutputHistory
from inference.compute.sampling.penalties import Penalties
from inference.compute.transfer import Arrays, upload
from inference.interface.requests import SamplingParams
from inference.scheduling.sequence import FloatArray, IntArray, Sequence

_MIN_TEMPERATURE = 1e-5  # at lower temperatures, sampling from float32 logits gives the maximum anyway


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
    """The sampling parameters of S rows. An option that no row uses is None."""

    penalties: Penalties | None
    bias: Entries | None
    allowed_tokens: Entries | None
    """In a row that has entries here, only these tokens can be sampled. The values are 0."""
    random_rows: torch.Tensor | None  # [R] rows that sample at random; the others take the maximum
    temperature: torch.Tensor  # [R, 1]
    uniform: torch.Tensor  # [R, 1] float64 in [0, 1)
    truncation: Truncation | None  # its rows are indices into R
    logprobs: LogprobRows | None


def build_batch(
    sequences: list[Sequence], ahead: bool, vocab_size: int, history: OutputHistory, device: torch.device
) -> SamplingBatch:
    """See `Sampler.prepare`."""
    params = [sequence.sampling for sequence in sequences]
    random_rows = [row for row, p in enumerate(params) if not _is_greedy(p)]
    drawn = [params[row] for row in random_rows]
    truncated = [i for i, p in enumerate(drawn) if _has_top_k(p, vocab_size) or p.top_p < 1]
    penalised = [row for row, p in enumerate(params) if p.frequency_penalty or p.presence_penalty]
    logprobs = {row: p.top_logprobs for row, p in enumerate(params) if p.top_logprobs is not None}
    arrays = {
        **_entries("bias", _biases(sequences)),
        **_entries("allowed_tokens", _allowed_tokens(sequences)),
        **_penalties(sequences, penalised, history, ahead),
        "random_rows": np.array(random_rows, np.int64),
        "temperature": _column([p.temperature for p in drawn], np.float32),
        "uniform": _column([_uniform(sequences[row], ahead) for row in random_rows], np.float64),
        "truncated": np.array(truncated, np.int64),
        "top_k": _column([min(drawn[i].top_k or vocab_size, vocab_size) for i in truncated], np.int64),
        "top_p": _column([drawn[i].top_p for i in truncated], np.float64),
        "logprob_rows": np.array(list(logprobs), np.int64),
    }
    tensors = upload(arrays, device)
    return SamplingBatch(
        penalties=_take_penalties(tensors, arrays, history) if penalised else None,
        bias=_take_entries("bias", tensors),
        allowed_tokens=_take_entries("allowed_tokens", tensors),
        random_rows=tensors["random_rows"] if random_rows else None,
        temperature=tensors["temperature"],
        uniform=tensors["uniform"],
        truncation=_take_truncation(tensors, [drawn[i] for i in truncated], vocab_size),
        logprobs=LogprobRows(tensors["logprob_rows"], logprobs) if logprobs else None,
    )


def _is_greedy(params: SamplingParams) -> bool:
    return params.temperature < _MIN_TEMPERATURE or params.top_p == 0 or params.top_k == 1


def _has_top_k(params: SamplingParams, vocab_size: int) -> bool:
    return params.top_k is not None and params.top_k < vocab_size


def _uniform(sequence: Sequence, ahead: bool) -> float:
    """In [0, 1), with only 32 bits, so that its product with a float64 sum stays below the sum."""
    return sequence.draw(ahead) / 2**32


def _column(values: list[float] | list[int], dtype: DTypeLike) -> NDArray[np.generic]:
    return np.array(values, dtype)[:, None]


def _take_truncation(
    tensors: dict[str, torch.Tensor], params: list[SamplingParams], vocab_size: int
) -> Truncation | None:
    if not params:
        return None
    has_top_k = any(_has_top_k(p, vocab_size) for p in params)
    has_top_p = any(p.top_p < 1 for p in params)
    return Truncation(
        tensors["truncated"],
        top_k=tensors["top_k"] if has_top_k else None,
        top_p=tensors["top_p"] if has_top_p else None,
    )


def _penalties(
    sequences: list[Sequence], penalised: list[int], history: OutputHistory, ahead: bool
) -> dict[str, NDArray[np.generic]]:
    if not penalised:
        return {}
    params = [sequences[row].sampling for row in penalised]
    arrays: Arrays = {
        **history.prepare([sequences[row] for row in penalised], ahead),
        "rows": np.array(penalised, np.int64),
        "frequency": _column([p.frequency_penalty for p in params], np.float32),
        "presence": _column([p.presence_penalty for p in params], np.float32),
    }
    return {f"penalties.{name}": array for name, array in arrays.items()}


def _take_penalties(tensors: dict[str, torch.Tensor], arrays: Arrays, history: OutputHistory) -> Penalties:
    parts = {
        name.removeprefix("penalties."): tensor
        for name, tensor in tensors.items()
        if name.startswith("penalties.")
    }
    history.restore(parts)
    names = ("rows", "slots", "lengths", "frequency", "presence")
    longest = int(arrays["penalties.lengths"].max())
    return Penalties(history, longest, **{name: parts[name] for name in names})


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
