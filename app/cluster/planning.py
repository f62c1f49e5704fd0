"""Makes the plan of a cluster from the settings. Knows no Ray and no processes."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from app import __version__
from app.cluster.errors import ClusterError
from app.cluster.files import Luggage
from app.cluster.structures import ModelPlan, Plan, Resources, Task, pack, unpack
from app.settings import ServedModelSettings, Settings
from inference.interface.config import ConfigError
from inference.interface.worker_key import read_key

_ONLY_HERE = {"cluster", "worker_key", "registry"}
"""Sections of the settings that a plan replaces."""


def make_plan(settings: Settings, head: str, has_gpus: bool) -> Plan:
    """`head`: the address of the head node. `has_gpus`: whether any node of the cluster has a GPU.

    Reads the files that the settings name. Raises ClusterError.
    """
    refuse_other_settings(settings)
    cluster = settings.cluster
    address = f"tcp://{_bracketed(cluster.registry_host or head)}:{cluster.registry_port}"
    models = {
        model.name: ModelPlan(
            _worker(settings, model, address, has_gpus),
            model.scale.min,
            model.scale.most,
            model.engine.max_running,
        )
        for model in settings.served_models
    }
    return Plan(
        _registry(settings),
        _gateway(settings, address),
        cluster.gateways,
        models,
        address,
        cluster.grow_after_seconds,
        cluster.shrink_after_seconds,
    )


def refuse_other_settings(settings: Settings) -> None:
    """Refuses settings that mean nothing in a cluster. Raises ClusterError."""
    if settings.worker_key_file is None:
        raise ClusterError("worker_key must be set for a cluster; `tiller worker new-key` makes one")
    try:
        read_key(settings.worker_key_file)
    except ConfigError as error:
        raise ClusterError(str(error)) from None
    if settings.server.port == 0:
        raise ClusterError("server.port must be set for a cluster, because gateways use the ports from it on")
    if settings.registry is not None:
        raise ClusterError("registry must not be set; the cluster starts one itself")
    for model in settings.served_models:
        if model.workers:
            raise ClusterError(f"{model.name}: workers must not be set; the cluster starts them itself")
        if model.engine.replicas > 1:
            raise ClusterError(f"{model.name}: engine.replicas has no effect in a cluster; set scale.min")


def digest_of(task: Task) -> str:
    """Equal for tasks whose processes need not be replaced by each other."""
    # JSON in a fixed order: dictionaries with the same entries may have different orders.
    # Decoded, so that 1 and 1.0 are the same: Ray and the disk have carried some tasks, and others not.
    content = msgspec.json.encode(unpack(pack(task), Task), order="deterministic")
    return hashlib.sha256(content).hexdigest()[:12]


def worker_resources(model: ServedModelSettings, has_gpus: bool) -> Resources:
    """All GPUs of a tensor parallel group are on one node, because one actor reserves them."""
    engine = model.engine
    if engine.device == "cuda" or (engine.device == "auto" and has_gpus):
        return Resources(gpus=engine.tensor_parallel)
    return Resources(cpus=engine.threads or 1)


def _registry(settings: Settings) -> Task:
    luggage = Luggage()
    config = _common(settings, luggage)
    config["data_directory"] = _absolute(settings.data_directory)
    return Task(
        "registry",
        __version__,
        config,
        luggage.files,
        Resources(on_head=True),
        settings.server.drain_seconds,
        port=settings.cluster.registry_port,
    )


def _worker(settings: Settings, model: ServedModelSettings, registry: str, has_gpus: bool) -> Task:
    luggage = Luggage()
    config = _common(settings, luggage)
    # Not exclude_unset, which differs between the section `model` and the list `models`.
    own = model.model_dump(mode="json", exclude_none=True, include={"source", "revision", "rotary"})
    config |= {
        "registry": registry,
        "server": {"drain_seconds": settings.server.drain_seconds},
        "model": {**own, "name": model.name, "source": _source(model.source)},
        "engine": model.engine.model_dump(mode="json", exclude_unset=True),
        "steering": settings.steering.model_dump(include={"questions", "refine"}),
    }
    return Task(
        "worker",
        __version__,
        config,
        luggage.files,
        worker_resources(model, has_gpus),
        settings.server.drain_seconds,
        model=model.name,
    )


def _gateway(settings: Settings, registry: str) -> Task:
    luggage = Luggage()
    config = settings.model_dump(mode="json", exclude_unset=True, exclude=_ONLY_HERE)
    config |= _common(settings, luggage)
    config |= {"registry": registry, "data_directory": "data"}
    config["steering"] = {**config.get("steering", {}), "concepts": _concepts(settings, luggage)}
    if "models" in config:
        pairs = zip(config["models"], settings.models, strict=True)
        config["models"] = [_served(given, model, luggage) for given, model in pairs]
    else:
        config["model"] = _served(config.get("model", {}), settings.served_models[0], luggage)
    if settings.server.tls is not None:
        config["server"]["tls"] = {
            "certificate": luggage.add(_expanded(settings.server.tls.certificate), "tls.crt"),
            "key": luggage.add(_expanded(settings.server.tls.key), "tls.key"),
        }
    if settings.token_file.exists():
        luggage.add(settings.token_file, "data/tokens.json")
    return Task(
        "gateway",
        __version__,
        config,
        luggage.files,
        Resources(spread=True),
        settings.server.drain_seconds,
        host=settings.server.host,
        port=settings.server.port,
        ports=settings.cluster.gateways,
    )


def _common(settings: Settings, luggage: Luggage) -> dict[str, Any]:
    """What all processes need."""
    key = settings.worker_key_file
    assert key is not None  # noqa: S101 - refuse_other_settings has checked it
    return {
        "worker_key": luggage.add(key, "worker.key"),
        "cache_directory": _absolute(settings.cache_directory),
        "log": settings.log.model_dump(mode="json", exclude_unset=True),
    }


def _concepts(settings: Settings, luggage: Luggage) -> str:
    # The directory exists on the nodes also if it is empty here.
    luggage.files["concepts/.tiller"] = b""
    return luggage.add_directory(settings.shipped_concepts, "concepts", ".yaml")


def _served(given: dict[str, Any], model: ServedModelSettings, luggage: Luggage) -> dict[str, Any]:
    """A model as a gateway needs it."""
    served = {key: value for key, value in given.items() if key != "scale"}
    served["source"] = _source(model.source)
    template = model.chat_template_file
    if template is not None:
        name = f"templates/{len(luggage.files)}.jinja"
        served["chat_template"] = luggage.add(template, name)
    return served


def _source(source: str) -> str:
    """A relative path here is no path on a node, so it becomes absolute."""
    path = Path(source)
    is_relative = source != "embedded" and not source.startswith("~") and path.exists()
    return str(path.absolute()) if is_relative else source


def _absolute(directory: str) -> str:
    """`~` stays: it is another directory on each node."""
    return directory if directory.startswith("~") else str(Path(directory).absolute())


def _expanded(path: str) -> Path:
    return Path(path).expanduser()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
