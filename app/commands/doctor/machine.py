"""Checks what a worker needs of this machine: GPU, compiler, memory."""

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from app.commands.doctor.finding import Finding, ok, problem, readable_size, warning
from app.settings import Settings
from inference.interface.diagnosis import Diagnosis

_GIB = 2**30
_CPU_KV_CACHE_GIB = 2.0
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_WITHOUT_TORCH_CUDA = (
    "install torch for CUDA: pip install --force-reinstall torch, without an index of CPU wheels"
)


def check_gpu(settings: Settings, diagnosis: Diagnosis) -> Finding:
    """Whether the configured device is there, and no GPU is left unused."""
    engine = settings.engine
    if diagnosis.device == "cuda":
        if engine.quantization != "none":
            return problem(
                f"engine.quantization {engine.quantization} works on a CPU only",
                "set engine.quantization to none, or engine.device to cpu",
            )
        names = ", ".join(f"{gpu.name} ({readable_size(gpu.total_bytes)})" for gpu in diagnosis.gpus)
        return ok(f"{names}; torch {diagnosis.torch} for CUDA {diagnosis.cuda}")
    if diagnosis.device_error:
        is_missing = "finds no CUDA device" in diagnosis.device_error
        what = f"{diagnosis.device_error}: {_why_no_gpu(diagnosis)}" if is_missing else diagnosis.device_error
        return problem(what, _mend_gpu(diagnosis) if is_missing else "change the setting that it names")
    if engine.device == "auto" and _sees_nvidia():
        return warning(
            f"this machine has an NVIDIA GPU, but torch cannot use it: {_why_no_gpu(diagnosis)}",
            _mend_gpu(diagnosis),
        )
    return ok(f"none in use: the model runs on the CPU, with torch {diagnosis.torch}")


def _why_no_gpu(diagnosis: Diagnosis) -> str:
    if not diagnosis.cuda:
        return f"torch {diagnosis.torch} is built without CUDA"
    return diagnosis.cuda_error or "it sees none"


def _mend_gpu(diagnosis: Diagnosis) -> str:
    if not diagnosis.cuda:
        return _WITHOUT_TORCH_CUDA
    return "update the NVIDIA driver (`nvidia-smi` shows it); in a container, start it with --gpus all"


def _sees_nvidia() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def check_compiler(settings: Settings, diagnosis: Diagnosis) -> Finding:
    """Whether the kernels for this machine can be compiled."""
    if diagnosis.device == "cuda":
        return _check_compiler_for_triton()
    if diagnosis.has_kernels:
        return ok("the CPU kernels are compiled already")
    if diagnosis.compiler:
        return ok(f"{diagnosis.compiler}; the first start compiles the CPU kernels, which takes a minute")
    mend = "install a C++ compiler with C++20 and OpenMP (Debian: apt install g++), or set CXX to its path"
    if settings.engine.quantization != "none":
        return problem(diagnosis.compiler_error, f"{mend}; without one, set engine.quantization to none")
    return warning(f"{diagnosis.compiler_error}: the server will be slower", mend)


def _check_compiler_for_triton() -> Finding:
    """Triton compiles a part of each kernel with a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or shutil.which(compiler) is None:
        return warning(
            "there is no C compiler, so there are no Triton kernels: the server will be slower",
            "install one (Debian: apt install gcc), or set CC to its path",
        )
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        return warning(
            f"{headers} has no Python.h, so there are no Triton kernels: the server will be slower",
            "install Python's headers (Debian: apt install python3-dev)",
        )
    return ok(compiler)


@dataclass(frozen=True)
class Memory:
    """What a model needs, in bytes, of one GPU or of the machine."""

    weights: float
    kv_cache: float
    available: float


def memory_of(settings: Settings, diagnosis: Diagnosis) -> Memory | None:
    """Of settings with one model. Knows only sizes, so it cannot be exact. None: nothing is known."""
    numbers, engine = diagnosis.model.numbers, settings.engine
    if not numbers:
        return None
    if diagnosis.device == "cuda":
        return Memory(
            weights=numbers * _BYTES.get(engine.dtype, 2) // engine.tensor_parallel,
            kv_cache=(engine.kv_cache_gib or 0.0) * _GIB,
            available=min((gpu.free_bytes for gpu in diagnosis.gpus), default=0),
        )
    kv_cache = (engine.kv_cache_gib or _CPU_KV_CACHE_GIB) * _GIB
    return Memory(
        weights=numbers * _BYTES.get(engine.dtype, 4) * engine.replicas,
        kv_cache=kv_cache * engine.tensor_parallel * engine.replicas,
        available=available_memory(),
    )


def check_memory(settings: Settings, diagnosis: Diagnosis) -> Finding:
    """Whether the weights and the KV cache fit."""
    memory = memory_of(settings, diagnosis)
    return judge_memory(memory) if memory else ok("unknown before the model is here")


def judge_memory(memory: Memory) -> Finding:
    """Whether this memory is there."""
    there = f"{readable_size(memory.available)} are free"
    total = memory.weights + memory.kv_cache
    if memory.weights > memory.available:
        return problem(
            f"the weights need {readable_size(memory.weights)}, and {there}",
            "stop what else uses the memory, or choose a smaller model, a smaller dtype or fewer replicas",
        )
    if total > memory.available:
        return warning(
            f"weights and KV cache need {readable_size(total)}, and {there}",
            "lower engine.kv_cache_gib, or stop what else uses the memory",
        )
    return ok(f"weights and KV cache need about {readable_size(total)}, and {there}")


def available_memory(root: Path = Path("/")) -> int:
    """The bytes that new processes can use, in a container no more than its limit leaves."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    lines = _read(root / "proc/meminfo").splitlines()
    sizes += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    group = root / "sys/fs/cgroup"
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        sizes.append(max(0, int(limit) - int(used)))
    return min(sizes)


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
