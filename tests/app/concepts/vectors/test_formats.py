"""Vector files of other tools are read exactly, and hostile ones are refused."""

import pickle
import struct
import time
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from app.concepts.vectors.formats import read_vector_file
from app.concepts.vectors.imported import ServedModel
from app.concepts.vectors.importing import import_vectors
from app.errors import InvalidRequest
from inference.interface.concepts import GivenVectors
from tests.app.concepts.vectors.files import (
    ARCHITECTURE,
    HIDDEN_SIZE,
    NUM_LAYERS,
    archive,
    array_file,
    entry,
    raw_gguf,
    raw_safetensors,
    string,
    tensor_entry,
    vector,
    write_gguf,
    write_safetensors,
)

SERVED = ServedModel("tiny", "5f" * 32, HIDDEN_SIZE, NUM_LAYERS)
MIB = 2**20


def read(data: bytes) -> GivenVectors:
    return import_vectors(read_vector_file(data), SERVED, "").load()


def values_of(given: GivenVectors) -> np.ndarray:
    return np.frombuffer(given.values, np.float32).reshape(len(given.blocks), -1)


@pytest.mark.parametrize("write", [write_gguf, write_safetensors])
def test_strength_1_adds_exactly_the_vectors_of_a_foreign_file(write: Any) -> None:
    given = read(write({3: vector(0.1), 1: -vector(2.0)}))
    assert given.blocks == (1, 3)
    assert np.array_equal(values_of(given), [-vector(2.0), vector(0.1)])
    assert (given.down_scale, given.max_strength, given.max_down_strength) == (1.0, 2.0, 2.0)
    assert (given.reading_block, given.reading_range, given.pairs_digest) == (None, None, "")


def test_the_number_of_a_direction_is_the_index_of_the_decoder_block() -> None:
    """As in llama.cpp: direction.N is added to the output of layer N, and layers count from 0."""
    for block in range(NUM_LAYERS):
        assert read(write_gguf({block: vector()})).blocks == (block,)


@pytest.mark.parametrize("architecture", [3, 2])
def test_both_versions_of_gguf_are_read(architecture: int) -> None:
    assert np.array_equal(values_of(read(raw_gguf(version=architecture))), [vector()])


def test_narrow_numbers_are_widened_exactly() -> None:
    numbers = np.array([0.1, -2.5, 1e-3, 300.0, 0, 1, 2, 3], np.float32)
    half = numbers.astype(np.float16)
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    brain = (bits.astype(np.uint32) << 16).view(np.float32)
    as_bytes = bits.view(np.uint8)
    entries = {"direction.1": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}
    for data, expected in (
        (write_safetensors({1: half}), half.astype(np.float32)),
        (write_gguf({1: half}), half.astype(np.float32)),
        (write_gguf({1: as_bytes}, raw_dtype=GGMLQuantizationType.BF16), brain),
        (raw_safetensors(entries, bits.tobytes()), brain),
    ):
        assert np.array_equal(values_of(read(data)), [expected])


def test_metadata_of_other_types_is_skipped() -> None:
    entries = [
        entry("a", 9, struct.pack("<IQ", 8, 2) + string("x") + string("y")),
        entry("b", 9, struct.pack("<IQ", 6, 3) + bytes(12)),
        *(entry(f"c{kind}", kind, bytes(8)[:size]) for kind, size in {0: 1, 3: 2, 7: 1, 12: 8}.items()),
        entry("general.alignment", 4, struct.pack("<I", 64)),
        ARCHITECTURE,
    ]
    assert read(raw_gguf(entries=entries, alignment=64)).blocks == (1,)


@pytest.mark.parametrize("component", ["null", '"hidden_states"'])
def test_easysteers_export_is_read(component: str) -> None:
    native = f'{{"version":1,"component":{component},"metadata":{{}}}}'
    strings = {"controlvector.method": "diffmean", "controlvector.easysteer": native}
    assert read(write_gguf({2: vector()}, strings=strings)).blocks == (2,)


def test_easysteers_export_for_another_part_of_the_model_is_refused() -> None:
    native = '{"version":1,"component":"attention_heads","metadata":{}}'
    with pytest.raises(InvalidRequest, match=r"attention_heads.*only hidden_states"):
        read(write_gguf({2: vector()}, strings={"controlvector.easysteer": native}))


PICKLES = [
    *(pickle.dumps([1.0], protocol=number) for number in range(2, 6)),
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",  # the start of torch's old format
    archive(),
    archive("vector.npy"),
    array_file(),
]


@pytest.mark.parametrize("data", PICKLES, ids=lambda data: repr(data[:4]))
def test_a_pickle_is_refused_with_the_way_to_convert_it(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"convert it first.*docs/steering\.md"):
        read(data)


class Unpickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was read",)


def test_no_pickle_is_ever_read() -> None:
    for number in range(6):
        with pytest.raises(InvalidRequest):
            read(pickle.dumps(Unpickled(), protocol=number))


def changed(values: Any, dtype: Any = np.float32) -> Any:
    return np.array(values, dtype)


UNFIT = {
    "another hidden size": ({1: np.ones(9, np.float32)}, "hidden size is 8"),
    "a matrix": ({1: np.ones((1, 8), np.float32)}, "hidden size is 8"),
    "a block beyond the model": ({4: vector()}, r"decoder blocks are 0 to 3"),
    "a block far beyond the model": ({9999: vector()}, r"decoder blocks are 0 to 3"),
    "zero": ({1: vector(), 2: np.zeros(8, np.float32)}, r"direction\.2 is zero"),
    "nan": ({1: changed([1, 2, np.nan, 4, 5, 6, 7, 8])}, "not finite"),
    "infinity": ({1: changed([1, 2, 3, 4, -np.inf, 6, 7, 8])}, "not finite"),
    "infinity in float16": ({1: changed([np.inf] * 8, np.float16)}, "not finite"),
    "huge numbers": ({1: changed([1e30] * 8)}, "beyond 65504"),
    "integers": ({1: changed([1] * 8, np.int32)}, "F32, F16 and BF16"),
    "float64": ({1: changed([1] * 8, np.float64)}, "F32, F16 and BF16"),
    "nothing": ({}, "no tensors"),
}


@pytest.mark.parametrize(("directions", "rule"), list(UNFIT.values()), ids=list(UNFIT))
@pytest.mark.parametrize("write", [write_gguf, write_safetensors])
def test_vectors_that_do_not_fit_the_model_are_refused(write: Any, directions: Any, rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule):
        read(write(directions) if directions else EMPTY[write])


EMPTY = {write_gguf: write_gguf({}), write_safetensors: raw_safetensors({"__metadata__": {}})}

NAMES = ["direction", "direction.", "direction.-1", "direction.+1", "direction.1x", "direction.٣",
         "direction.01", "direction. 1", "direction.1.2", "blk.1.weight", "", "x" * 60_000,
         "direction.99999999999999999999"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:20] or "empty")
def test_a_tensor_with_another_name_is_refused(name: str) -> None:
    header = {name: {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}
    for data in (raw_gguf(tensors=[tensor_entry(name)]), raw_safetensors(header, vector().tobytes())):
        with pytest.raises(InvalidRequest, match=r"must be called direction\.N|beyond the model"):
            read(data)


def test_a_name_that_occurs_twice_is_refused() -> None:
    twice = [tensor_entry(), tensor_entry(offset=32)]
    with pytest.raises(InvalidRequest, match=r"has direction\.1 twice"):
        read(raw_gguf(tensors=twice, data=vector().tobytes() * 2))
    place = '{"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}'
    header = f'{{"direction.1": {place}, "direction.1": {place}}}'.encode()
    with pytest.raises(InvalidRequest, match=r"has 'direction\.1' twice"):
        read(raw_safetensors(header, vector().tobytes()))


def quantized() -> bytes:
    return raw_gguf(tensors=[tensor_entry(kind=8)])


HOSTILE_GGUF = {
    "only the magic": b"GGUF",
    "version 1": raw_gguf(version=1),
    "big-endian": b"GGUF\x00\x00\x00\x03" + bytes(64),
    "a version of the future": raw_gguf(version=2**31),
    "2^60 tensors": raw_gguf(num_tensors=2**60),
    "one tensor too many": raw_gguf(num_tensors=2),
    "2^63 entries": raw_gguf(num_entries=2**63),
    "one entry too many": raw_gguf(num_entries=2),
    "a key of 2^62 bytes": raw_gguf(entries=[string("general.architecture", 2**62)]),
    "a value of 2^40 bytes": raw_gguf(
        entries=[string("general.architecture") + struct.pack("<I", 8) + string("x", 2**40)]
    ),
    "a key that is not UTF-8": raw_gguf(
        entries=[entry("", 4, bytes(4)).replace(bytes(8), string(b"\xff"), 1)]
    ),
    "a value that is not UTF-8": raw_gguf(entries=[ARCHITECTURE, entry("a", 8, string(b"\xff\xfe"))]),
    "a key twice": raw_gguf(entries=[ARCHITECTURE, ARCHITECTURE]),
    "an unknown type": raw_gguf(entries=[ARCHITECTURE, entry("a", 13, bytes(8))]),
    "an array of 2^63 numbers": raw_gguf(entries=[ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 4, 2**63))]),
    "an array of 2^40 strings": raw_gguf(entries=[ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 8, 2**40))]),
    "an array of arrays": raw_gguf(
        entries=[ARCHITECTURE, entry("a", 9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 0))]
    ),
    "an alignment of 0": raw_gguf(entries=[ARCHITECTURE, entry("general.alignment", 4, bytes(4))]),
    "an alignment of 2^32 - 1": raw_gguf(entries=[ARCHITECTURE, entry("general.alignment", 4, b"\xff" * 4)]),
    "no dimension": raw_gguf(tensors=[tensor_entry(shape=[])]),
    "5 dimensions": raw_gguf(tensors=[tensor_entry(shape=[8, 1, 1, 1, 1])]),
    "2^31 dimensions": raw_gguf(tensors=[string("direction.1") + struct.pack("<I", 2**31)]),
    "a dimension of 2^62": raw_gguf(tensors=[tensor_entry(shape=[2**62])]),
    "dimensions whose product overflows": raw_gguf(tensors=[tensor_entry(shape=[2**32, 2**32, 8])]),
    "an offset beyond the file": raw_gguf(tensors=[tensor_entry(offset=64)]),
    "an offset of 2^64 - 32": raw_gguf(tensors=[tensor_entry(offset=2**64 - 32)]),
    "an offset that is not aligned": raw_gguf(tensors=[tensor_entry(offset=4)], data=bytes(64)),
    "tensors that overlap": raw_gguf(tensors=[tensor_entry(), tensor_entry("direction.2")]),
    "a quantized tensor": quantized(),
    "data that is cut": raw_gguf(data=vector().tobytes()[:-1]),
    "no data": raw_gguf(data=b""),
    "another architecture": write_gguf({1: vector()}, architecture="llama"),
    "no architecture": raw_gguf(entries=[]),
    "an architecture that is a number": raw_gguf(entries=[entry("general.architecture", 4, bytes(4))]),
}


@pytest.mark.parametrize("data", list(HOSTILE_GGUF.values()), ids=list(HOSTILE_GGUF))
def test_a_gguf_file_that_lies_is_refused(data: bytes) -> None:
    assert_refused(data, "GGUF|direction|general.architecture")


PLACE = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
DATA = vector().tobytes()
HOSTILE_SAFETENSORS = {
    "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 4 GiB": (2**32 - 1).to_bytes(8, "little") + b"{}",
    "a header beyond the file": (100).to_bytes(8, "little") + b"{}",
    "not JSON": raw_safetensors(b"{nothing"),
    "not UTF-8": raw_safetensors(b'{"\xff": 1}'),
    "nested deeply": raw_safetensors(b'{"a":' * 100_000),
    "a huge number": raw_safetensors(b'{"a": ' + b"9" * 10_000 + b"}"),
    "a number for a tensor": raw_safetensors({"direction.1": 5}),
    "no shape": raw_safetensors({"direction.1": {"dtype": "F32", "data_offsets": [0, 32]}}, DATA),
    "offsets beyond the file": raw_safetensors({"direction.1": PLACE}, DATA[:-1]),
    "offsets of 2^62": raw_safetensors({"direction.1": {**PLACE, "data_offsets": [2**62, 2**62 + 32]}}, DATA),
    "offsets in reverse": raw_safetensors({"direction.1": {**PLACE, "data_offsets": [32, 0]}}, DATA),
    "negative offsets": raw_safetensors({"direction.1": {**PLACE, "data_offsets": [-32, 0]}}, DATA),
    "more offsets than the shape needs": raw_safetensors({"direction.1": {**PLACE, "shape": [4]}}, DATA),
    "no dimension": raw_safetensors(
        {"direction.1": {**PLACE, "shape": [], "data_offsets": [0, 4]}}, DATA[:4]
    ),
    "a huge dimension": raw_safetensors({"direction.1": {**PLACE, "shape": [2**62]}}, DATA),
    "dimensions whose product overflows": raw_safetensors(
        {"direction.1": {**PLACE, "shape": [2**32] * 3}}, DATA
    ),
    "tensors that overlap": raw_safetensors({"direction.1": PLACE, "direction.2": PLACE}, DATA),
    "a hole": raw_safetensors({"direction.1": {**PLACE, "data_offsets": [32, 64]}}, DATA * 2),
    "bytes after the last tensor": raw_safetensors({"direction.1": PLACE}, DATA + b"x"),
    "an unknown type": raw_safetensors({"direction.1": {**PLACE, "dtype": "F99"}}, DATA),
    "2000 tensors": raw_safetensors(
        {f"direction.{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(2000)}
    ),
    "metadata that is a list": raw_safetensors({"__metadata__": [], "direction.1": PLACE}, DATA),
    "metadata with a number": raw_safetensors({"__metadata__": {"a": 1}, "direction.1": PLACE}, DATA),
    "metadata with half a surrogate pair": raw_safetensors(
        b'{"__metadata__": {"description": "\\ud800"}, "direction.1": '
        b'{"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}',
        DATA,
    ),
}


@pytest.mark.parametrize("data", list(HOSTILE_SAFETENSORS.values()), ids=list(HOSTILE_SAFETENSORS))
def test_a_safetensors_file_that_lies_is_refused(data: bytes) -> None:
    assert_refused(data, "safetensors|direction")


@pytest.mark.parametrize("data", [b"", b"\0", b"{", b'{"examples": []}', b"PNG", bytes(100), b"(lp0\n."])
def test_any_other_content_is_refused(data: bytes) -> None:
    assert_refused(data, "must be a safetensors file or a GGUF control vector")


def assert_refused(data: bytes, rule: str) -> None:
    """The refusal is quick, needs little memory, and its message quotes little of the file."""
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(InvalidRequest, match=rule) as refused:
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 2
    assert peak < 16 * MIB + 8 * len(data)
    assert len(refused.value.message) <= 400


GOOD = {
    "gguf": write_gguf({1: vector(), 2: vector(3.0)}, strings={"controlvector.method": "pca"}),
    "safetensors": write_safetensors({1: vector(), 2: vector(3.0)}, description="x"),
}


@pytest.mark.parametrize("kind", GOOD)
@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1), junk=st.binary(min_size=0, max_size=9), cut=st.integers(0, 9))
def test_a_damaged_file_is_read_or_refused(kind: str, place: float, junk: bytes, cut: int) -> None:
    good = GOOD[kind]
    at = int(place * len(good))
    damaged = good[:at] + junk + good[at + cut :]
    with suppress(InvalidRequest):  # any other exception is a failure
        assert set(read(damaged).blocks) <= set(range(NUM_LAYERS))


@pytest.mark.parametrize("kind", GOOD)
def test_every_number_of_the_header_may_lie(kind: str) -> None:
    """Each aligned and unaligned field of 4 or 8 bytes in the header gets extreme values."""
    good = GOOD[kind]
    header = good.index(vector().tobytes())
    for at in range(header):
        for number in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1):
            for width in (4, 8):
                lie = (number % 2 ** (8 * width)).to_bytes(width, "little")
                with suppress(InvalidRequest):
                    assert set(read(good[:at] + lie + good[at + width :]).blocks) <= set(range(NUM_LAYERS))


def test_a_file_of_64_mib_that_is_refused_takes_seconds_at_most() -> None:
    many = entry("a", 9, struct.pack("<IQ", 8, 8 * MIB - 64) + bytes(8 * (8 * MIB - 64)))
    deep = b'{"a":' + b"[" * (4 * MIB - 100)
    for data in (raw_gguf(entries=[ARCHITECTURE, many]), raw_safetensors(deep, bytes(60 * MIB))):
        started = time.monotonic()
        with pytest.raises(InvalidRequest):
            read(data)
        assert time.monotonic() - started < 5
