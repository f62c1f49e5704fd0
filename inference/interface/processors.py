"""How many CPU cores this process may use. Imports no torch, so that the gateway can ask as well."""

import os
from collections.abc import Iterator
from pathlib import Path


def allowed_processors(root: Path = Path("/")) -> int:
    """The cores of this process's affinity mask, or what the CPU quotas of its cgroups allow if that is less.

    A quota is rounded to whole cores, and to one at least. Containers with a CPU limit have one.
    """
    quotas = [max(1, round(quota)) for quota in _quotas(root)]
    return min([len(os.sched_getaffinity(0)), *quotas])


def _quotas(root: Path) -> Iterator[float]:
    """In cores, of the process's cgroup and all above it.

    Format: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and for version 1
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        top = mounted / "cpu" if "cpu" in controllers.split(",") else mounted
        group = top / path.lstrip("/")
        for directory in (group, *group.parents):
            if directory.is_relative_to(top):
                yield from _quota(directory)


def _quota(directory: Path) -> Iterator[float]:
    parts = _read(directory / "cpu.max").split() or [
        _read(directory / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    if len(parts) == 2 and all(part.isdecimal() for part in parts) and int(parts[1]):
        yield int(parts[0]) / int(parts[1])


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
