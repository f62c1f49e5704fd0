"""`tiller bench`: measures chat servers under load, and prints, stores and draws the figures."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from app.bench import report
from app.bench.client import BenchError, Target, Workload, parse_target
from app.bench.figures import Measurement, summarize
from app.bench.load import Plan, compare
from app.bench.plot import check_plot, draw
from app.commands.errors import exit_on_errors
from app.commands.output import AsJson

_LOCAL = "http://127.0.0.1:8000"


def bench(
    url: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URL", help=f"A server. Repeat the option to compare several. Default: {_LOCAL}"
        ),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="TILLER_TOKEN", help="Access token to send to every server.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model to request. Default: the first one that each server lists.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Numbers of concurrent streams to measure.")] = "1,8,32,64",
    prompt_tokens: Annotated[
        str,
        typer.Option(help="Prompt lengths to measure, in tokens. The chat template counts."),
    ] = "16,135,1000",
    tokens: Annotated[int, typer.Option(min=1, help="Length of each answer, in tokens.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="How often to measure each combination.")] = 2,
    requests: Annotated[int, typer.Option(min=1, help="Requests of each stream in a round.")] = 2,
    temperature: Annotated[float, typer.Option(min=0, help="Sampling temperature.")] = 0.7,
    ban: Annotated[
        str,
        typer.Option(
            help="Ids of end-of-turn tokens, which are banned. Default: the embedded model's. May be empty."
        ),
    ] = "0,2",
    seed: Annotated[int, typer.Option(help="Seed of the random prompts.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the figures into this .svg, .png or .pdf file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure chat servers under load: throughput, time to first token, inter-token latency."""
    with exit_on_errors(BenchError, OSError):
        plan = Plan(
            parse_numbers(concurrency, least=1),
            parse_numbers(prompt_tokens, least=1),
            rounds,
            requests,
            Workload(tokens, temperature, parse_numbers(ban) if ban else ()),
            seed,
        )
        targets = _targets(url or [_LOCAL], token, model)
        _check_plot(plot)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            measurements = runner.run(_measure(targets, plan))
        figures = report.by_point(summarize(measurements, tokens))
        typer.echo(report.to_json(figures) if as_json else report.table(figures))
        if plot is not None:
            draw(figures, plot)
        if lines := report.problems(figures, tokens):
            raise BenchError("\n".join(lines))


def parse_numbers(text: str, least: int = 0) -> tuple[int, ...]:
    """Parses numbers such as `1,8,32`, without duplicates. Raises BenchError."""
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise BenchError(f"{text!r} must be whole numbers separated by commas") from None
    if any(number < least for number in numbers):
        raise BenchError(f"{text!r} must be whole numbers of at least {least}")
    return numbers


def _targets(urls: list[str], token: str | None, model: str | None) -> list[Target]:
    targets = [parse_target(url, token, model) for url in urls]
    if len({target.name for target in targets}) < len(targets):
        raise BenchError("two servers have the same name: name them with --url NAME=URL")
    return targets


def _check_plot(file: Path | None) -> None:
    """Raises BenchError if the plot cannot be written. Runs before the measurements, which take long."""
    if file is None:
        return
    if not file.parent.is_dir():
        raise BenchError(f"{file}: {file.parent} is not a directory")
    check_plot(file)


async def _measure(targets: list[Target], plan: Plan) -> list[Measurement]:
    measurements = []
    async for number, measurement in compare(targets, plan):
        measurements.append(measurement)
        typer.echo(progress(number, plan, measurement), err=True)
    return measurements


def progress(number: int, plan: Plan, measurement: Measurement) -> str:
    """A line about a measurement. `number`: its round, from 0."""
    point, speed = measurement.point, measurement.output_tokens_per_second
    return (
        f"round {number + 1}/{plan.rounds}, {measurement.server}: streams {point.concurrency}, "
        f"prompts of {point.prompt_tokens} tokens: {speed:.1f} tok/s"
    )
