"""How many CPU cores a process may use: its affinity, and the quotas of its cgroups."""

import os
from pathlib import Path

import pytest

from inference.interface import processors
from inference.interface.processors import allowed_processors


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: set(range(8)))


def write(root: Path, **files: str) -> Path:
    """Writes files: in their names, __ stands for / and _dot_ for a dot."""
    for name, content in files.items():
        file = root / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_without_a_quota_it_is_the_affinity(tmp_path: Path) -> None:
    assert allowed_processors(tmp_path) == 8
    write(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_dot_max="max 100000\n")
    assert allowed_processors(tmp_path) == 8


@pytest.mark.parametrize(
    ("quota", "count"), [(200_000, 2), (50_000, 1), (160_000, 2), (140_000, 1), (3_200_000, 8)]
)
def test_a_container_has_a_quota(tmp_path: Path, quota: int, count: int) -> None:
    write(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_dot_max=f"{quota} 100000\n")
    assert allowed_processors(tmp_path) == count


def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="0::/system.slice/tiller.service\n",
        sys__fs__cgroup__system_dot_slice__cpu_dot_max="300000 100000\n",
        sys__fs__cgroup__system_dot_slice__tiller_dot_service__cpu_dot_max="max 100000\n",
    )
    assert allowed_processors(tmp_path) == 3


def test_version_1_of_cgroups(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="4:cpu,cpuacct:/docker/0a\n1:name=systemd:/\n",
        sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="200000\n",
        sys__fs__cgroup__cpu__cpu_dot_cfs_period_us="100000\n",
    )
    assert allowed_processors(tmp_path) == 2
    write(tmp_path, sys__fs__cgroup__cpu__cpu_dot_cfs_quota_us="-1\n")
    assert allowed_processors(tmp_path) == 8


@pytest.mark.parametrize("content", ["", "200000", "x y", "200000 0", "max"])
def test_a_file_of_another_form_is_no_quota(tmp_path: Path, content: str) -> None:
    write(tmp_path, proc__self__cgroup="0::/\n", sys__fs__cgroup__cpu_dot_max=content)
    assert allowed_processors(tmp_path) == 8


def test_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= allowed_processors() <= (os.cpu_count() or 1)
