"""Ctrl-C is held back during an operation."""

import signal
import threading
from types import FrameType

import pytest

from inference.interrupts import uninterrupted


@pytest.fixture(autouse=True)
def handler(ctrl_c: None) -> None:
    """SIGINT raises KeyboardInterrupt, unless a test installs another handler."""


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_takes_effect_at_the_end_of_the_block() -> None:
    done = []

    def act() -> None:
        with uninterrupted():
            interrupt()
            interrupt()
            done.append("block")
        done.append("after the block")

    with pytest.raises(KeyboardInterrupt):
        act()
    assert done == ["block"]


def test_the_handler_of_before_gets_the_signal_once_and_is_back_in_place() -> None:
    got: list[int] = []

    def own(number: int, frame: FrameType | None) -> None:
        got.append(number)

    signal.signal(signal.SIGINT, own)
    with uninterrupted(), uninterrupted():
        interrupt()
        assert got == []
    assert got == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is own


def test_an_error_of_the_block_is_not_lost() -> None:
    def act() -> None:
        with uninterrupted():
            interrupt()
            raise ValueError("of the block")

    with pytest.raises(KeyboardInterrupt) as caught:
        act()
    assert isinstance(caught.value.__context__, ValueError)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        interrupt()


def test_other_threads_leave_the_handler_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def look() -> None:
        with uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]
