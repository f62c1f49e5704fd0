"""The wheel, built from the checkout and installed into a fresh environment, starts.

Its dependencies come from the environment that runs the tests, so nothing is downloaded.
"""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves files of its own beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in ("app", "inference", "tiller"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment that has the wheel."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    [packages] = environment.glob("lib/python3*/site-packages")
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return environment / "bin"


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_packages_the_kernels_sources_and_the_playground(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"app", "inference", "tiller"}
    assert "inference/backends/cpu/kernels.cpp" in names
    assert "inference/backends/cpu/thread_pool.h" in names
    folder = ROOT / "app" / "playground"
    files = {f"app/{path.relative_to(folder.parent)}" for path in folder.rglob("*") if path.is_file()}
    assert files <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)


def test_what_is_installed_is_what_runs(installed: Path, tmp_path: Path) -> None:
    where = "import app, inference, tiller; print(app.__file__, inference.__file__, tiller.__file__)"
    shown = run(installed / "python", "-c", where, cwd=tmp_path)
    assert shown.stdout.count(str(installed.parent)) == 3, shown.stderr


def test_the_server_shows_its_options(installed: Path, tmp_path: Path) -> None:
    shown = run(installed / "tiller", "serve", "--help", cwd=tmp_path)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "--config" in shown.stdout


def test_health_says_that_no_server_answers(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("server: {port: 1}")
    shown = run(installed / "tiller", "health", "--config", "config.yaml", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("tiller: http://127.0.0.1:1/health cannot be reached")
    assert len(shown.stderr.splitlines()) == 1
