"""What one core of this processor can reach, measured by a small C++ program."""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from inference.backends.cpu import build
from inference.backends.cpu.levels import Level

_PROGRAM = Path(__file__).with_name("limits.cpp")


@dataclass(frozen=True)
class Limits:
    """Per second and core; a multiplication and its addition are two operations. 0: not measured here."""

    byte_products: float = 0.0
    """Operations on 8-bit integers, as for 4-bit weights."""
    word_products: float = 0.0
    """Operations on 16-bit integers, as for 8-bit weights."""
    float_products: float = 0.0
    """Operations on float32 numbers."""
    read_bytes: float = 0.0
    """Bytes read from memory, one after the other."""


def measure(level: Level | None) -> Limits:
    """With the instructions of `level`, or of this processor. Raises KernelError or CalledProcessError."""
    flags = ("-march=native",) if level is None else level.flags
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "limits"
        command = [build.find_compiler(), "-O3", "-std=c++20", "-ffast-math", "-fopenmp-simd", *flags]
        subprocess.run([*command, str(_PROGRAM), "-o", str(program)], check=True)
        output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return Limits(**json.loads(output))
