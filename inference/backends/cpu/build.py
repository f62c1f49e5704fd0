"""Compiles the kernels once for this machine's processor, and loads them into torch as `tiller_cpu`.

Kernels that were compiled in advance, for several kinds of processors, need no compiler on this machine:

    python -m inference.backends.cpu.build

writes them into the folder `compiled` beside this file.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from inference.backends.backend import KernelError
from inference.backends.cpu.levels import Level, all_levels, features_of_processor, fitting_levels
from inference.interface.progress import follow

_SOURCES = tuple(sorted(path.name for path in Path(__file__).parent.glob("*.[ch]*")))
_COMPILE = (
    "-c",
    "-O3",
    "-std=c++20",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
)
_NATIVE = ("-march=native",)
# Without -fopenmp: torch has already loaded an OpenMP library for the whole process. A process must have
# only one.
_LINK = ("-shared", "-ltorch_cpu", "-lc10")
_SHIPPED = Path(__file__).parent / "compiled"
_TIMEOUT_SECONDS = 600
_TRIAL = """
#include <cmath>
#include <concepts>
#include <vector>
template <std::floating_point T> T root(T x) { return std::sqrt(x); }
float trial(const std::vector<float>& x) { return root(x.at(0)); }
"""

_log = logging.getLogger(__name__)


def load(cache_directory: Path, level: Level | None = None) -> None:
    """Makes `torch.ops.tiller_cpu` usable. Compiles the kernels if necessary. Raises KernelError.

    Does nothing if kernels are loaded. `level`: use only the instructions of this level, as measurements do.
    """
    if hasattr(torch.ops.tiller_cpu, "linear"):
        return
    compiled = library(cache_directory) if level is None else _cached(cache_directory, level)
    _compile_once(compiled, _NATIVE if level is None else level.flags)
    try:
        torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise KernelError(f"the CPU kernels {compiled} cannot be loaded: {error}") from None


def compile_ahead(cache_directory: Path) -> None:
    """Begins to compile the kernels if necessary, and returns at once. `load` waits for it.

    An error is left to `load`, which tries again.
    """
    compiled = library(cache_directory)
    if not compiled.exists():
        threading.Thread(target=_try_to_compile, args=(compiled,), name="compiler", daemon=True).start()


def library(cache_directory: Path) -> Path:
    """The file of the compiled kernels for this processor. It may not exist yet.

    Kernels that were compiled in advance come first, so that the same files give the same kernels everywhere.
    """
    shipped = map(_shipped, fitting_levels(features_of_processor()))
    found = next((file for file in shipped if file.exists()), None)
    return found or cache_directory / "kernels" / f"tiller_cpu-{_digest(*_NATIVE, _processor())}.so"


def _shipped(level: Level) -> Path:
    return _SHIPPED / _file_name(level)


def _cached(cache_directory: Path, level: Level) -> Path:
    return cache_directory / "kernels" / _file_name(level)


def _file_name(level: Level) -> str:
    return f"tiller_cpu-{level.name}-{_digest(*level.flags)}.so"


def check_compiler() -> str:
    """The path of the C++ compiler. Raises KernelError if it cannot compile a program of a few lines."""
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "trial.cpp"
        source.write_text(_TRIAL)
        _run([compiler, *_COMPILE, *_NATIVE, str(source), "-o", f"{source}.o"])
        _run([compiler, "-shared", f"{source}.o", "-o", f"{source}.so"])
    return compiler


def find_compiler() -> str:
    """Returns the path of the C++ compiler. Raises KernelError if there is none."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        raise KernelError("no C++ compiler was found: install one (for example g++), or set CXX to its path")
    return compiler


def _digest(*target: str) -> str:
    """Hash of the sources, the flags, torch's version and the target. It names the compiled library."""
    directory = Path(__file__).parent
    parts = [torch.__version__, platform.machine(), *target, *_COMPILE, *_LINK]
    parts += [(directory / name).read_text() for name in _SOURCES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's instruction sets, if the system lists them: machines may share a cache directory."""
    return " ".join(sorted(features_of_processor())) or platform.processor()


def _try_to_compile(library: Path) -> None:
    with suppress(KernelError):
        _compile_once(library)


def _compile_once(library: Path, target: tuple[str, ...] = _NATIVE) -> None:
    """Compiles the kernels, unless another thread or process does: then waits for it.

    `target`: the flags for the processor. Raises KernelError, also if the directory cannot be written.
    """
    if library.exists():
        return
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{library}.lock"):
            if not library.exists():
                _compile(library, target)
    except OSError as error:
        reason = f"the CPU kernels cannot be written to {library.parent}: {error.strerror}"
        raise KernelError(reason) from None


def _compile(library: Path, target: tuple[str, ...]) -> None:
    """Raises KernelError or OSError."""
    compiler = find_compiler()
    _log.info("compiling the CPU kernels for this processor (only needed once)")
    with follow("compiling the CPU kernels"):
        _compile_with(compiler, library, target)


def _compile_with(compiler: str, library: Path, target: tuple[str, ...]) -> None:
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        source, compiled = Path(__file__).parent / "kernels.cpp", Path(directory) / "kernels.o"
        linked = Path(directory) / library.name
        installed = Path(torch.__file__).parent
        headers = f"-isystem{installed / 'include'}"
        _run([compiler, *_COMPILE, *target, headers, str(source), "-o", str(compiled)])
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


def main() -> None:
    """Compiles the kernels for each kind of processor with this machine's architecture."""
    for level in all_levels():
        library = _shipped(level)
        _compile_with(find_compiler(), library, level.flags)
        print(library)


if __name__ == "__main__":
    main()
