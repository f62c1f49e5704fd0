"""The inner loops of the products, in the variant for each kind of processor, whatever processor this is."""

import platform
import subprocess
from pathlib import Path

import pytest

from inference.backends.cpu import build

HERE = Path(__file__).parent
SOURCES = Path(build.__file__).parent
AVX512 = ["-I", str(HERE / "emulated"), "-U__AVX2__", "-D__AVX2__", "-D__AVX512BW__", "-D__F16C__"]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["-march=native"], id="this processor"),
        pytest.param(["-mno-avx2", "-mno-avx512f"], id="any processor"),
        pytest.param(["-mno-avx512f", *AVX512], id="AVX-512, emulated"),
        pytest.param(["-mno-avx512f", *AVX512, "-D__AVX512VNNI__"], id="AVX-512 with VNNI, emulated"),
    ],
)
def test_inner_loops_equal_plain_sums(flags: list[str], tmp_path: Path) -> None:
    if platform.machine() not in ("x86_64", "AMD64") and flags != ["-march=native"]:
        pytest.skip("these compiler flags are for x86")
    program = tmp_path / "dots"
    command = [build.find_compiler(), "-std=c++20", "-O1", *flags, f"-I{SOURCES}"]
    subprocess.run([*command, str(HERE / "dots.cpp"), "-o", str(program)], check=True)
    assert subprocess.run([str(program)]).returncode == 0
