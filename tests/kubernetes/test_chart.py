"""The Helm chart: what it installs is valid for Kubernetes, and what cannot work is refused.

A cluster is not needed, and none has been tried.
"""

import kubernetes_validate
import pytest
import yaml

import app
from tests.kubernetes.cases import EVERYTHING, each_case
from tests.kubernetes.helm import CHART, TOKENS, VALUES, Helm, Manifest, container_of, only


def test_there_are_values_for_a_cpu_and_for_a_gpu() -> None:
    assert set(VALUES) == {"cpu.yaml", "gpu.yaml"}


@each_case
def test_helm_finds_nothing_to_criticise(helm: Helm, values: Manifest) -> None:
    assert "0 chart(s) failed" in helm.lint(values)


@each_case
@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_the_api_of_kubernetes_accepts_each_object(helm: Helm, values: Manifest, version: str) -> None:
    """The oldest version that the chart allows, and the newest with published schemas."""
    manifests = helm.render(values, "--kube-version", version)
    assert {"ConfigMap", "Deployment", "Service"} <= {manifest["kind"] for manifest in manifests}
    for manifest in manifests:
        if manifest["kind"] != "ServiceMonitor":  # the Prometheus Operator's, not Kubernetes'
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_would_find_a_misspelt_key(helm: Helm) -> None:
    deployment = only(helm.render(TOKENS), "Deployment")
    deployment["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


def test_older_versions_of_kubernetes_are_refused(helm: Helm) -> None:
    minimum = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert minimum == ">=1.25.0-0"
    with pytest.raises(AssertionError, match="incompatible with Kubernetes"):
        helm.render(TOKENS, "--kube-version", "1.24")


def test_the_chart_names_the_servers_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == app.__version__


def test_the_service_leads_to_the_pod(helm: Helm) -> None:
    manifests = helm.render({**TOKENS, "service": {"port": 80}})
    service, deployment = only(manifests, "Service")["spec"], only(manifests, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert deployment["selector"]["matchLabels"] == service["selector"]
    [port] = service["ports"]
    assert (port["port"], port["targetPort"]) == (80, container_of(manifests)["ports"][0]["name"])


def test_two_releases_share_nothing(helm: Helm) -> None:
    first, second = helm.render(TOKENS, release="tiller"), helm.render(TOKENS, release="small")

    def names(manifests: list[Manifest]) -> set[str]:
        return {manifest["metadata"]["name"] for manifest in manifests}

    assert names(first).isdisjoint(names(second))
    assert only(second, "Deployment")["metadata"]["name"] == "small-tiller"
    selector = only(first, "Service")["spec"]["selector"]
    labels = only(second, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert not selector.items() <= labels.items()


def test_a_new_pod_starts_when_the_old_one_has_ended(helm: Helm) -> None:
    """Two pods would wait for each other's GPU and volumes."""
    deployment = only(helm.render(TOKENS), "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize(
    "change", [{"config": {"limits": {"max_n": 3}}}, {"auth": {"existingSecret": "callers"}}]
)
def test_a_change_of_configuration_or_access_tokens_replaces_the_pod(helm: Helm, change: Manifest) -> None:
    def annotations(values: Manifest) -> dict[str, str]:
        return only(helm.render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert annotations(TOKENS) == annotations(TOKENS)
    assert annotations(TOKENS) != annotations({**TOKENS, **change})


def test_the_prometheus_operator_scrapes_with_the_access_token(helm: Helm) -> None:
    assert "ServiceMonitor" not in {manifest["kind"] for manifest in helm.render(TOKENS)}
    manifests = helm.render(EVERYTHING)
    monitor, service = only(manifests, "ServiceMonitor"), only(manifests, "Service")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint == {
        "port": service["spec"]["ports"][0]["name"],
        "scheme": "https",
        "path": "/metrics",
        "interval": "10s",
        "authorization": {"credentials": {"name": "scraper", "key": "token"}},
        "tlsConfig": {"insecureSkipVerify": True},
    }


OPEN_METRICS = {"config": {"auth": {"open_metrics": True}}, "metrics": {"serviceMonitor": {"enabled": True}}}


def test_open_metrics_need_no_access_token(helm: Helm) -> None:
    [endpoint] = only(helm.render({**TOKENS, **OPEN_METRICS}), "ServiceMonitor")["spec"]["endpoints"]
    assert "authorization" not in endpoint


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "tiller token new --print-only"),
        ({**TOKENS, "config": {"auth": {"tokens": [{"name": "a"}]}}}, "config.auth.tokens"),
        (
            {"auth": {**TOKENS["auth"], "existingSecret": "s"}},
            "either tokens or existingSecret",
        ),
        ({"auth": {"tokens": [{"name": "ada", "sha256": "secret"}]}}, "sha256"),
        (
            {**TOKENS, "config": {"server": {"drain_seconds": 9}}},
            "config.server.drain_seconds: set drainSeconds",
        ),
        ({**TOKENS, "config": {"server": {"host": "::"}}}, "config.server.host"),
        ({**TOKENS, "config": {"data_directory": "/data"}}, "config.data_directory"),
        ({**TOKENS, "metrics": {"serviceMonitor": {"enabled": True}}}, "tokenSecret.name"),
        ({**TOKENS, "gpu": 1}, "gpu"),
        ({**TOKENS, "gpus": -1}, "gpus"),
        ({**TOKENS, "persistence": {"cache": {"size": "large"}}}, "size"),
        ({**TOKENS, "image": {"repository": ""}}, "repository"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(helm: Helm, values: Manifest, words: str) -> None:
    assert words in helm.refusal(values)
