"""Compiles the kernels once for this machine's processor, and loads them into torch as `tiller_cpu`."""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from inference.backends.backend import KernelError
from inference.interface.progress import follow

_SOURCES = tuple(sorted(path.name for path in Path(__file__).parent.glob("*.[ch]*")))
_COMPILE = (
    "-c",
    "-O3",
    "-march=native",
    "-std=c++20",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
)
# Without -fopenmp: torch has already loaded an OpenMP library for the whole process. A process must have
# only one.
_LINK = ("-shared", "-ltorch_cpu", "-lc10")
_TIMEOUT_SECONDS = 600
_TRIAL = """
#include <cmath>
#include <concepts>
#include <vector>
template <std::floating_point T> T root(T x) { return std::sqrt(x); }
float trial(const std::vector<float>& x) { return root(x.at(0)); }
"""

_log = logging.getLogger(__name__)


def load(cache_directory: Path) -> None:
    """Makes `torch.ops.tiller_cpu` usable. Compiles the kernels if necessary. Raises KernelError."""
    if hasattr(torch.ops.tiller_cpu, "linear"):
        return
    compiled = library(cache_directory)
    if not compiled.exists():
        _compile(compiled)
    try:
        torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise KernelError(f"the CPU kernels {compiled} cannot be loaded: {error}") from None


def library(cache_directory: Path) -> Path:
    """The file of the compiled kernels for this processor. It may not exist yet."""
    return cache_directory / "kernels" / f"tiller_cpu-{_digest()}.so"


def check_compiler() -> str:
    """The path of the C++ compiler. Raises KernelError if it cannot compile a program of a few lines."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "trial.cpp"
        source.write_text(_TRIAL)
        _run([compiler, *_COMPILE, str(source), "-o", f"{source}.o"])
        _run([compiler, "-shared", f"{source}.o", "-o", f"{source}.so"])
    return compiler


def find_compiler() -> str:
    """Returns the path of the C++ compiler. Raises KernelError if there is none."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        raise KernelError("no C++ compiler was found: install one (for example g++), or set CXX to its path")
    return compiler


def _digest() -> str:
    """Hash of the sources, the flags, torch's version and the processor. It names the compiled library."""
    directory = Path(__file__).parent
    parts = [torch.__version__, platform.machine(), _processor(), *_COMPILE, *_LINK]
    parts += [(directory / name).read_text() for name in _SOURCES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's instruction sets, if the system lists them: machines may share a cache directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _compile(library: Path) -> None:
    """Raises KernelError, also if the directory cannot be written."""
    compiler = find_compiler()
    _log.info("compiling the CPU kernels for this processor (only needed once)")
    try:
        with follow("compiling the CPU kernels"):
            _compile_with(compiler, library)
    except OSError as error:
        reason = f"the CPU kernels cannot be written to {library.parent}: {error.strerror}"
        raise KernelError(reason) from None


def _compile_with(compiler: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        source, compiled = Path(__file__).parent / "kernels.cpp", Path(directory) / "kernels.o"
        linked = Path(directory) / library.name
        installed = Path(torch.__file__).parent
        _run([compiler, *_COMPILE, f"-isystem{installed / 'include'}", str(source), "-o", str(compiled)])
        _run([compiler, str(compiled), "-o", str(linked), f"-L{installed / 'lib'}", *_LINK])
        linked.replace(library)  # atomic: another process may compile at the same time


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"the C++ compiler {command[0]} cannot be run: {error}") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
        raise KernelError(f"{command[0]} cannot compile the CPU kernels: {errors[0][:500]}")
