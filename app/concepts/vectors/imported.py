"""Imported vectors: what is known about them, and the model that they belong to. Knows no files."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from app.errors import ApiError, ErrorCode, InvalidRequest, shorten
from inference.interface.concepts import GivenVectors
from inference.interface.protocol import ModelInfo

_log = logging.getLogger(__name__)

_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class ServedModel:
    """The model that the server serves."""

    name: str
    weights_digest: str
    hidden_size: int
    num_layers: int

    @staticmethod
    def of(name: str, model: ModelInfo) -> "ServedModel":
        return ServedModel(name, model.weights_digest, model.hidden_size, model.num_layers)


class VectorsRecord(msgspec.Struct, frozen=True):
    """Everything about imported vectors but their values."""

    digest: str
    """Of the values, of this record, and of the examples that were imported with them: see `digest_of`."""
    model: str
    """The name of the model at the time of the import."""
    weights_digest: str
    """The digest of the model's weights. The vectors can be used with this model only."""
    hidden_size: int
    given: GivenVectors
    """The vectors, without their values."""


@dataclass(frozen=True)
class ImportedVectors:
    record: VectorsRecord
    read_values: Callable[[], bytes] = field(compare=False, repr=False)
    """Returns GivenVectors.values. May raise OSError or ApiError."""
    examples_digest: str = ""
    """The digest of the examples that were imported with them. Empty if there are none."""

    def load(self) -> GivenVectors:
        """The vectors with their values. Raises an ApiError if they cannot be read or are not the same."""
        try:
            values = self.read_values()
        except OSError:
            _log.exception("imported vectors cannot be read")
            raise ApiError(ErrorCode.UNAVAILABLE, "the concept's vectors cannot be read") from None
        given = msgspec.structs.replace(self.record.given, values=values)
        if digest_of(given, self.record.weights_digest, self.examples_digest) != self.record.digest:
            raise InvalidRequest("the file of its vectors has changed since the import")
        return given


def bind(given: GivenVectors, served: ServedModel, examples_digest: str) -> ImportedVectors:
    """New vectors for the served model."""
    record = VectorsRecord(
        digest=digest_of(given, served.weights_digest, examples_digest),
        model=served.name,
        weights_digest=served.weights_digest,
        hidden_size=served.hidden_size,
        given=msgspec.structs.replace(given, values=b""),
    )
    return ImportedVectors(record, lambda: given.values, examples_digest)


def digest_of(given: GivenVectors, weights_digest: str, examples_digest: str) -> str:
    """SHA-256, in hex, of all that decides about the vectors' effect and report."""
    facts = [
        weights_digest,
        examples_digest,
        list(given.blocks),
        given.down_scale,
        given.max_strength,
        given.max_down_strength,
        given.reading_block,
        given.reading_range,
        given.pairs_digest,
    ]
    if given.up_blocks is not None or given.down_blocks is not None:
        facts += [given.up_blocks, given.down_blocks]
    if given.lengths is not None:
        facts.append({"lengths": given.lengths})
    return hashlib.sha256(json.dumps(facts).encode() + b"\n" + given.values).hexdigest()


def refusal(record: VectorsRecord, served: ServedModel) -> InvalidRequest | None:
    """The error for vectors of another model. None if they belong to the served model."""
    if record.weights_digest == served.weights_digest:
        return None
    return another_model(record.model, record.weights_digest, served)


def another_model(name: str, weights_digest: str, served: ServedModel) -> InvalidRequest:
    """`name` and `weights_digest`: of the model that the vectors belong to."""
    return InvalidRequest(
        f"the vectors belong to the model {shorten(name)} (weights {_brief(weights_digest)}); this server "
        f"serves {shorten(served.name)} (weights {_brief(served.weights_digest)})"
    )


def _brief(digest: str) -> str:
    return digest[:_SHOWN_DIGITS] + "…"
