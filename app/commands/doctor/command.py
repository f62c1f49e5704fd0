"""The command `tiller doctor`: which checks there are, in which order, and how they are shown."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.doctor import content, directories, machine, remote, serving, tracing
from app.commands.doctor.finding import Finding, Level, ok, problem
from app.commands.doctor.machine import Memory, judge_memory
from app.commands.doctor.packages import check_packages
from app.commands.doctor.worker import WorkerError, ask_worker
from app.commands.errors import FAILED
from app.commands.output import AsJson, print_json
from app.configuration import SettingsError, default_config, read_settings
from app.settings import ServedModelSettings, Settings
from inference.interface.diagnosis import Diagnosis

Found = tuple[str, Finding]
"""The name of a check, and what it has found."""

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
_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
_LEVEL_WIDTH = max(map(len, Level))
_NAME_WIDTH = max(map(len, (*_CHECKS, *_WORKER_CHECKS)))


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (YAML), the same as for `tiller serve`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check machine, configuration and model, and say how to mend what is wrong. Needs no server.

    Exit status: 0 if a server would run, with or without warnings, 1 if there is a problem.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the findings say it
    found = []
    for name, finding in _examine(default_config(config)):
        found.append((name, finding))
        if not as_json:
            _show(name, finding)
    counts = {level: sum(finding.level is level for _, finding in found) for level in Level}
    if as_json:
        print_json(_document(found, counts))
    else:
        typer.echo(f"{_count(counts[Level.PROBLEM], 'problem')}, {_count(counts[Level.WARNING], 'warning')}")
    raise typer.Exit(FAILED if counts[Level.PROBLEM] else 0)


def _examine(config: Path | None) -> Iterator[Found]:
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
    for name, examine in _WORKER_CHECKS.items():
        found = _run(examine, settings.alone(model), diagnosis)
        yield name, replace(found, what=which + found.what)
    memory = machine.memory_of(settings.alone(model), diagnosis)
    if memory and diagnosis.device == "cpu":
        memories.append(memory)


def _run(check: Callable[..., Finding], *facts: object) -> Finding:
    try:
        return check(*facts)
    except OSError as error:
        return problem(f"cannot be checked: {error}", "run as the user that the server runs as")


def _show(name: str, finding: Finding) -> None:
    """One line, and one more about how to mend it. On a terminal, they are wrapped within their column."""
    console = Console(highlight=False)
    lines = [finding.what, *([f"mend: {finding.mend}"] if finding.mend else [])]
    if not console.is_terminal:
        for number, line in enumerate(lines):
            before = (finding.level, name) if number == 0 else ("", "")
            typer.echo(f"{before[0]:<{_LEVEL_WIDTH}} {before[1]:<{_NAME_WIDTH}} {line}")
        return
    row = Table.grid(padding=(0, 1, 0, 0))
    for width in (_LEVEL_WIDTH, _NAME_WIDTH, None):
        row.add_column(width=width)
    row.add_row(Text(finding.level, _STYLES[finding.level]), name, Text("\n".join(lines)))
    console.print(row)


def _document(found: list[Found], counts: dict[Level, int]) -> dict[str, object]:
    return {
        "problems": counts[Level.PROBLEM],
        "warnings": counts[Level.WARNING],
        "checks": [
            {"check": name, "level": finding.level, "what": finding.what, "mend": finding.mend}
            for name, finding in found
        ],
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
