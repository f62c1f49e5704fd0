"""The soak benchmark: its requests, its faults (failures, growth, leaks) and its page."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import httpx
import pytest

from benchmarks.peers.machine import describe_machine
from benchmarks.resources import MIB, Usage
from benchmarks.soak import load
from benchmarks.soak.findings import (
    OPEN_FILES_TOLERANCE,
    THREADS_TOLERANCE,
    Soak,
    count_statuses,
    faults,
    growth,
    memory,
)
from benchmarks.soak.load import Outcome
from benchmarks.soak.mix import Ask, Mix
from benchmarks.soak.results import write
from benchmarks.soak.samples import Sample, read_gauges

CONCEPTS = ("_worker/one", "_worker/two")
CONDITIONS = {
    "started": "2026-11-23T09:00:00",
    "machine": describe_machine("model name\t: Slow One\n"),
    "commit": "abc1234",
    "minutes": 10,
    "concurrency": 8,
    "seed": 7,
    "tolerance": 1.0,
}


def usage(mib: float, open_files: int = 10, threads: int = 4) -> Usage:
    return Usage(round(mib * MIB), open_files, threads)


def sample(minutes: float, mib: float = 100, running: float = 0) -> Sample:
    """A sample with this memory of the gateway. The worker's memory is constant."""
    return Sample(minutes * 60, usage(mib), usage(3000), {"tiller_running": running, "tiller_concepts": 5})


def gateway(sample: Sample) -> Usage:
    return sample.gateway


@pytest.fixture
def good() -> Soak:
    outcomes = [Outcome("short", "200"), Outcome("client leaves", "left"), Outcome("invalid", "400")]
    under_load = [sample(minute, 150, running=8) for minute in range(11)]
    return Soak(outcomes, sample(0), under_load, sample(12, 120), became_idle=True)


# The requests.


def test_the_same_seed_makes_the_same_requests() -> None:
    first, again, other = (list(islice(Mix("m", CONCEPTS, seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_kind_of_request_occurs() -> None:
    mix = Mix("m", CONCEPTS, seed=0)
    once = [ask.kind for ask in mix.each_once()]
    assert len(once) == len(set(once)) == 10
    assert {ask.kind for ask in islice(mix, 500)} == set(once)


def test_nothing_is_steered_without_concepts() -> None:
    mix = Mix("m", (), seed=0)
    assert list(mix.steered_by_each()) == []
    asked = [*mix.each_once(), *islice(mix, 300)]
    assert all("steering_concepts" not in ask.body for ask in asked if ask.status == 200)


def test_each_concept_is_used_before_the_load() -> None:
    asked = [ask.body["steering_concepts"] for ask in Mix("m", CONCEPTS, seed=0).steered_by_each()]
    assert asked == [["_worker/one"], ["_worker/two"]]


def test_some_prompts_are_sent_again() -> None:
    prompts = Counter(
        ask.body["messages"][0]["content"] for ask in islice(Mix("m", (), 0), 300) if ask.status == 200
    )
    assert 0.5 < len(prompts) / prompts.total() < 0.95


# The outcomes.


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if "cut" in body:
            return httpx.Response(200, content=stream(b'data: {"error":{}}\n\n'))
        if "lost" in body:
            raise httpx.ReadError("gone")
        if body.get("stream"):
            return httpx.Response(200, content=stream(b"data: {}\n\n", b"data: [DONE]\n\n"))
        return httpx.Response(body.get("answer", 200), content=b"why it is so")

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.mark.parametrize(
    ("ask", "outcome"),
    [
        (Ask("k", {}), Outcome("k", "200")),
        (Ask("k", {"stream": True}), Outcome("k", "200")),
        (Ask("k", {"answer": 400}, status=400), Outcome("k", "400")),
        (Ask("k", {"answer": 503}), Outcome("k", "503", "503 instead of 200: why it is so")),
        (Ask("k", {"answer": 200}, status=400), Outcome("k", "200", "200 instead of 400: why it is so")),
        (Ask("k", {"stream": True}, leaves_after=1), Outcome("k", "left")),
        (Ask("k", {"lost": True}), Outcome("k", "lost", "ReadError: gone")),
        (
            Ask("k", {"stream": True, "cut": True}),
            Outcome("k", "200", 'the stream ends with data: {"error":{}}'),
        ),
    ],
)
async def test_an_outcome_is_compared_with_the_expected_one(
    client: httpx.AsyncClient, ask: Ask, outcome: Outcome
) -> None:
    assert await load.send(client, ask) == outcome


def test_gauges_are_summed_over_labels_and_counters_ignored() -> None:
    text = "\n".join(
        [
            "# HELP tiller_running Generations that are running.",
            "# TYPE tiller_running gauge",
            "tiller_running 3.0",
            "# TYPE blocks gauge",
            'blocks{worker="0"} 2.0',
            'blocks{worker="1"} 5.0',
            "# TYPE blocks_more counter",
            "blocks_more 9.0",
            "# TYPE requests_total counter",
            'requests_total{route="/"} 4.0',
            "# TYPE requests_created gauge",
            'requests_created{route="/"} 1.7e+09',
        ]
    )
    assert read_gauges(text) == {"tiller_running": 3, "blocks": 7}


# The faults.


def test_growth_is_measured_over_the_second_half() -> None:
    samples = [
        sample(minute, 100 + (50 * minute if minute < 5 else 250 + 3 * minute)) for minute in range(11)
    ]
    assert growth(samples, gateway, 0.5, 1) == pytest.approx(3)


def test_a_single_peak_is_not_growth() -> None:
    samples = [sample(minute, 900 if minute == 9 else 100) for minute in range(11)]
    assert growth(samples, gateway, 0.5, 1) == 0


def test_a_single_step_is_not_steady_growth(good: Soak) -> None:
    found = memory(
        replace(good, samples=[sample(minute, 100 + 50 * (minute > 7)) for minute in range(11)]), gateway
    )
    assert found.growth > 1
    assert found.steady_growth == 0


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_show_no_growth(count: int) -> None:
    assert growth([sample(0)] * count, gateway, 0.5, 1) == 0


def test_memory_is_measured_before_at_the_peak_and_after(good: Soak) -> None:
    found = memory(good, gateway)
    assert (found.before, found.peak, found.after, found.growth) == (100, 150, 120, 0)


def test_a_good_soak_has_no_faults(good: Soak) -> None:
    assert faults(good, tolerance=1) == []


def test_a_failed_request_is_a_fault(good: Soak) -> None:
    soak = replace(good, outcomes=[*good.outcomes, Outcome("long", "503", "503 instead of 200: full")])
    assert faults(soak, 1) == ["1 of 4 requests failed, the first one: long: 503 instead of 200: full"]


def test_a_soak_without_requests_is_a_fault(good: Soak) -> None:
    assert faults(replace(good, outcomes=[]), 1) == ["no request was sent"]


def test_memory_may_grow_up_to_the_tolerance(good: Soak) -> None:
    soak = replace(good, samples=[sample(minute, 100 + 2 * minute) for minute in range(11)])
    assert faults(soak, tolerance=2.001) == []
    assert faults(soak, tolerance=1.5) == [
        "the gateway's memory grows by at least 2.00 MiB per minute; the limit is 1.5"
    ]


def test_resources_in_use_at_rest_are_faults(good: Soak) -> None:
    leaked = Sample(
        720,
        usage(120, open_files=10 + OPEN_FILES_TOLERANCE + 1),
        usage(3000, threads=4 + THREADS_TOLERANCE + 1),
        {"tiller_running": 1, "tiller_concepts": 6},
    )
    assert faults(replace(good, after=leaked), 1) == [
        "the gateway has 15 open files at rest, 10 before",
        "the worker has 45 threads at rest, 4 before",
        "tiller_running is 1 at rest, 0 before",
    ]


def test_a_server_that_stays_busy_is_a_fault(good: Soak) -> None:
    assert faults(replace(good, became_idle=False), 1) == ["the server did not become idle"]


# The results.


def test_the_page_shows_requests_and_resources(good: Soak, tmp_path: Path) -> None:
    outcomes = [*good.outcomes, Outcome("short", "503", "full")]
    page = write(replace(good, outcomes=outcomes), ["it failed"], CONDITIONS, tmp_path)
    for words in (
        "Slow One",
        "| short | 2 | 200: 1, 503: 1 | 1 |",
        "| all | 4 | | 1 |",
        "| gateway | 100.0 | 150.0 | 120.0 | +0.00 | +0.00, +0.00 | 10, 10, 10 | 4, 4, 4 |",
        "| tiller_running | 0 | 8 | 0 |",
        "- it failed",
    ):
        assert words in page
    kept = json.loads((tmp_path / "soak.json").read_text())
    assert kept["statuses"]["short"] == {"200": 1, "503": 1}
    assert len(kept["samples"]) == 11


def test_a_soak_can_be_drawn(good: Soak, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.soak.plot import draw

    draw(good, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")


def test_statuses_are_counted_by_kind(good: Soak) -> None:
    assert count_statuses([*good.outcomes, Outcome("short", "200")])["short"] == {"200": 2}
