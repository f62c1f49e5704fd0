"""Writes the results of a run: a page, JSON and pictures in one directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from app.bench import report
from app.bench.figures import Figures
from app.bench.load import Plan
from app.bench.plot import draw
from benchmarks.peers.comparison import columns, ratios
from benchmarks.peers.servers import Server


@dataclass
class Run:
    """What was measured, and the conditions."""

    plan: Plan
    machine: dict[str, Any]
    servers: list[Server] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Servers that were requested but not measured, with the reasons."""
    generate: list[float] = field(default_factory=list)
    """Tokens per second of plain transformers in each round."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def peers(self) -> list[str]:
        return [server.name for server in self.servers if server.is_peer]

    @property
    def reference(self) -> float | None:
        return median(self.generate) if self.generate else None


def write(run: Run, figures: Sequence[Figures], directory: Path) -> str:
    """Writes load.md, load.json, load.svg and load.png; returns the page."""
    directory.mkdir(parents=True, exist_ok=True)
    page = render(run, figures)
    (directory / "load.md").write_text(page, encoding="utf-8")
    (directory / "load.json").write_text(_to_json(run, figures), encoding="utf-8")
    for suffix in ("svg", "png"):
        draw(figures, directory / f"load.{suffix}")
    return page


def render(run: Run, figures: Sequence[Figures]) -> str:
    """The page in Markdown."""
    table = report.table(figures, columns(figures, run.peers, run.reference))
    return "\n".join([*_conditions(run), "", table, *_notes(run), ""])


def _conditions(run: Run) -> list[str]:
    machine, plan = run.machine, run.plan
    instructions = [f"{name}: {'yes' if has else 'no'}" for name, has in machine["instructions"].items()]
    lines = [
        f"{run.started:%Y-%m-%d %H:%M} UTC; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}.",
        "",
        f"Instructions: {', '.join(instructions)}.",
        "",
        f"Tokens out: {plan.workload.tokens}; temperature: {plan.workload.temperature}; "
        f"rounds: {plan.rounds}; requests per stream and round: {plan.requests}; seed: {plan.seed}.",
        "",
    ]
    for server in run.servers:
        versions = ", ".join(f"{name} {version}" for name, version in server.versions.items())
        lines.append(f"- {server.name}: weights {server.weights}; {versions}")
    return lines + [f"- {name} is not measured: {reason}" for name, reason in run.left_out.items()]


def _notes(run: Run) -> list[str]:
    if run.reference is None:
        return []
    return ["", f"transformers' generate, one sequence in float32: {run.reference:.1f} tok/s."]


def _to_json(run: Run, figures: Sequence[Figures]) -> str:
    compared: list[dict[str, Any]] = [
        {
            "server": server,
            "prompt_tokens": point.prompt_tokens,
            "concurrency": point.concurrency,
            "best_peer": ratio.peer,
            "by_round": ratio.by_round,
        }
        for (server, point), ratio in ratios(figures, run.peers).items()
    ]
    servers = [
        {
            "name": server.name,
            "is_peer": server.is_peer,
            "weights": server.weights,
            "versions": server.versions,
            "command": server.command,
            "environment": server.environment,
        }
        for server in run.servers
    ]
    workload = run.plan.workload
    return report.to_json(
        figures,
        started=run.started.isoformat(),
        machine=run.machine,
        plan={
            "tokens": workload.tokens,
            "temperature": workload.temperature,
            "rounds": run.plan.rounds,
            "requests": run.plan.requests,
            "seed": run.plan.seed,
        },
        servers=servers,
        left_out=run.left_out,
        generate=run.generate,
        ratios=compared,
    )
