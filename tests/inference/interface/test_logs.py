"""Tests the format of log lines, as text and as JSON. Each record is one event that no value can break up."""

import json
import logging
import re
import subprocess
import sys

import pytest

from inference.interface.logs import JsonFormatter, TextFormatter


def record(
    message: str, *args: object, fields: dict[str, object] | None = None, **more: object
) -> logging.LogRecord:
    made = logging.LogRecord("tiller.x", logging.INFO, "file.py", 1, message, args, None)
    made.created, made.msecs = 1763914470.25, 250.0
    made.__dict__.update(more)
    if fields is not None:
        made.fields = fields
    return made


def text(*args: object, fields: dict[str, object] | None = None, **more: object) -> str:
    return TextFormatter({}).format(record(*args, fields=fields, **more))  # type: ignore[arg-type]


def parsed(*args: object, fields: dict[str, object] | None = None, **more: object) -> dict[str, object]:
    return json.loads(JsonFormatter({}).format(record(*args, fields=fields, **more)))  # type: ignore[arg-type]


def failure(message: str) -> object:
    try:
        raise ValueError(message)
    except ValueError:
        return sys.exc_info()


def test_a_line_of_text() -> None:
    assert text("%d of %s", 3, "x") == "2025-11-23T16:14:30.250Z INFO tiller.x: 3 of x"


def test_a_line_of_json() -> None:
    assert parsed("%d of %s", 3, "x") == {
        "time": "2025-11-23T16:14:30.250Z",
        "level": "info",
        "logger": "tiller.x",
        "message": "3 of x",
    }


def test_fields_follow_the_message() -> None:
    fields = {"a": 1, "b": 0.1234567, "c": "plain", "d": "two words", "e": ["x"], "f": True}
    assert text("m", fields=fields).endswith('m a=1 b=0.123457 c=plain d="two words" e=["x"] f=true')
    assert parsed("m", fields=fields) | fields == parsed("m", fields=fields)


def test_named_arguments_of_a_message_are_json_fields() -> None:
    assert text("%(what)s failed", {"what": "it"}, fields={"a": 1}).endswith("x: it failed a=1")
    line = parsed("%(what)s failed", {"what": "it"}, fields={"a": 1})
    assert (line["message"], line["what"], line["a"]) == ("it failed", "it", 1)


def test_fields_of_the_process_are_in_every_line() -> None:
    assert TextFormatter({"worker": 2}).format(record("m")).endswith("m worker=2")
    assert json.loads(JsonFormatter({"worker": 2}).format(record("m")))["worker"] == 2


@pytest.mark.parametrize(
    "evil", ["a\nINFO b", "a\r\nb", "a\x1b[2Jb", "a\x85b", "a\u2028b", "\x00", 'a" x="b', "\ud800"]
)
def test_no_value_can_forge_a_line_or_move_the_cursor(evil: str) -> None:
    for line in (text("m %s", evil), text("m", fields={"field": evil})):
        assert line.encode("utf-8", "backslashreplace").decode().isprintable(), line
    line = JsonFormatter({}).format(record("m %s", evil, fields={"field": evil}))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["field"] == evil


def test_a_traceback_is_indented_in_text_and_one_string_in_json() -> None:
    lines = text("m", exc_info=failure("no\nWARNING forged: line")).splitlines()
    assert re.fullmatch(r"\S+Z INFO tiller\.x: m", lines[0])
    assert len(lines) > 3
    assert all(line.startswith("  ") for line in lines[1:])
    assert "WARNING forged" in lines[-1]
    assert "ValueError: no\nWARNING" in str(parsed("m", exc_info=failure("no\nWARNING"))["exception"])


SCRIPT = """
import logging, warnings
from inference.interface.config import LogConfig
from inference.interface.logs import set_up_logging
logging.getLogger("others").setLevel("DEBUG")  # as torch.distributed does with one of its own
set_up_logging(LogConfig({format!r}, {level!r}), worker=1)
warnings.warn("old")
for name in ("app.x", "inference.x", "tiller.x", "others"):
    for level in ("debug", "info", "warning"):
        getattr(logging.getLogger(name), level)(level)
"""


def logged(form: str, level: str) -> list[str]:
    script = SCRIPT.format(format=form, level=level)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_level_debug_applies_to_our_loggers_only() -> None:
    lines = [json.loads(line) for line in logged("json", "debug")]
    assert all(line["worker"] == 1 for line in lines)
    shown = [(line["logger"], line["message"]) for line in lines if line["logger"] != "py.warnings"]
    assert len(lines) == len(shown) + 1
    ours = [
        (name, level)
        for name in ("app.x", "inference.x", "tiller.x")
        for level in ("debug", "info", "warning")
    ]
    assert shown == [*ours, ("others", "info"), ("others", "warning")]


def test_lines_below_the_level_are_left_out() -> None:
    assert [line.split()[1] for line in logged("text", "warning")[1:] if "Z WARNING" in line] == [
        "WARNING"
    ] * 4
    assert logged("text", "error") == []
