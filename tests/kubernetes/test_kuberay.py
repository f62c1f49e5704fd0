"""The manifest for KubeRay: its pods are valid for Kubernetes, and its commands for `tiller cluster node`.

An operator is not needed, and none has been tried.
"""

import tomllib
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.configuration import read_settings
from tests.kubernetes.helm import ROOT

OBJECTS = list(yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "raycluster.yaml").read_text()))
CLUSTER = OBJECTS[0]
HEAD = CLUSTER["spec"]["headGroupSpec"]
[GROUP] = CLUSTER["spec"]["workerGroupSpecs"]


@pytest.mark.parametrize("version", ["1.25", "1.37"])
@pytest.mark.parametrize("group", [HEAD, GROUP], ids=["head", "workers"])
def test_the_api_of_kubernetes_accepts_the_pods(group: dict[str, Any], version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
    pod["metadata"] = {**pod["metadata"], "name": "pod"}
    kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_the_api_of_kubernetes_accepts_the_other_objects(version: str) -> None:
    for manifest in OBJECTS[1:]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_ray_asks_for_a_token_and_has_the_version_of_this_package() -> None:
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={CLUSTER['spec']['rayVersion']}" in pins
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["cluster"][0] in extras["dev"]


def test_each_node_is_made_with_tiller_and_the_data_is_on_the_head_only() -> None:
    [head] = HEAD["template"]["spec"]["containers"]
    [worker] = GROUP["template"]["spec"]["containers"]
    assert head["command"] == worker["command"] == ["/opt/venv/bin/tiller", "cluster", "node"]
    assert head["args"][0] == "--head"
    assert worker["args"][0].startswith("--address=")
    assert CLUSTER["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    assert "/var/lib/tiller" in [mount["mountPath"] for mount in head["volumeMounts"]]
    assert "/var/lib/tiller" not in [mount["mountPath"] for mount in worker["volumeMounts"]]


def test_the_ports_are_those_of_the_example_configuration() -> None:
    [head] = HEAD["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    settings = read_settings(ROOT / "configs" / "cluster.yaml")
    assert (ports["api"], ports["registry"]) == (settings.server.port, settings.cluster.registry_port)
