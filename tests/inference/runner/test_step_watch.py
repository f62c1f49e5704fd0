"""Tests which steps count as hanging. The test sends the beats; only the activity of threads is real."""

import hashlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FrameType

import pytest

from inference.runner import step_watch
from inference.runner.step_watch import StepWatch

LIMIT = 300.0


def beats(watch: StepWatch, seconds: float) -> tuple[float, str | None]:
    """Beats for `seconds`, or until a fault. Returns the time of the last beat and the fault."""
    for number in range(1, int(2 * seconds) + 1):
        if fault := watch.beat(0.5):
            return number / 2, fault
    return seconds, None


def run_step(watch: StepWatch, tokens: int, seconds: float) -> tuple[float, str | None]:
    """One turn of the loop, with a step that lasts `seconds`."""
    watch.turn()
    with watch.computing(tokens):
        return beats(watch, seconds)


@pytest.fixture
def watch() -> StepWatch:
    """For an engine on another device, for which the thread may wait."""
    return StepWatch(LIMIT, computes_here=False)


def test_only_the_configured_limit_applies_to_the_first_steps(watch: StepWatch) -> None:
    assert run_step(watch, 8, 250) == (250, None)
    assert run_step(watch, 9, 1000) == (300.5, "a step has not finished within 300 seconds")


def test_a_step_may_last_many_times_as_long_as_the_longest_before(watch: StepWatch) -> None:
    run_step(watch, 512, 2.5)  # 2 seconds count: the first beat ends the turn before
    run_step(watch, 1, 0.5)
    assert run_step(watch, 512, 39) == (39, None)
    watch = StepWatch(LIMIT, computes_here=False)
    run_step(watch, 512, 2.5)
    assert run_step(watch, 512, 100) == (40.5, "a step has not finished within 40 seconds")


def test_a_step_after_short_ones_has_time_to_compile_something(watch: StepWatch) -> None:
    for _ in range(5):
        run_step(watch, 512, 0.5)
    assert run_step(watch, 100, 100) == (20.5, "a step has not finished within 20 seconds")


def test_only_the_configured_limit_applies_to_a_step_larger_than_all_before(watch: StepWatch) -> None:
    for _ in range(5):
        run_step(watch, 1, 0.5)
    assert run_step(watch, 512, 200) == (200, None)


def test_the_configured_limit_applies_to_every_step(watch: StepWatch) -> None:
    watch = StepWatch(3, computes_here=False)
    run_step(watch, 512, 2)
    assert run_step(watch, 1, 100) == (3.5, "a step has not finished within 3 seconds")
    watch.turn()
    assert beats(watch, 100) == (3.5, "a step has not finished within 3 seconds")


def interrupted_beat(watch: StepWatch, moment: int, act: Callable[[], None]) -> tuple[bool, str | None]:
    """A beat during which another thread acts, before the beat's instruction number `moment`.

    Returns whether the beat has that many instructions, and the fault.
    """
    remaining = itertools.count(moment, -1)

    def trace(frame: FrameType, event: str, _: object) -> object:
        frame.f_trace_opcodes = frame.f_code.co_filename == step_watch.__file__
        if event == "opcode" and next(remaining) == 0:
            act()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 needs it before settrace, in any frame
    sys.settrace(trace)
    try:
        fault = watch.beat(0.5)
    finally:
        sys.settrace(before)
    return next(remaining) < 0, fault


@pytest.mark.parametrize("next_tokens", [None, 0, 1])
def test_a_large_step_that_ends_during_a_beat_does_not_hang(next_tokens: int | None) -> None:
    """The next turn does not begin during the beat (None), or begins without a step (0), or with a step."""
    for moment in itertools.count():
        watch = StepWatch(LIMIT, computes_here=False)
        run_step(watch, 8, 0.5)
        watch.turn()
        with ExitStack() as step:
            step.enter_context(watch.computing(512))
            assert beats(watch, 25)[1] is None, "only the configured limit applies to it"

            def end_step(watch: StepWatch = watch, step: ExitStack = step) -> None:
                step.close()
                if next_tokens is not None:
                    watch.turn()
                if next_tokens:
                    step.enter_context(watch.computing(next_tokens))

            was_interrupted, fault = interrupted_beat(watch, moment, end_step)
            assert fault is None
        if not was_interrupted:
            break
    assert moment > 20


def test_a_loop_between_steps_may_wait_for_the_disk(watch: StepWatch) -> None:
    for _ in range(5):
        run_step(watch, 512, 0.5)
    watch.turn()
    with watch.computing(1):
        pass
    assert beats(watch, 250) == (250, None)


def beat_slowly(watch: StepWatch, ended: threading.Event) -> Iterator[str | None]:
    while not ended.wait(0.02):
        yield watch.beat(0.5)


def test_a_step_on_the_cpu_that_only_waits_hangs() -> None:
    """This thread waits for another one, which beats."""
    watch = StepWatch(LIMIT, computes_here=True)
    watch.turn()
    with ThreadPoolExecutor(1) as pool, watch.computing(1):
        fault = pool.submit(lambda: next(filter(None, beat_slowly(watch, threading.Event())))).result()
    assert fault == "a step has computed nothing for 3.5 seconds"


def test_a_step_that_computes_or_waits_for_the_disk_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, ended = StepWatch(LIMIT, computes_here=True), threading.Event()
    watch.turn()
    with ThreadPoolExecutor(1) as pool, watch.computing(1):
        beating = pool.submit(lambda: list(beat_slowly(watch, ended)))
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            hashlib.sha256(b"x" * 2**20)
        monkeypatch.setattr(step_watch._Activity, "_state", lambda _: "D")
        time.sleep(0.3)
        ended.set()
    faults = beating.result()
    assert len(faults) > 8
    assert set(faults) == {None}
