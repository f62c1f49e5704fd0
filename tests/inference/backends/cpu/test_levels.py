"""Which kernels that were compiled in advance fit a processor."""

from pathlib import Path

import pytest

from inference.backends.cpu import build
from inference.backends.cpu.levels import all_levels, features_of_processor, fitting_levels

SSE = "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"
AVX2 = f"{SSE} abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"
AVX512 = f"{AVX2} avx512bw avx512cd avx512dq avx512f avx512vl"
ARM = "fp asimd"


@pytest.mark.parametrize(
    ("machine", "features", "names"),
    [
        ("x86_64", "fpu sse2", []),
        ("x86_64", SSE, ["x86-64-v2"]),
        ("x86_64", AVX2.replace(" fma", ""), ["x86-64-v2"]),
        ("x86_64", f"{AVX2} avx_vnni", ["x86-64-v3", "x86-64-v2"]),
        ("x86_64", AVX512, ["x86-64-v4", "x86-64-v3", "x86-64-v2"]),
        ("x86_64", f"{AVX512} avx512_vnni", ["x86-64-v4-vnni", "x86-64-v4", "x86-64-v3", "x86-64-v2"]),
        ("aarch64", ARM, ["armv8-a"]),
        ("aarch64", f"{ARM} asimddp asimdhp asimdrdm atomics crc32 fphp", ["armv8.2-a", "armv8-a"]),
        ("riscv64", ARM, []),
    ],
)
def test_a_processor_gets_only_instructions_that_it_has(
    machine: str, features: str, names: list[str]
) -> None:
    assert [level.name for level in fitting_levels(frozenset(features.split()), machine)] == names


def test_the_features_are_those_that_the_system_lists(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: A\nflags\t\t: fpu avx2\nvmx flags\t: ept\n\nflags\t\t: fpu\n")
    assert features_of_processor(cpuinfo) == {"fpu", "avx2"}
    cpuinfo.write_text("Features\t: fp asimd\n")
    assert features_of_processor(cpuinfo) == {"fp", "asimd"}
    assert features_of_processor(tmp_path / "missing") == frozenset()


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "compiled"
    folder.mkdir()
    monkeypatch.setattr(build, "_SHIPPED", folder)
    monkeypatch.setattr(build, "all_levels", lambda: all_levels("x86_64"))
    monkeypatch.setattr(build, "fitting_levels", lambda features: fitting_levels(features, "x86_64"))
    monkeypatch.setattr(build, "features_of_processor", lambda: frozenset(AVX2.split()))
    return folder


def test_the_best_shipped_kernels_that_fit_are_used(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = build.library(tmp_path)
    assert own.parent == tmp_path / "kernels", "nothing is shipped: this machine compiles"
    compiled = {}
    monkeypatch.setattr(build, "find_compiler", lambda: "c++")
    monkeypatch.setattr(build, "_compile_with", lambda _, file, flags: compiled.update({flags[0]: file}))
    build.main()
    for file in compiled.values():
        file.touch()
    assert build.library(tmp_path) == compiled["-march=x86-64-v3"]
    compiled["-march=x86-64-v3"].unlink()
    assert build.library(tmp_path) == compiled["-march=x86-64-v2"]
    compiled["-march=x86-64-v2"].unlink()
    assert build.library(tmp_path) == own, "kernels for AVX-512 would crash"


def test_shipped_kernels_of_other_sources_or_another_torch_are_not_used(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [level] = fitting_levels(frozenset(SSE.split()), "x86_64")
    build._shipped(level).touch()
    assert build.library(tmp_path).parent == shipped
    monkeypatch.setattr(build.torch, "__version__", "0.1")
    assert build.library(tmp_path).parent != shipped
