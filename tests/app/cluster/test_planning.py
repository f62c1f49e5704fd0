"""The plan of a cluster: what travels to the nodes, and what a changed setting replaces."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cluster.errors import ClusterError
from app.cluster.launching import Launcher, find_port
from app.cluster.planning import digest_of, make_plan
from app.cluster.structures import Plan, Resources
from app.configuration import load_settings, read_settings
from inference.interface.worker_key import create_key, read_key


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in ("TILLER_DATA_DIRECTORY", "TILLER_STEERING__CONCEPTS"):  # they override a file
        monkeypatch.delenv(name, raising=False)
    create_key(tmp_path / "key")
    (tmp_path / "concepts").mkdir()
    (tmp_path / "concepts" / "kind.yaml").write_text("examples: []")
    (tmp_path / "template").write_text("{{ messages }}")
    return {
        "server": {"port": find_port(0)},
        "worker_key": str(tmp_path / "key"),
        "data_directory": str(tmp_path / "data"),
        "steering": {"concepts": str(tmp_path / "concepts")},
        "models": [
            {"name": "a", "source": "/models/a", "scale": {"min": 2, "max": 4}},
            {"name": "b", "source": "org/b", "chat_template": str(tmp_path / "template")},
        ],
        "engine": {"device": "cpu", "threads": 3},
    }


def plan_of(config: dict[str, Any], tmp_path: Path, gpus: bool = False) -> Plan:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return make_plan(read_settings(file), "10.0.0.1", gpus)


def changed(before: Plan, after: Plan) -> set[str]:
    """Which processes the second plan replaces."""
    tasks = {
        name: (digest_of(one), digest_of(other))
        for name, one, other in [
            ("registry", before.registry, after.registry),
            ("gateway", before.gateway, after.gateway),
            *((name, before.models[name].task, after.models[name].task) for name in before.models),
        ]
    }
    return {name for name, (one, other) in tasks.items() if one != other}


def test_each_process_gets_what_it_needs_and_no_more(config: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(config, tmp_path)
    assert set(plan.registry.files) == set(plan.models["a"].task.files) == {"worker.key"}
    assert {"worker.key", "concepts/kind.yaml"} < set(plan.gateway.files)
    assert plan.gateway.config["registry"] == plan.registry_address == "tcp://10.0.0.1:7100"
    assert plan.models["a"].task.config["model"] == {"name": "a", "source": "/models/a"}
    assert (plan.models["a"].least, plan.models["a"].most, plan.models["b"].most) == (2, 4, 1)


def test_the_workers_train_as_they_are_told(config: dict[str, Any], tmp_path: Path) -> None:
    before = plan_of(config, tmp_path)
    config["steering"] |= {"questions": 3, "refine": True}
    after = plan_of(config, tmp_path)
    assert after.models["a"].task.config["steering"] == {"questions": 3, "refine": True}
    assert changed(before, after) >= {"a", "b"}


@pytest.mark.parametrize("kind", ["gateway", "a", "b"])
def test_the_settings_are_valid_on_the_node(
    config: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    plan = plan_of(config, tmp_path)
    task = plan.gateway if kind == "gateway" else plan.models[kind].task
    launcher = Launcher(task, "10.0.0.2")
    request.addfinalizer(launcher.clean_up)
    launch = launcher()
    monkeypatch.chdir(launch.directory)
    assert launch.directory.stat().st_mode & 0o777 == 0o700
    settings = load_settings(Path("tiller.yaml")) if kind == "gateway" else read_settings(Path("tiller.yaml"))
    assert settings.registry == "tcp://10.0.0.1:7100"
    assert settings.worker_key_file is not None
    assert read_key(settings.worker_key_file) == read_key(tmp_path / "key")
    if kind == "gateway":
        assert [path.name for path in settings.shipped_concepts.glob("*.yaml")] == ["kind.yaml"]
        assert settings.models[1].chat_template_file.read_text() == "{{ messages }}"
    else:
        assert settings.served_models[0].name == kind


@pytest.mark.parametrize(
    ("change", "replaced"),
    [
        ({}, set()),
        ({"limits": {"max_n": 3}}, {"gateway"}),
        ({"cluster": {"gateways": 2}}, {"gateway"}),
        ({"engine": {"device": "cpu", "threads": 4}}, {"a", "b", "gateway"}),
        ({"log": {"level": "debug"}}, {"registry", "gateway", "a", "b"}),
    ],
)
def test_a_change_replaces_only_what_it_is_for(
    config: dict[str, Any], tmp_path: Path, change: dict[str, Any], replaced: set[str]
) -> None:
    before = plan_of(config, tmp_path)
    assert changed(before, plan_of({**config, **change}, tmp_path)) == replaced


def test_a_model_that_moves_into_a_list_is_not_replaced(config: dict[str, Any], tmp_path: Path) -> None:
    [first, second] = config.pop("models")
    alone = plan_of({**config, "model": first}, tmp_path)
    both = plan_of({**config, "models": [first, second]}, tmp_path)
    assert digest_of(alone.models["a"].task) == digest_of(both.models["a"].task)


def test_a_changed_file_counts_as_a_change(config: dict[str, Any], tmp_path: Path) -> None:
    before = plan_of(config, tmp_path)
    (tmp_path / "concepts" / "rude.yaml").write_text("examples: []")
    assert changed(before, plan_of(config, tmp_path)) == {"gateway"}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokens.json").write_text("[]")
    assert "data/tokens.json" in plan_of(config, tmp_path).gateway.files
    create_key(tmp_path / "key")
    assert changed(before, plan_of(config, tmp_path)) == {"registry", "gateway", "a", "b"}


@pytest.mark.parametrize(
    ("engine", "gpus", "resources"),
    [
        ({"device": "cuda", "tensor_parallel": 2}, False, Resources(gpus=2)),
        ({"tensor_parallel": 2}, True, Resources(gpus=2)),
        ({}, False, Resources(cpus=1)),
        ({"device": "cpu", "threads": 3}, True, Resources(cpus=3)),
    ],
)
def test_a_worker_reserves_its_gpus_on_one_node_or_its_threads(
    config: dict[str, Any], tmp_path: Path, engine: dict[str, Any], gpus: bool, resources: Resources
) -> None:
    plan = plan_of({**config, "engine": engine}, tmp_path, gpus)
    assert plan.models["a"].task.resources == resources


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worker_key": None}, "worker_key must be set for a cluster"),
        ({"worker_key": "/none"}, "the worker key /none cannot be read"),
        ({"registry": "tcp://host:7100"}, "registry must not be set"),
        ({"engine": {"replicas": 2}}, r"a: engine\.replicas has no effect in a cluster"),
        ({"server": {"port": 0}}, r"server\.port must be set"),
        ({"server": {"tls": {"certificate": "/none", "key": "/none"}}}, "/none cannot be read: No such file"),
    ],
)
def test_what_means_nothing_in_a_cluster_is_refused(
    config: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClusterError, match=message):
        plan_of({**config, **change}, tmp_path)


def test_workers_of_the_user_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    config["models"][0]["workers"] = ["tcp://host:7000"]
    with pytest.raises(ClusterError, match="a: workers must not be set"):
        plan_of(config, tmp_path)


def test_relative_paths_become_absolute(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    config["models"][0]["source"] = "model"
    plan = plan_of({**config, "cache_directory": "cache"}, tmp_path)
    worker = json.loads(json.dumps(plan.models["a"].task.config))
    assert worker["model"]["source"] == str(tmp_path / "model")
    assert worker["cache_directory"] == str(tmp_path / "cache")
