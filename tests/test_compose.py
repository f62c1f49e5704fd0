"""The files of `docker compose up`: valid, consistent with each other, and with secure defaults.

Needs no Docker engine. tests/e2e/test_dashboard.py checks the dashboard's queries with a real server.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from app.configuration import read_settings
from app.limits.access_tokens import AccessTokenFile, AccessTokens
from app.settings import AccessScope, AccessToken

ROOT = Path(__file__).parents[1]
FILES = ("compose.yaml", "compose.gpu.yaml")
CONFIG = "/etc/tiller/config.yaml"
GRAFANA = ROOT / "deploy" / "grafana"


def read(file: str) -> dict[str, Any]:
    """The file as Compose reads it if no variable is set."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / file).read_text())
    return yaml.safe_load(text)


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where each path of the container comes from: a path of the host, or a volume."""
    long = [volume for volume in service.get("volumes", []) if isinstance(volume, dict)]
    short = [volume.split(":") for volume in service.get("volumes", []) if isinstance(volume, str)]
    return {volume["target"]: volume["source"] for volume in long} | {
        target: source for source, target, *_ in short
    }


def host_file(service: dict[str, Any], path: str) -> Path:
    """The file of the checkout that the container sees at this path."""
    found = {target: source for target, source in mounts(service).items() if path.startswith(target)}
    target, source = max(found.items(), key=lambda item: len(item[0]))
    return ROOT / source / path.removeprefix(target).lstrip("/")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read("compose.yaml")


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return compose["services"]


@pytest.mark.parametrize("file", FILES)
def test_the_file_follows_the_compose_specification(file: str) -> None:
    PyCompose.from_json(json.dumps(read(file))).validate()


def test_a_misspelt_key_would_be_found() -> None:
    content = read("compose.yaml")
    content["services"]["tiller"]["port"] = content["services"]["tiller"].pop("ports")
    with pytest.raises(ValueError, match="port"):
        PyCompose.from_json(json.dumps(content))


@pytest.mark.parametrize("file", FILES)
def test_named_volumes_and_mounted_files_exist(file: str, compose: dict[str, Any]) -> None:
    for service in read(file)["services"].values():
        for source in mounts(service).values():
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]


def test_services_depend_on_services(services: dict[str, dict[str, Any]]) -> None:
    assert {other for service in services.values() for other in service.get("depends_on", [])} < set(services)


def test_only_this_machine_reaches_the_ports(services: dict[str, dict[str, Any]]) -> None:
    published = [port for service in services.values() for port in service["ports"]]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_containers_have_no_privileges(services: dict[str, dict[str, Any]]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.keys().isdisjoint({"privileged", "cap_add", "user", "network_mode", "pid"})


def test_images_of_others_have_a_version_and_a_health_check(services: dict[str, dict[str, Any]]) -> None:
    others = [service for service in services.values() if "build" not in service]
    assert len(others) == 2
    for service in others:
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        assert "healthcheck" in service


@pytest.mark.parametrize(("file", "device"), [("compose.yaml", "auto"), ("compose.gpu.yaml", "cuda")])
def test_the_server_accepts_its_configuration(
    file: str, device: str, services: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in services["tiller"]["environment"].items():
        if value is not None:
            monkeypatch.setenv(name, value)
    settings = read_settings(host_file(read(file)["services"]["tiller"], CONFIG))
    assert settings.engine.device == device
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8000)


def test_the_server_can_write_to_its_volumes(services: dict[str, dict[str, Any]]) -> None:
    """A new volume gets the owner of the image's folder at this path."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    owned = re.search(r"chown tiller:0 (\S+(?: /\S+)*)", dockerfile)
    assert owned is not None
    volumes = {path for path, source in mounts(services["tiller"]).items() if not source.startswith(".")}
    assert volumes == set(owned[1].split())


def test_the_server_has_time_to_finish_answers(services: dict[str, dict[str, Any]]) -> None:
    grace = int(services["tiller"]["stop_grace_period"].removesuffix("s"))
    assert grace > read_settings(host_file(services["tiller"], CONFIG)).server.drain_seconds


def test_the_gpu_file_builds_the_image_for_gpus() -> None:
    tiller = read("compose.gpu.yaml")["services"]["tiller"]
    assert tiller["build"]["target"] == "cuda"
    [devices] = tiller["deploy"]["resources"]["reservations"]["devices"]
    assert devices == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_prometheus_scrapes_the_server_with_the_access_token(services: dict[str, dict[str, Any]]) -> None:
    [file] = [
        argument.partition("=")[2]
        for argument in services["prometheus"]["command"]
        if argument.startswith("--config.file=")
    ]
    config = yaml.safe_load(host_file(services["prometheus"], file).read_text())
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["tiller:8000"]}]
    token_file = job["authorization"]["credentials_file"]
    assert services["tiller"]["entrypoint"][-2:] == [CONFIG, token_file]
    folder = str(Path(token_file).parent)
    assert mounts(services["tiller"])[folder] == mounts(services["prometheus"])[folder]
    [source] = yaml.safe_load((GRAFANA / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_grafana_finds_prometheus_and_the_dashboard(services: dict[str, dict[str, Any]]) -> None:
    grafana = services["grafana"]
    provisioning = "/etc/grafana/provisioning"
    data = host_file(grafana, f"{provisioning}/datasources/prometheus.yaml")
    [source] = yaml.safe_load(data.read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"] is True, "the dashboard's variable starts with the default"
    provider = host_file(grafana, f"{provisioning}/dashboards/tiller.yaml")
    [dashboards] = yaml.safe_load(provider.read_text())["providers"]
    assert dashboards["type"] == "file"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(dashboards["options"]["path"] + "/")
    dashboard = json.loads(host_file(grafana, home).read_text())
    assert dashboard["uid"] == "tiller"
    [variable] = dashboard["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", source["type"])


def test_nobody_can_sign_in_with_a_default_password(services: dict[str, dict[str, Any]]) -> None:
    environment = services["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


@pytest.fixture
def start(services: dict[str, dict[str, Any]], tmp_path: Path) -> Any:
    """Runs the container's entry point up to `tiller serve`. Returns what `serve` was called with."""
    program = tmp_path / "bin" / "tiller"
    program.parent.mkdir()
    command = shlex.join([sys.executable, "-m", "app.cli"])
    program.write_text(f'#!/bin/sh\nif [ "$1" = serve ]; then echo "$@"; else exec {command} "$@"; fi\n')
    program.chmod(0o755)
    shell, script, _, _ = services["tiller"]["entrypoint"]
    config = tmp_path / "config.yaml"
    config.write_text(f"data_directory: {tmp_path / 'data'}\n")
    path = f"{program.parent}:{os.environ['PATH']}"

    def run(token_file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [shell, host_file(services["tiller"], script), config, token_file],
            env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_each_start_makes_an_access_token_for_the_metrics_only(start: Any, tmp_path: Path) -> None:
    file = tmp_path / "metrics-token"
    tokens = AccessTokenFile(tmp_path / "data" / "tokens.json")
    found: list[AccessToken] = []
    for _ in range(2):
        started = start(file)
        assert started.stdout == f"serve --config {tmp_path / 'config.yaml'}\n", started.stderr
        assert file.stat().st_mode & 0o777 == 0o644, "Prometheus runs as another user"
        [stored] = tokens.read()
        assert AccessTokens([], tokens).find(file.read_text().strip()) == stored
        assert stored.scopes == (AccessScope.METRICS,)
        found.append(stored)
    assert found[0].sha256 != found[1].sha256


def test_the_server_does_not_start_without_an_access_token(start: Any, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the place of the data directory")
    started = start(tmp_path / "metrics-token")
    assert started.returncode != 0
    assert started.stdout == ""
    assert "cannot be written" in started.stderr
    assert not (tmp_path / "metrics-token").exists()
