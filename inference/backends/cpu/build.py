"""Compiles the kernels for this machine's processor, once, and loads them into torch as `tiller_cpu`."""

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
# Not OpenMP's library: torch has loaded one, for all to see, and there must be no second.
_LINK = ("-shared", "-ltorch_cpu", "-lc10")
_TIMEOUT_SECONDS = 600


_log = logging.getLogger(__name__)


def load(cache_directory: Path) -> None:
    """Makes `torch.ops.tiller_cpu` usable. Raises KernelError."""
    if hasattr(torch.ops.tiller_cpu, "linear"):
        return
    library = cache_directory / "kernels" / f"tiller_cpu-{_digest()}.so"
    if not library.exists():
        _compile(library)
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise KernelError(f"{library} cannot be loaded: {error}") from None


def find_compiler() -> str:
    """Raises KernelError."""
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")
    if compiler is None:
        raise KernelError("there is no C++ compiler; install one (such as g++), or name it in CXX")
    return compiler


def _digest() -> str:
    """Names the sources, the flags, torch's version and the processor."""
    directory = Path(__file__).parent
    parts = [torch.__version__, platform.machine(), _processor(), *_COMPILE, *_LINK]
    parts += [(directory / name).read_text() for name in _SOURCES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The instructions it has, where the system tells: a cache directory may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _compile(library: Path) -> None:
    compiler = find_compiler()
    _log.info("compiling kernels for this processor, once")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        source, compiled = Path(__file__).parent / "kernels.cpp", Path(directory) / "kernels.o"
        linked = Path(directory) / library.name
        installed = Path(torch.__file__).parent
        _run([compiler, *_COMPILE, f"-isystem{installed / 'include'}", str(source), "-o", str(compiled)])
        _run([compiler, str(compiled), "-o", str(linked), f"-L{installed / 'lib'}", *_LINK])
        linked.replace(library)  # at once, whoever else is compiling


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"the C++ compiler does not run: {error}") from None
    if done.returncode != 0:
        complaints = [line for line in done.stderr.splitlines() if "error" in line] or [done.stderr.strip()]
        raise KernelError(f"{command[0]} cannot compile the CPU kernels: {complaints[0][:500]}")
