"""Reads a GGUF file from memory: its string metadata and its tensors.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package is no alternative for files of
strangers: it reads files from disk only, and makes an object for each element of each array in them.
"""

import struct
from dataclasses import dataclass
from math import prod

from app.concepts.vectors.tensors import ITEM_SIZES, Tensor
from app.errors import InvalidRequest, clip, shorten

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1024
"""A control vector has a handful of metadata entries, and one tensor for each decoder block."""
_MAX_STRINGS = 65_536
"""In an array."""
_MAX_NAME = 65_535
_MAX_TEXT = 2**20
"""In bytes."""
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 65_536

_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each other type."""
_UINT32 = 4
_TYPES = {0: "F32", 1: "F16", 30: "BF16"}


def read_gguf(data: bytes) -> tuple[dict[str, str], list[Tensor]]:
    """The string entries of the file's metadata, and its tensors. Raises InvalidRequest."""
    cursor = _Cursor(data)
    cursor.take(len(MAGIC))
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise _invalid(f"it has version {version}; versions 2 and 3 in little-endian order are supported")
    num_tensors = _limited(cursor.number("Q"), _MAX_ENTRIES, "tensors")
    num_entries = _limited(cursor.number("Q"), _MAX_ENTRIES, "entries of metadata")
    metadata, alignment = _read_metadata(cursor, num_entries)
    entries = [_read_entry(cursor) for _ in range(num_tensors)]
    content = memoryview(data)[-(-cursor.position // alignment) * alignment :]
    _check_places(entries, alignment, len(content))
    return metadata, [
        Tensor(entry.name, entry.dtype, entry.shape, content[entry.start : entry.end]) for entry in entries
    ]


class _Cursor:
    """Reads a file from its beginning. Never reads beyond its end, whatever lengths the file claims."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self.position:
            raise _invalid("it ends within its header")
        self.position += count
        return self._data[self.position - count : self.position]

    def number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]
        return value

    def string(self, limit: int = _MAX_NAME) -> str:
        length = self.number("Q")
        if length > limit:
            raise _invalid(f"its header has a text of {clip(str(length), 30)} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise _invalid("its header has text that is not valid UTF-8") from None


def _read_metadata(cursor: _Cursor, count: int) -> tuple[dict[str, str], int]:
    """The entries whose values are strings, and the alignment of the tensors."""
    names: set[str] = set()
    strings: dict[str, str] = {}
    alignment = 32
    for _ in range(count):
        name, kind = cursor.string(), cursor.number("I")
        if name in names:
            raise _invalid(f"its metadata has {shorten(name)} twice")
        names.add(name)
        if kind == _STRING:
            strings[name] = cursor.string(_MAX_TEXT)
        elif name == "general.alignment" and kind == _UINT32:
            alignment = cursor.number("I")
        else:
            _skip(cursor, kind)
    if not 1 <= alignment <= _MAX_ALIGNMENT:
        raise _invalid(f"its alignment is {alignment}")
    return strings, alignment


def _skip(cursor: _Cursor, kind: int) -> None:
    """Skips a value that is not a string."""
    if kind != _ARRAY:
        cursor.take(_size(kind))
        return
    kind, count = cursor.number("I"), cursor.number("Q")
    if kind == _STRING:
        for _ in range(_limited(count, _MAX_STRINGS, "strings in an array")):
            cursor.take(cursor.number("Q"))
    else:
        cursor.take(count * _size(kind))


def _size(kind: int) -> int:
    if kind not in _SIZES:
        raise _invalid(f"its metadata has a value of the unknown type {kind}")
    return _SIZES[kind]


@dataclass(frozen=True)
class _Entry:
    """What the header says about a tensor. `start` and `end` are offsets in the part after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def _read_entry(cursor: _Cursor) -> _Entry:
    name = cursor.string()
    dimensions = _limited(cursor.number("I"), _MAX_DIMENSIONS, "dimensions in a tensor")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))
    kind, start = cursor.number("I"), cursor.number("Q")
    dtype = _TYPES.get(kind, f"with the number {kind}")
    # The number of bytes of other types does not matter, because no such tensor is read.
    return _Entry(name, dtype, shape, start, start + prod(shape) * ITEM_SIZES.get(dtype, 0))


def _check_places(entries: list[_Entry], alignment: int, length: int) -> None:
    """Each tensor must be in the file, aligned, and apart from the others."""
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.end > length:
            raise _invalid(f"it ends before the end of its tensor {shorten(entry.name)}")
        if entry.start % alignment or entry.start < end:
            raise _invalid(f"its tensor {shorten(entry.name)} begins at an invalid place")
        end = entry.end


def _limited(count: int, limit: int, what: str) -> int:
    if count > limit:
        raise _invalid(f"it has {clip(str(count), 30)} {what}; at most {limit} are allowed")
    return count


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the GGUF file cannot be used: {reason}")
