"""Progress of long work: few lines in a log, and a bar on a terminal that leaves nothing behind."""

import io
import logging
import re
import time
from collections.abc import Callable, Iterator

import pytest

from inference.interface import progress as module
from inference.interface.bars import BarHandler
from inference.interface.config import LogConfig
from inference.interface.logs import JsonFormatter, set_up_logging
from inference.interface.progress import Progress, Seldom, follow, report

LOGGER = logging.getLogger("tiller.progress")


@pytest.fixture
def attach(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[logging.Handler], None]]:
    """`attach(handler)` sends the records to this handler until the end of the test."""
    caplog.set_level("INFO", "tiller.progress")
    handlers: list[logging.Handler] = []

    def add(handler: logging.Handler) -> None:
        handlers.append(handler)
        LOGGER.addHandler(handler)

    yield add
    for handler in handlers:
        LOGGER.removeHandler(handler)


@pytest.fixture
def lines(attach: Callable[[logging.Handler], None]) -> Callable[[], list[str]]:
    """The lines of a log so far."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(Seldom())
    attach(handler)
    return lambda: stream.getvalue().splitlines()


@pytest.fixture
def screen(attach: Callable[[logging.Handler], None], monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a handler with bars writes to a terminal of 60 columns."""
    stream = io.StringIO()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    handler = BarHandler()
    handler.setStream(stream)
    attach(handler)
    return stream


def test_a_log_has_a_line_about_each_work_in_five_seconds(lines: Callable[[], list[str]]) -> None:
    for tenth in range(121):
        report(Progress("loading x", tenth / 10, (tenth, 120)), "tensors")
        report(Progress("compiling", tenth / 10))
    report(Progress("compiling", 12.1, has_ended=True))
    assert lines() == [
        "loading x: 50 of 120 tensors",
        "compiling: 5 seconds so far",
        "loading x: 100 of 120 tensors",
        "compiling: 10 seconds so far",
    ]


def test_a_work_that_begins_again_is_silent_for_five_seconds_again(lines: Callable[[], list[str]]) -> None:
    for _ in range(2):
        for seconds in (0.0, 5.0, 6.0):
            report(Progress("compiling", seconds))
        report(Progress("compiling", 7.0, has_ended=True))
    assert lines() == ["compiling: 5 seconds so far"] * 2


def test_json_has_the_numbers_as_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tiller.progress")
    report(Progress("downloading x", 1.0, (10, 40)), "bytes")
    line = JsonFormatter({}).format(caplog.records[0])
    assert '"message": "downloading x: 10 of 40 bytes"' in line
    assert '"what": "downloading x", "done": 10, "total": 40' in line


def test_work_is_followed_until_it_ends(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "tiller.progress")
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    done = []

    def work() -> None:
        with follow("counting", lambda: (len(done), 100), "numbers"):
            while len(done) < 30:
                done.append(None)
                time.sleep(0.01)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    seen = [record.progress for record in caplog.records]
    assert seen[-1].has_ended
    amounts = [progress.amount[0] for progress in seen[:-1]]
    assert amounts == sorted(amounts)
    assert amounts[-1] > amounts[0]
    time.sleep(0.05)
    assert len(caplog.records) == len(seen)


def frames(screen: io.StringIO) -> list[str]:
    return screen.getvalue().split("\r\x1b[K")


def test_a_bar_is_drawn_in_one_line(screen: io.StringIO) -> None:
    report(Progress("loading x", 1.0, (1, 4)), "tensors")
    report(Progress("loading x", 2.0, (4, 4)), "tensors")
    report(Progress("compiling something with a name that is far too long for this terminal", 1.0))
    empty, quarter, whole, unknown = frames(screen)
    assert empty == ""
    assert re.fullmatch(r"loading x ━+[╸╺]?━* +25%", quarter)
    assert re.fullmatch(r"loading x ━+ +100%", whole)
    assert unknown.startswith("compiling something")
    assert unknown.endswith(" 1 s")
    for frame in frames(screen):
        assert len(frame) <= 60
        assert "\n" not in frame


def test_log_lines_go_above_the_bar_and_an_ended_bar_is_removed(screen: io.StringIO) -> None:
    report(Progress("loading x", 1.0, (1, 4)), "tensors")
    LOGGER.info("a line")
    report(Progress("loading x", 2.0, (2, 4)), "tensors")
    report(Progress("loading x", 3.0, has_ended=True))
    LOGGER.info("another line")
    _, first, line, second, after = frames(screen)
    assert "25%" in first
    assert line == "a line\n"
    assert "50%" in second
    assert after == "another line\n"
    assert "\x1b[?25l" not in screen.getvalue(), "a hidden cursor would stay hidden if the process is killed"


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {
        logger: logger.level for logger in (root, *map(logging.getLogger, ("app", "inference", "tiller")))
    }
    yield
    root.handlers[:] = handlers
    for logger, level in levels.items():
        logger.setLevel(level)
    logging.captureWarnings(False)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = True


@pytest.mark.usefixtures("_restored_logging")
@pytest.mark.parametrize("bars", [True, False])
def test_only_a_process_that_may_draw_bars_does(bars: bool) -> None:
    set_up_logging(LogConfig(bars=bars))
    [handler] = [handler for handler in logging.getLogger().handlers if type(handler).__module__ != "_pytest"]
    assert isinstance(handler, BarHandler) == bars


def test_of_two_works_the_one_that_has_begun_later_is_shown(screen: io.StringIO) -> None:
    report(Progress("compiling", 5.0))
    report(Progress("downloading", 1.0))
    report(Progress("compiling", 5.2))
    assert "downloading" in screen.getvalue().rpartition("\r")[2]
    report(Progress("compiling", 5.4, has_ended=True))
    assert "downloading" in screen.getvalue().rpartition("\r")[2]
    report(Progress("compiling", 5.5))
    report(Progress("downloading", 1.4, has_ended=True))
    report(Progress("compiling", 5.7))
    assert "compiling" in screen.getvalue().rpartition("\r")[2]
