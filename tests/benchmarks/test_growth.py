"""The growth benchmark: its verdicts, its table, and which sequences it measures."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from benchmarks.growth.curves import Curve, Point, judge, per_token, slopes
from benchmarks.growth.measure import Plan, by_configurations, by_context, by_sequences, only
from benchmarks.growth.plots import draw
from benchmarks.growth.results import render, table, to_json
from benchmarks.peers.machine import describe_machine
from benchmarks.steering_cost import start, stop
from inference.engine import Engine
from tests.inference.conftest import build_driver, make_model

SIZES = (1, 2, 4, 8, 16, 32, 64)


def curve(cost: Callable[[int], float], exponent: int | None = 0, sizes: tuple[int, ...] = SIZES) -> Curve:
    points = tuple(Point(size, (cost(size),)) for size in sizes)
    return Curve("decode", "running sequences", exponent, points)


@pytest.mark.parametrize(
    ("cost", "exponent", "holds"),
    [
        (lambda n: 5.0, 0, True),
        (lambda n: 1 + 9 / n, 0, True),
        (lambda n: n**0.1, 0, True),
        (lambda n: n**0.2, 0, False),
        (lambda n: 3.0 * n, 0, False),
        (lambda n: 3.0 * n, 1, True),
        (lambda n: 100 + n, 1, True),
        (lambda n: n**1.2, 1, False),
        (lambda n: 1000 + n**2, 1, False),  # flat at first, quadratic at the end
    ],
)
def test_growth_is_judged_by_its_steepest_stretch(
    cost: Callable[[int], float], exponent: int, holds: bool
) -> None:
    assert judge(curve(cost, exponent, (*SIZES, 256, 1024))).holds is holds


def test_a_bump_between_neighbours_is_no_slope() -> None:
    bump = {1: 1.0, 2: 1.2, 4: 1.2, 8: 1.2, 16: 1.2, 32: 1.2, 64: 1.2}
    assert judge(curve(lambda n: bump[n])).holds


def test_slopes_span_at_least_a_factor_of_four() -> None:
    points = curve(lambda n: float(n**2), sizes=(0, 1, 3, 4, 15, 64)).points
    assert slopes(points) == [None, None, None, *(pytest.approx(2.0),) * 3]


def test_points_too_close_together_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="empty"):
        judge(curve(lambda n: 1.0, sizes=(1, 2, 3)))


def steered(*points: tuple[float, ...]) -> Curve:
    sizes = (0, 1, 16)
    rows = tuple(Point(size, seconds) for size, seconds in zip(sizes, points, strict=True))
    return Curve("steering", "configurations", None, rows)


@pytest.mark.parametrize(
    ("one", "many", "value"),
    [
        ((10.0, 10.0, 10.0, 10.0), (9.0, 9.0, 9.0, 9.0), 1.0),
        ((10.0, 10.0, 10.0, 10.0), (12.0, 12.0, 12.0, 12.0), 1.2),
        ((12.0, 12.0, 12.0, 12.0), (9.0, 9.0, 9.0, 9.0), 1.2),
        ((10.0, 10.0, 10.0, 10.0), (10.0, 10.0, 40.0, 90.0), 1.0),  # something else ran in two rounds
    ],
)
def test_a_curve_that_must_be_flat_is_judged_by_its_highest_point(
    one: tuple[float, ...], many: tuple[float, ...], value: float
) -> None:
    verdict = judge(steered((10.0, 10.0, 10.0, 10.0), one, many))
    assert verdict.value == pytest.approx(value)
    assert verdict.holds is (value <= 1.05)


def test_points_below_the_first_one_are_judged_too() -> None:
    assert judge(steered((10.0,), (9.0,), (8.0,))).value == pytest.approx(0.9)


def test_times_are_divided_by_their_tokens() -> None:
    points = per_token({8: [4.0, 2.0, 8.0], 1: [1.0]}, {1: 1, 8: 2})
    assert points == (Point(1, (1.0,)), Point(8, (2.0, 1.0, 4.0)))
    assert (points[1].median, points[1].cost) == (2.0, 1.5)


def test_a_table_has_a_row_for_each_size() -> None:
    assert table(curve(lambda n: 0.002 * n, exponent=1, sizes=(1, 2, 4))).splitlines() == [
        "| running sequences | ms per token, median | faster half | x first | log-log slope |",
        "|---|---|---|---|---|",
        "| 1 | 2.000 | 2.000 | 1.000 | – |",
        "| 2 | 4.000 | 4.000 | 2.000 | – |",
        "| 4 | 8.000 | 8.000 | 4.000 | 1.00 |",
    ]


def test_the_page_and_the_json_hold_the_verdicts(tmp_path: Path) -> None:
    curves = [curve(lambda n: 3.0 * n), steered((10.0,), (10.0,), (10.0,))]
    conditions = dict.fromkeys(
        ("model", "quantization", "dtype", "device", "threads", "torch", "commit"), "x"
    )
    conditions |= {"machine": describe_machine("model name\t: Slow One\n")}
    page = render(curves, conditions)
    assert "Slow One" in page
    assert "decode: steepest log-log slope 1.00, at most 0.15: VIOLATED" in page
    assert "steering: highest / first 1.00, at most 1.05: holds" in page
    kept = json.loads(to_json(curves, conditions))["curves"]
    assert [row["verdict"]["holds"] for row in kept] == [False, True]
    assert kept[0]["points"][1] == {"size": 2, "seconds": [6.0]}
    draw(curves, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 0


# The measurements, on a tiny model.

TINY = Plan(
    sequences=(1, 4),
    sequence_rounds=2,
    sequence_steps=3,
    prompt_tokens=8,
    contexts=(32, 128),
    context_rounds=2,
    context_steps=5,
    configurations=(1, 4),
    configuration_rounds=2,
)


@pytest.fixture
def engine() -> Engine:
    model: PreTrainedModel = make_model("llama", max_position_embeddings=4200)  # start requests 4096 tokens
    return build_driver(model, max_batch_tokens=48).engine


def measurements(curve: Curve) -> dict[int, int]:
    return {point.size: len(point.seconds) for point in curve.points}


def test_every_size_is_measured_as_often_as_planned(engine: Engine) -> None:
    assert measurements(by_sequences(engine, TINY)) == {1: 6, 4: 6}
    assert measurements(by_configurations(engine, TINY)) == {0: 2, 1: 2, 4: 2}
    decode, prefill = by_context(engine, TINY)
    assert measurements(decode) == {32: 10, 128: 10}
    assert measurements(prefill) == {32: 2, 128: 2}
    assert engine.is_idle


def test_whole_prompts_are_computed_and_continued_to_the_context(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    run = engine.runner.launch

    def recording(scheduled: list) -> list:
        [sequence] = scheduled
        steps.append((sequence.num_scheduled_tokens, sequence.num_tokens))
        return run(scheduled)

    monkeypatch.setattr(engine.runner, "launch", recording)
    by_context(engine, TINY)
    prompts = [(26, 26), (48, 122), (48, 122), (26, 122)]
    decodes = [(1, length + step) for length in (26, 122) for step in range(1, 6)]
    assert sorted(steps) == sorted(2 * (prompts + decodes))


def test_the_other_sequences_pause(engine: Engine) -> None:
    first, second, third = start(engine, 3, prompt_tokens=8)
    lengths = [sequence.num_tokens for sequence in (first, second, third)]
    with only(engine, [second]):
        engine.step()
        engine.step()
    assert [sequence.num_tokens for sequence in (first, second, third)] == [
        lengths[0],
        lengths[1] + 2,
        lengths[2],
    ]
    engine.check_integrity()
    engine.step()
    assert third.num_tokens == lengths[2] + 1
    stop(engine)
    assert engine.is_idle
