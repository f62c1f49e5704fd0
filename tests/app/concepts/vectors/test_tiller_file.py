"""Vectors that Tiller exports can be read by anyone, and come back with their own scale."""

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load, save

from app import __version__
from app.concepts.vectors.formats import read_vector_file
from app.concepts.vectors.imported import ServedModel
from app.concepts.vectors.importing import import_vectors
from app.concepts.vectors.tiller_file import Provenance, write_tiller_file
from app.errors import InvalidRequest
from inference.interface.concepts import GivenVectors, VectorsResult
from tests.app.fakes import VECTORS
from tests.given_vectors import added_by

SERVED = ServedModel("tiny", "5f" * 32, hidden_size=8, num_layers=4)
PROVENANCE = Provenance("_worker/kind", "Kind words – 日本", "ab" * 32, 24, 1_700_000_000)
ADDED = np.frombuffer(VECTORS.values, np.float32).reshape(2, 8)


def written(vectors: GivenVectors = VECTORS) -> bytes:
    return write_tiller_file(
        VectorsResult("r", vectors, [8.0, 16.0][: len(vectors.blocks)]), PROVENANCE, SERVED
    )


def metadata_of(data: bytes, tmp_path: Any) -> dict[str, str]:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def read(data: bytes, served: ServedModel = SERVED) -> GivenVectors:
    return import_vectors(read_vector_file(data), served, "").load()


def test_the_tensors_are_the_unit_directions() -> None:
    tensors = load(written())
    assert set(tensors) == {"direction.1", "direction.2"}
    for added, tensor in zip(ADDED, (tensors["direction.1"], tensors["direction.2"]), strict=True):
        assert tensor.dtype == np.float32
        assert np.linalg.norm(tensor) == pytest.approx(1)
        assert tensor == pytest.approx(added / np.linalg.norm(added))


def test_the_metadata_says_everything_else(tmp_path: Any) -> None:
    metadata = metadata_of(written(), tmp_path)
    second = float(np.linalg.norm(ADDED[1]))
    assert json.loads(metadata.pop("blocks")) == [
        {"block": 1, "norm": 8.0, "added": 5.0, "dose": 0.625},
        {"block": 2, "norm": 16.0, "added": pytest.approx(second), "dose": pytest.approx(second / 16)},
    ]
    assert json.loads(metadata.pop("reading")) == {"block": 1, "zero": -2.0, "one": 6.0}
    assert metadata == {
        "format": "tiller-vectors",
        "version": "1",
        "id": "_worker/kind",
        "description": "Kind words – 日本",
        "model": "tiny",
        "weights_digest": "5f" * 32,
        "hidden_size": "8",
        "num_layers": "4",
        "down_scale": "0.5",
        "max_strength": "1.75",
        "max_down_strength": "1.25",
        "examples_digest": "ab" * 32,
        "num_examples": "24",
        "created": "1700000000",
        "server_version": __version__,
    }


def test_exported_vectors_come_back_with_their_own_scale() -> None:
    again = read(written())
    assert added_by(again) == pytest.approx(ADDED, rel=1e-6)
    expected = {name: getattr(VECTORS, name) for name in VECTORS.__struct_fields__} | {
        "pairs_digest": "ab" * 32
    }
    for name in expected.keys() - {"values", "lengths"}:
        assert getattr(again, name) == expected[name], name


def test_what_was_exported_comes_back_bit_for_bit() -> None:
    """With activations that are rounded to integers, a difference in the last bit can change an answer."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 8))
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")
    vectors = msgspec.structs.replace(VECTORS, values=units.tobytes(), lengths=(3.594302429823, 1 / 3))
    again = read(written(vectors))
    assert (again.values, again.lengths) == (vectors.values, vectors.lengths)


def test_vectors_without_a_reading_come_back_without_one(tmp_path: Any) -> None:
    data = written(GivenVectors((3,), ADDED[:1].tobytes()))
    assert "reading" not in metadata_of(data, tmp_path)
    again = read(data)
    assert (again.reading_block, again.reading_range) == (None, None)


def test_vectors_of_another_model_are_refused_by_name() -> None:
    other = ServedModel("large", "c0ffee" * 10, hidden_size=16, num_layers=2)
    with pytest.raises(InvalidRequest) as refused:
        read(written(), other)
    for word in ("'tiny'", "5f5f5f5f5f5f…", "'large'", "c0ffeec0ffee…"):
        assert word in refused.value.message
    assert "5f" * 7 not in refused.value.message


BY_SIGN = msgspec.structs.replace(VECTORS, up_blocks=(1,), down_blocks=(1, 2))


def test_the_signs_may_steer_different_blocks(tmp_path: Any) -> None:
    metadata = metadata_of(written(BY_SIGN), tmp_path)
    assert (metadata["version"], metadata["up_blocks"], metadata["down_blocks"]) == ("2", "[1]", "[1,2]")
    given = read(written(BY_SIGN))
    assert (given.up_blocks, given.down_blocks) == ((1,), (1, 2))
    assert given.values == read(written()).values


def test_the_name_of_the_model_may_differ() -> None:
    renamed = ServedModel("tiny-2", "5f" * 32, hidden_size=8, num_layers=4)
    assert read(written(), renamed) == read(written())


BLOCKS = [{"block": 1, "norm": 8, "added": 5, "dose": 1}, {"block": 2, "norm": 8, "added": 5, "dose": 1}]
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another version": ({"version": "3"}, "versions 1 and 2"),
    "no version": ({"version": None}, "versions 1 and 2"),
    "blocks of a sign that are others": ({"up_blocks": "[1, 3]"}, "some of its blocks"),
    "no blocks of a sign": ({"down_blocks": "[]"}, "some of its blocks"),
    "blocks of a sign that are no list": ({"down_blocks": "1"}, "down_blocks"),
    "no digest": ({"weights_digest": None}, "weights_digest"),
    "no blocks": ({"blocks": None}, "blocks"),
    "blocks that are no JSON": ({"blocks": "{"}, "metadata cannot be used"),
    "blocks of another shape": ({"blocks": "[1, 2]"}, "object"),
    "blocks that are nested deeply": ({"blocks": "[" * 100_000}, "metadata cannot be used"),
    "fewer blocks": ({"blocks": json.dumps(BLOCKS[:1])}, "the blocks of its tensors"),
    "other blocks": ({"blocks": json.dumps([BLOCKS[0], BLOCKS[1] | {"block": 3}])}, "blocks of its tensors"),
    "a block twice": ({"blocks": json.dumps([*BLOCKS, BLOCKS[0]])}, "the blocks of its tensors"),
    "zero": ({"blocks": json.dumps([BLOCKS[0], BLOCKS[1] | {"added": 0}])}, "added"),
    "negative": ({"blocks": json.dumps([BLOCKS[0], BLOCKS[1] | {"added": -1}])}, "added"),
    "infinite": ({"blocks": json.dumps(BLOCKS).replace('"added": 5', '"added": 1e999')}, "metadata"),
    "huge": ({"blocks": json.dumps([BLOCKS[0], BLOCKS[1] | {"added": 1e300}])}, "not finite"),
    "large": ({"blocks": json.dumps([BLOCKS[0], BLOCKS[1] | {"added": 1e9}])}, "beyond 65504"),
    "tiny": ({"blocks": json.dumps([BLOCKS[0], BLOCKS[1] | {"added": 1e-300}])}, "is zero"),
    "a scale that is no number": ({"down_scale": "much"}, "down_scale"),
    "a scale that is not finite": ({"down_scale": "nan"}, "finite|down_scale"),
    "a negative scale": ({"down_scale": "-1"}, "down_scale"),
    "a large maximum": ({"max_strength": "2.5"}, "max_strength"),
    "an infinite maximum": ({"max_down_strength": "inf"}, "max_down_strength"),
    "a reading without numbers": ({"reading": '{"block": 1}'}, "zero"),
    "a reading at another block": ({"reading": '{"block": 3, "zero": 0, "one": 1}'}, "one of its blocks"),
    "a reading without a range": ({"reading": '{"block": 1, "zero": 1, "one": 1}'}, "two different"),
    "a digest of a megabyte": ({"examples_digest": "x" * 2**20}, "examples_digest"),
}


@pytest.mark.parametrize(("changes", "rule"), list(BROKEN.values()), ids=list(BROKEN))
def test_a_file_with_broken_metadata_is_refused(tmp_path: Any, changes: dict[str, Any], rule: str) -> None:
    data = written()
    metadata = metadata_of(data, tmp_path) | changes
    broken = save(load(data), {name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(InvalidRequest, match=rule) as refused:
        read(broken)
    assert len(refused.value.message) <= 400


def test_a_direction_of_any_length_counts_as_its_direction(tmp_path: Any) -> None:
    data = written()
    stretched = {name: 7 * tensor for name, tensor in load(data).items()}
    again = read(save(stretched, metadata_of(data, tmp_path)))
    assert added_by(again) == pytest.approx(ADDED, rel=1e-6)
