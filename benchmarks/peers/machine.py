"""Describes the conditions of a measurement: the processor, the operating system, the commit."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def cores() -> list[int]:
    """Numbers of the CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def describe_machine(cpuinfo: str | None = None) -> dict[str, Any]:
    """Describes this machine. `cpuinfo`: replaces the text of /proc/cpuinfo."""
    text = Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo
    flags = set(_field(text, "flags").split())
    return {
        "processor": _field(text, "model name") or platform.machine(),
        "cores": len(cores()),
        "instructions": {name: name in flags for name in _INSTRUCTIONS},
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit of this checkout, with a + if files have changed; "unknown" outside a checkout."""
    described = _git("rev-parse", "--short", "HEAD")
    return described + ("+" if _git("status", "--porcelain") else "") if described else "unknown"


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
