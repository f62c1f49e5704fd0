"""The pod of the Helm chart: safe, and consistent with the image and the server."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.configuration import read_settings
from app.http.auth import PROBES
from app.server import _DRAIN_MARGIN_SECONDS
from app.settings import Settings
from tests.kubernetes.cases import OPENSHIFT, each_case
from tests.kubernetes.helm import ROOT, TOKENS, VALUES, Helm, Manifest, container_of, only, pod_of


def settings_of(manifests: list[Manifest], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the server in the pod."""
    secrets = {m["metadata"]["name"]: m["stringData"] for m in manifests if m["kind"] == "Secret"}
    for variable in container_of(manifests)["env"]:
        if "value" in variable:
            monkeypatch.setenv(variable["name"], variable["value"])
        elif reference := variable["valueFrom"].get("secretKeyRef"):
            monkeypatch.setenv(variable["name"], secrets[reference["name"]][reference["key"]])
    file = folder / "config.yaml"
    file.write_text(only(manifests, "ConfigMap")["data"]["config.yaml"])
    return read_settings(file)


@pytest.mark.parametrize("name", VALUES)
def test_the_server_accepts_its_configuration(
    helm: Helm, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(helm.render({**VALUES[name], **TOKENS}), tmp_path, monkeypatch)
    assert settings.model.source == VALUES[name]["config"]["model"]["source"]
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8000)
    assert settings.server.drain_seconds == 60
    [token] = settings.auth.tokens
    assert (token.name, token.sha256) == ("ada", "a" * 64)


def test_a_certificate_makes_the_server_and_its_probes_speak_https(
    helm: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = helm.render({**TOKENS, "tls": {"secretName": "certificate"}})
    tls = settings_of(manifests, tmp_path, monkeypatch).server.tls
    assert tls is not None
    [mount] = [mount for mount in container_of(manifests)["volumeMounts"] if mount["name"] == "tls"]
    assert {tls.certificate, tls.key} == {f"{mount['mountPath']}/{name}" for name in ("tls.crt", "tls.key")}
    assert {probe["httpGet"]["scheme"] for probe in probes_of(manifests).values()} == {"HTTPS"}
    assert only(manifests, "Service")["spec"]["ports"][0]["name"] == "https"


def probes_of(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {name: probe for name, probe in container_of(manifests).items() if name.endswith("Probe")}


def test_the_probes_call_routes_that_need_no_access_token(helm: Helm) -> None:
    probes = probes_of(helm.render(TOKENS))
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startupProbe": "/live", "livenessProbe": "/live", "readinessProbe": "/ready"}
    assert set(paths.values()) < PROBES
    [port] = container_of(helm.render(TOKENS))["ports"]
    assert {probe["httpGet"]["port"] for probe in probes.values()} == {port["name"]}


@pytest.mark.parametrize("seconds", [1, 600, 1801])
def test_a_model_has_time_to_load(helm: Helm, seconds: int) -> None:
    manifests = helm.render({**TOKENS, "startupSeconds": seconds})
    probe = probes_of(manifests)["startupProbe"]
    assert seconds <= probe["periodSeconds"] * probe["failureThreshold"] < seconds + 5
    assert only(manifests, "Deployment")["spec"]["progressDeadlineSeconds"] > seconds


@pytest.mark.parametrize(("before", "drain"), [(5, 60), (0, 0), (30, 3600)])
def test_the_pod_is_not_killed_while_it_drains(helm: Helm, before: int, drain: int) -> None:
    manifests = helm.render({**TOKENS, "preStopSeconds": before, "drainSeconds": drain})
    pause = container_of(manifests)["lifecycle"]["preStop"]["exec"]["command"]
    assert pause == ["sleep", str(before)]
    grace = pod_of(manifests)["terminationGracePeriodSeconds"]
    stop_of_workers = 2 + 5
    assert before + drain + _DRAIN_MARGIN_SECONDS + stop_of_workers <= grace <= before + drain + 30


@each_case
def test_the_pod_has_no_privileges(helm: Helm, values: Manifest) -> None:
    """As the Pod Security Standard `restricted` demands, with a root file system that nobody can write to."""
    pod, container = pod_of(manifests := helm.render(values)), container_of(manifests)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod.keys().isdisjoint({"hostNetwork", "hostPID", "hostIPC"})
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_the_pod_runs_as_the_user_of_the_image_and_owns_its_volumes(helm: Helm) -> None:
    [user] = re.findall(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[:1]
    context = pod_of(helm.render(TOKENS))["securityContext"]
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == int(user)


def test_openshift_may_choose_the_user(helm: Helm) -> None:
    context = pod_of(helm.render({**TOKENS, "podSecurityContext": OPENSHIFT}))["securityContext"]
    assert context.keys().isdisjoint(OPENSHIFT)
    assert context["runAsNonRoot"] is True


@each_case
def test_exactly_the_volumes_of_the_image_can_be_written(helm: Helm, values: Manifest) -> None:
    pod, container = pod_of(manifests := helm.render(values)), container_of(manifests)
    [volumes] = re.findall(r"^VOLUME (.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == set(volumes.split())
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_the_claims_are_those_of_the_pod_and_the_data_outlives_the_release(helm: Helm) -> None:
    manifests = helm.render(TOKENS)
    claims = {m["metadata"]["name"]: m for m in manifests if m["kind"] == "PersistentVolumeClaim"}
    mounted = [volume.get("persistentVolumeClaim") for volume in pod_of(manifests)["volumes"]]
    assert (
        {claim["claimName"] for claim in mounted if claim} == set(claims) == {"tiller-cache", "tiller-data"}
    )
    kept = {name for name, claim in claims.items() if "annotations" in claim["metadata"]}
    assert kept == {"tiller-data"}
    assert claims["tiller-data"]["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_existing_claims_are_used(helm: Helm) -> None:
    manifests = helm.render({**TOKENS, "persistence": {"data": {"existingClaim": "concepts"}}})
    assert only(manifests, "PersistentVolumeClaim")["metadata"]["name"] == "tiller-cache"
    claims = {volume["name"]: volume.get("persistentVolumeClaim") for volume in pod_of(manifests)["volumes"]}
    assert claims["data"] == {"claimName": "concepts"}


def environment_of(manifests: list[Manifest]) -> dict[str, Any]:
    return {entry["name"]: entry for entry in container_of(manifests)["env"]}


def test_secrets_are_in_secrets_only(helm: Helm) -> None:
    manifests = helm.render({**TOKENS, "huggingFace": {"existingSecret": "hub"}})
    others = [manifest for manifest in manifests if manifest["kind"] != "Secret"]
    assert "a" * 64 not in yaml.safe_dump(others)
    token = environment_of(manifests)["HF_TOKEN"]["valueFrom"]
    assert token == {"secretKeyRef": {"name": "hub", "key": "token"}}


def test_an_existing_secret_with_access_tokens_is_used(helm: Helm) -> None:
    manifests = helm.render({"auth": {"existingSecret": "callers"}})
    assert "Secret" not in {manifest["kind"] for manifest in manifests}
    reference = environment_of(manifests)["TILLER_AUTH__TOKENS"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "callers", "key": "tokens.json"}


def test_the_variables_of_services_do_not_look_like_settings(helm: Helm) -> None:
    """A service `tiller-gpu` would set TILLER_GPU_SERVICE_HOST: for the server, a misspelt setting."""
    assert pod_of(helm.render(TOKENS))["enableServiceLinks"] is False


def test_the_engine_has_as_many_threads_as_the_pod_has_cores(helm: Helm) -> None:
    reference = environment_of(manifests := helm.render(TOKENS))["OMP_NUM_THREADS"]["valueFrom"]
    assert reference["resourceFieldRef"]["resource"] == "limits.cpu"
    assert reference["resourceFieldRef"]["containerName"] == container_of(manifests)["name"]


def test_the_pod_gets_gpus_and_the_image_for_them(helm: Helm) -> None:
    pod, container = (
        pod_of(manifests := helm.render({**VALUES["gpu.yaml"], **TOKENS})),
        container_of(manifests),
    )
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["limits"]["memory"] == "32Gi"
    assert container["image"] == "tiller:cuda"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    on_cpu = container_of(helm.render(TOKENS))
    assert on_cpu["image"] == "tiller:cpu"
    assert "nvidia.com/gpu" not in on_cpu["resources"]["limits"]
