"""The checks of `tiller doctor`: which there are, and in which order."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from app.commands.doctor import content, directories, machine, remote, serving, tracing
from app.commands.doctor.finding import Finding, Found, ok, problem
from app.commands.doctor.machine import Memory, judge_memory
from app.commands.doctor.packages import check_packages
from app.commands.doctor.worker import WorkerError, ask_worker
from app.configuration import SettingsError, read_settings
from app.settings import ServedModelSettings, Settings
from inference.interface.diagnosis import Diagnosis

_CHECKS: dict[str, Callable[[Settings], Finding]] = {
    "port": serving.check_port,
    "network": serving.check_network,
    "access tokens": serving.check_tokens,
    "certificate": serving.check_certificate,
    "open files": serving.check_open_files,
    "traces": tracing.check_tracing,
    "worker key": remote.check_key,
    "registry": remote.check_registry,
    "data directory": directories.check_data,
    "concepts": content.check_concepts,
}
_WORKER_CHECKS: dict[str, Callable[[Settings, Diagnosis], Finding]] = {
    "GPU": machine.check_gpu,
    "compiler": machine.check_compiler,
    "model": content.check_model,
    "chat template": content.check_chat,
    "memory": machine.check_memory,
    "cache directory": directories.check_cache,
    "disk": directories.check_disk,
}
NAME_WIDTH = max(map(len, (*_CHECKS, *_WORKER_CHECKS)))


def examine(config: Path | None) -> Iterator[Found]:
    """The findings of all checks. Without a valid configuration, only those that need none."""
    yield "packages", check_packages()
    try:
        settings = read_settings(config)
    except SettingsError as error:
        for line in str(error).splitlines():
            yield "configuration", problem(line, "correct it there; README.md has a table of all settings")
        return
    yield "configuration", ok(str(config) if config else "no file: the defaults and the environment")
    for name, check in _CHECKS.items():
        yield name, _run(check, settings)
    memories: list[Memory] = []
    for model in settings.served_models:
        if model.workers:
            yield "workers", remote.check_workers(model)
        elif settings.registry is None:
            yield from _examine_model(settings, model, memories)
    if len(memories) > 1:  # each may use another GPU, but all that run on the CPU share the machine's memory
        weights, kv_cache = sum(each.weights for each in memories), sum(each.kv_cache for each in memories)
        finding = judge_memory(Memory(weights, kv_cache, memories[0].available))
        yield "memory", replace(finding, what=f"models on the CPU together: {finding.what}")


def _examine_model(settings: Settings, model: ServedModelSettings, memories: list[Memory]) -> Iterator[Found]:
    """The findings about one model, as if the server served only this one.

    Appends what it needs to `memories` if it runs on the CPU.
    """
    which = f"{model.name}: " if settings.models else ""
    try:
        with Console(stderr=True).status("importing torch"):
            diagnosis = ask_worker(settings.engine_config(model))
    except WorkerError as error:
        mend = "install Tiller's packages again"
        yield "worker", problem(f"{which}the worker's code does not run: {error}", mend)
        return
    for name, check in _WORKER_CHECKS.items():
        found = _run(check, settings.alone(model), diagnosis)
        yield name, replace(found, what=which + found.what)
    memory = machine.memory_of(settings.alone(model), diagnosis)
    if memory and diagnosis.device == "cpu":
        memories.append(memory)


def _run(check: Callable[..., Finding], *facts: object) -> Finding:
    try:
        return check(*facts)
    except OSError as error:
        return problem(f"cannot be checked: {error}", "run as the user that the server runs as")
