"""The breakdown of a step: its arithmetic, its tables, and one measurement in a tiny shape."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks.breakdown import parts, steps
from benchmarks.breakdown.limits import Limits
from benchmarks.breakdown.parts import Shape, Workload
from benchmarks.breakdown.results import Breakdown, Part, render, to_json
from inference.backends.cpu import build
from inference.interface.config import EngineConfig

LIMITS = Limits(byte_products=400e9, word_products=200e9, float_products=100e9, read_bytes=20e9)
TINY = Shape(layers=2, hidden=64, intermediate=96, heads=4, kv_heads=2, head=16, vocabulary=50)


@pytest.mark.parametrize(
    ("operations", "read", "expected"),
    [
        pytest.param(4e9, 20e6, 0.01, id="limited by products"),
        pytest.param(4e6, 200e6, 0.01, id="limited by memory"),
        pytest.param(0, 0, 0, id="not known"),
    ],
)
def test_a_part_takes_the_longer_of_computing_and_reading(
    operations: float, read: float, expected: float
) -> None:
    part = Part("products", 0.02, operations, LIMITS.byte_products, read)
    assert part.least_seconds(LIMITS) == pytest.approx(expected)


def test_the_table_shows_shares_rates_and_what_is_left() -> None:
    known, other = Part("products", 0.02, 4e9, LIMITS.byte_products, 20e6), Part("sampling", 0.01)
    page = render([Breakdown("decode", 8, 0.04, (known, other))], LIMITS)
    assert "8-bit products 400 GOP/s, 16-bit products 200 GOP/s" in page
    assert "decode: 40.0 ms, 5.00 ms per token" in page
    assert "| products | 20.00 | 50% | 200 | 1.0 | 10.00 | 50% |" in page
    assert "| sampling | 10.00 | 25% | – | – | – | – |" in page
    assert "| rest | 10.00 | 25% | – | – | – | – |" in page


def test_the_heading_compares_all_threads_with_one() -> None:
    page = render([Breakdown("decode", 8, 0.04, (), threads=2, threaded_seconds=0.025)], LIMITS)
    assert "decode: 40.0 ms, 5.00 ms per token; with 2 threads 25.0 ms, 1.60 times as fast" in page


def test_the_file_has_all_figures() -> None:
    breakdown = Breakdown("decode", 8, 0.04, (Part("products", 0.02),))
    content = json.loads(to_json([breakdown], LIMITS, {"level": "native"}))
    assert content["conditions"] == {"level": "native"}
    assert content["limits"]["read_bytes"] == 20e9
    assert content["breakdowns"][0]["parts"][0]["seconds"] == 0.02


def test_queries_see_the_keys_before_them() -> None:
    assert Workload("", sequences=3, context=10, queries=1).visible == 30
    assert Workload("", sequences=2, context=4, queries=4).visible == 2 * (1 + 2 + 3 + 4)
    assert Workload("", sequences=1, context=10, queries=2).visible == 9 + 10


@pytest.mark.parametrize("queries", [1, 20])
def test_all_kernels_of_a_step_are_timed(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load(Path(EngineConfig().cache_directory).expanduser())
    act = parts.fastest
    monkeypatch.setattr(parts, "fastest", lambda run, least_seconds=0: act(run, 0))
    measured = parts.measure(TINY, Workload("", 3, 20, queries), max_rows=32, limits=LIMITS)
    assert [part.name for part in measured] == [
        "queries, keys, values",
        "attention",
        "output projection",
        "gate, up, down",
        "norms",
        "output head",
    ]
    mlp = measured[3]
    assert mlp.operations == pytest.approx(2 * 3 * 64 * 96 * 2 * 3 * queries)
    assert mlp.rate == LIMITS.byte_products
    assert measured[1].read == 3 * 20 * 2 * 2 * 16 * 2 * 2, "keys and values of each layer, in float16"


def test_weights_are_exact_in_four_bits() -> None:
    build.load(Path(EngineConfig().cache_directory).expanduser())
    assert parts.four_bits(32, 64).bits() == 4


def test_a_followed_method_counts_its_time_and_still_works() -> None:
    clock = steps.Clock()
    owner = argparse.Namespace(forward=lambda x: torch.ones(300, 300) @ torch.ones(300, 300) * x)
    clock.follow(owner, "forward", "model")
    assert float(owner.forward(2)[0, 0]) == 600
    assert clock.seconds["model"] > 0
    assert clock.seconds["sampling"] == 0
