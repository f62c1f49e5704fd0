"""Writes vector files for tests: with the public libraries, and byte by byte."""

import io
import json
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from safetensors.numpy import save

HIDDEN_SIZE = 8
NUM_LAYERS = 4
Array = Any


def vector(first: float = 1.0) -> Array:
    return np.arange(first, first + HIDDEN_SIZE, dtype=np.float32)


def write_gguf(
    directions: Mapping[int, Array],
    architecture: str = "controlvector",
    strings: Mapping[str, str] | None = None,
    raw_dtype: Any = None,
) -> bytes:
    """A control vector as repeng's ControlVector.export_gguf writes it."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vector.gguf"
        writer = GGUFWriter(path, architecture)
        writer.add_string(f"{architecture}.model_hint", "llama")
        writer.add_uint32(f"{architecture}.layer_count", len(directions))
        for name, value in (strings or {}).items():
            writer.add_string(name, value)
        for layer, direction in directions.items():
            writer.add_tensor(f"direction.{layer}", direction, raw_dtype=raw_dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def write_safetensors(directions: Mapping[int, Array], **metadata: str) -> bytes:
    return save({f"direction.{block}": np.asarray(values) for block, values in directions.items()}, metadata)


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    """A file with this header: an object, or the JSON text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def string(text: str | bytes, claimed: int | None = None) -> bytes:
    """A string in GGUF. `claimed`: the length that the file claims."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if claimed is None else claimed) + raw


ARCHITECTURE = string("general.architecture") + struct.pack("<I", 8) + string("controlvector")


def tensor_entry(
    name: str = "direction.1", shape: Sequence[int] = (HIDDEN_SIZE,), kind: int = 0, offset: int = 0
) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dimensions + struct.pack("<IQ", kind, offset)


def raw_gguf(
    *,
    entries: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] | None = None,
    data: bytes | None = None,
    version: int = 3,
    num_entries: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file from its parts. The counts are the true ones unless others are given."""
    tensors = [tensor_entry()] if tensors is None else tensors
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    head += bytes(-len(head) % alignment)
    return head + (vector().tobytes() if data is None else data)


def entry(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def archive(name: str = "archive/data.pkl") -> bytes:
    """A zip file, as torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, pickle.dumps([1.0]))
    return buffer.getvalue()


def array_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector())
    return buffer.getvalue()
