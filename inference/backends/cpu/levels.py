"""Kinds of processors that kernels can be compiled for in advance. Knows no kernels."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Level:
    """A set of instructions, and all processors that have them."""

    name: str
    flags: tuple[str, ...]
    """Options of the compiler."""
    features: frozenset[str]
    """What the processor must have, in the words of /proc/cpuinfo."""


_X86_V2 = frozenset({"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"})
_X86_V3 = _X86_V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_X86_V4 = _X86_V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
_ARM_V8_2 = frozenset({"asimd", "asimddp", "asimdhp", "asimdrdm", "atomics", "crc32", "fphp"})

_X86 = (
    Level("x86-64-v4-vnni", ("-march=x86-64-v4", "-mavx512vnni"), _X86_V4 | {"avx512_vnni"}),
    Level("x86-64-v4", ("-march=x86-64-v4",), _X86_V4),
    Level("x86-64-v3", ("-march=x86-64-v3",), _X86_V3),
    Level("x86-64-v2", ("-march=x86-64-v2",), _X86_V2),
)
_ARM = (
    Level("armv8.2-a", ("-march=armv8.2-a+fp16+dotprod",), _ARM_V8_2),
    Level("armv8-a", ("-march=armv8-a",), frozenset({"asimd", "fp"})),
)
_LEVELS = {"x86_64": _X86, "aarch64": _ARM}


def all_levels(machine: str = platform.machine()) -> tuple[Level, ...]:
    """The levels of this kind of machine, the best first. May be empty."""
    return _LEVELS.get(machine, ())


def fitting_levels(features: frozenset[str], machine: str = platform.machine()) -> Iterator[Level]:
    """The levels that a processor with these features has, the best first."""
    return (level for level in all_levels(machine) if level.features <= features)


def features_of_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets and more that the system lists. Empty if it lists none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return frozenset(next(listed, "").split())
