"""What docs/kubernetes.md tells operators to do, as far as it needs no cluster."""

import shlex
from pathlib import Path

import pytest
import yaml

from tests.documentation.blocks import Block, blocks_of
from tests.kubernetes.helm import ROOT, TOKENS, VALUES, Helm, Manifest, container_of, pod_of

BLOCKS = blocks_of("docs/kubernetes.md")
YAML = [block for block in BLOCKS if block.language == "yaml"]
COMMANDS = [command for block in BLOCKS if block.language == "console" for command, _ in block.commands()]


def my_values() -> Manifest:
    [values] = [yaml.safe_load(block.text) for block in YAML if block.text.startswith("image:")]
    return values


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("helm install")])
def test_the_chart_can_be_installed_as_the_page_says(helm: Helm, command: str) -> None:
    _, _, release, chart, *options = shlex.split(command)
    assert options[::2] == ["--values"] * 2
    files = [ROOT / file for file in options[1::2]]
    assert (ROOT / chart / "Chart.yaml").is_file()
    assert files[1].name == "my-values.yaml"
    manifests = helm.render({**yaml.safe_load(files[0].read_text()), **my_values()}, release=release)
    objects = {f"{manifest['kind'].lower()}/{manifest['metadata']['name']}" for manifest in manifests}
    named = {
        word for other in COMMANDS for word in other.split() if word.startswith(("deployment/", "service/"))
    }
    assert named
    assert named <= objects
    assert container_of(manifests)["image"].startswith("registry.example/tiller:")


@pytest.mark.parametrize("block", [pytest.param(block, id=block.where) for block in YAML])
def test_the_values_on_the_page_can_be_installed(helm: Helm, block: Block) -> None:
    assert pod_of(helm.render({**VALUES["cpu.yaml"], **TOKENS, **yaml.safe_load(block.text)}))


def test_the_page_names_the_defaults(helm: Helm) -> None:
    page = Path(ROOT / "docs/kubernetes.md").read_text()
    defaults = yaml.safe_load((ROOT / "deploy/helm/tiller/values.yaml").read_text())
    for name in ("startupSeconds", "preStopSeconds", "drainSeconds"):
        assert f"`{name}` ({defaults[name]})" in page
