"""Tiller's own vector file: safetensors with the vectors of one concept in one model.

It has a tensor `direction.N` of unit length for each steered decoder block N. Its metadata says how much of
this direction strength 1 adds, which model the vectors belong to, and where they come from.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from safetensors.numpy import save

from app import __version__
from app.concepts.vectors.imported import ServedModel, another_model
from app.concepts.vectors.tensors import Vector, checked, norm
from app.errors import InvalidRequest
from inference.interface.concepts import GivenVectors, VectorsResult

FORMAT = "tiller-vectors"
VERSION = "1"
VERSION_BY_SIGN = "2"
"""Of a file whose positive and negative strengths steer different blocks."""
_ROUNDING = 1e-6
"""Of a float32 vector's length."""


@dataclass(frozen=True)
class Provenance:
    """Where exported vectors come from."""

    id: str
    description: str
    examples_digest: str
    num_examples: int
    created: int
    """Seconds since 1970."""


class _Block(msgspec.Struct, frozen=True):
    block: int
    norm: float
    """Mean norm of the decoder block's output, without the first position."""
    added: Annotated[float, msgspec.Meta(gt=0)]
    """Norm of what strength 1 adds to it, or would add if positive strengths steered the block."""
    dose: float
    """`added`, divided by `norm`."""


class _Reading(msgspec.Struct, frozen=True):
    block: int
    zero: float
    """The projection on the unit direction that reads as 0."""
    one: float


Strength = Annotated[float, msgspec.Meta(ge=0, le=2)]


class _Metadata(msgspec.Struct, frozen=True):
    """What an import reads of the metadata, after its JSON is decoded."""

    version: str
    weights_digest: str
    blocks: list[_Block]
    down_scale: Annotated[float, msgspec.Meta(ge=0, le=1000)]
    max_strength: Strength
    max_down_strength: Strength
    model: str = ""
    reading: _Reading | None = None
    up_blocks: list[int] | None = None
    down_blocks: list[int] | None = None
    examples_digest: Annotated[str, msgspec.Meta(max_length=100)] = ""


def write_tiller_file(result: VectorsResult, provenance: Provenance, served: ServedModel) -> bytes:
    """The file's content. `result.vectors` must not be None."""
    given = result.vectors
    assert given is not None  # noqa: S101 - for the type checker
    rows = np.frombuffer(given.values, "<f4").reshape(len(given.blocks), -1)
    lengths = given.lengths or [norm(row) for row in rows]
    blocks = [
        _Block(block, mean, length, length / mean if mean else 0.0)
        for block, mean, length in zip(given.blocks, result.norms, lengths, strict=True)
    ]
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "id": provenance.id,
        "description": provenance.description,
        "model": served.name,
        "weights_digest": served.weights_digest,
        "hidden_size": str(served.hidden_size),
        "num_layers": str(served.num_layers),
        "blocks": _json(blocks),
        "down_scale": repr(given.down_scale),
        "max_strength": repr(given.max_strength),
        "max_down_strength": repr(given.max_down_strength),
        "examples_digest": provenance.examples_digest,
        "num_examples": str(provenance.num_examples),
        "created": str(provenance.created),
        "server_version": __version__,
    }
    if given.up_blocks is not None or given.down_blocks is not None:
        metadata["version"] = VERSION_BY_SIGN
        metadata["up_blocks"] = _json(given.blocks if given.up_blocks is None else given.up_blocks)
        metadata["down_blocks"] = _json(given.blocks if given.down_blocks is None else given.down_blocks)
    if given.reading_block is not None and given.reading_range is not None:
        metadata["reading"] = _json(_Reading(given.reading_block, *given.reading_range))
    tensors = {
        f"direction.{block}": row if given.lengths else (row / length).astype(np.float32)
        for block, row, length in zip(given.blocks, rows, lengths, strict=True)
    }
    return save(tensors, metadata)


def is_tiller_file(metadata: dict[str, str]) -> bool:
    return metadata.get("format") == FORMAT


def check_model(metadata: dict[str, str], served: ServedModel) -> None:
    """Raises InvalidRequest if the file's vectors belong to another model."""
    found = _decode(metadata)
    if found.weights_digest != served.weights_digest:
        raise another_model(found.model, found.weights_digest, served)


def read_tiller_file(metadata: dict[str, str], directions: dict[int, Vector]) -> GivenVectors:
    """The vectors as they were exported. `directions`: the file's tensors. Raises InvalidRequest."""
    found = _decode(metadata)
    added = {entry.block: entry.added for entry in found.blocks}
    if len(added) < len(found.blocks) or added.keys() != directions.keys():
        raise _invalid("blocks must list the blocks of its tensors")
    reading = found.reading
    if reading is not None and (reading.block not in added or reading.zero == reading.one):
        raise _invalid("reading must name one of its blocks, and two different projections")
    for some in (found.up_blocks, found.down_blocks):
        if some is not None and not (some and set(some) <= added.keys()):
            raise _invalid("up_blocks and down_blocks must list some of its blocks")
    for block, direction in directions.items():
        _check_length(block, direction, added[block])
    return GivenVectors(
        blocks=tuple(directions),
        values=np.concatenate([_unit(one) for one in directions.values()]).astype("<f4").tobytes(),
        down_scale=found.down_scale,
        max_strength=found.max_strength,
        max_down_strength=found.max_down_strength,
        reading_block=reading.block if reading else None,
        reading_range=(reading.zero, reading.one) if reading else None,
        pairs_digest=found.examples_digest,
        up_blocks=_sorted(found.up_blocks),
        down_blocks=_sorted(found.down_blocks),
        lengths=tuple(added[block] for block in directions),
    )


def _sorted(blocks: list[int] | None) -> tuple[int, ...] | None:
    return None if blocks is None else tuple(sorted(set(blocks)))


def _check_length(block: int, direction: Vector, length: float) -> None:
    with np.errstate(over="ignore"):
        added = (direction.astype(np.float64) / norm(direction) * length).astype(np.float32)
    checked(f"what strength 1 adds at block {block}", added)


def _unit(direction: Vector) -> Vector:
    """The direction itself if it has unit length, so that it comes back bit for bit."""
    length = norm(direction)
    return direction if math.isclose(length, 1, rel_tol=_ROUNDING) else direction / np.float32(length)


def _decode(metadata: dict[str, str]) -> _Metadata:
    if metadata.get("version") not in (VERSION, VERSION_BY_SIGN):
        raise _invalid(f"this server reads versions {VERSION} and {VERSION_BY_SIGN} of the format")
    try:
        structured = {
            name: msgspec.json.decode(metadata[name])
            for name in ("blocks", "reading", "up_blocks", "down_blocks")
            if name in metadata
        }
        found = msgspec.convert(metadata | structured, _Metadata, strict=False)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _invalid(str(error)) from None
    numbers = [found.down_scale, *(entry.added for entry in found.blocks)]
    numbers += [found.reading.zero, found.reading.one] if found.reading else []
    if not all(map(math.isfinite, numbers)):
        raise _invalid("it has a number that is not finite")
    return found


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the file's metadata cannot be used: {reason}")
