"""How log lines look, in the gateway and in the worker: text, or one JSON object a line. Knows no requests.

What a message names in its arguments, `_log.error("%(what)s failed", {"what": …})`, is a field of its line,
and so is what is in the record's `fields`.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from inference.interface.config import LogConfig

_encode = json.JSONEncoder(default=str).encode
_PLAIN = re.compile(r"[!#-<>-~]+")  # neither a space, nor what JSON or `name=value` begins with

_OURS = ("app", "inference", "tiller")
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_ESCAPED |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def set_up_logging(config: LogConfig, **fields: object) -> None:
    """From now on this process logs to stderr in this form. `fields` are in each of its lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(fields) if config.format == "json" else TextFormatter(fields))
    level = config.level.upper()
    # Others' debugging would drown ours, and nobody has looked what is in it.
    logging.basicConfig(handlers=[handler], level="INFO" if level == "DEBUG" else level, force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    for name in logging.root.manager.loggerDict:  # Some libraries bring a form of their own.
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.captureWarnings(True)
    # What no line shows need not be found out for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE field=value …`; a traceback comes after it, in lines that are indented."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage().strip()
        if not message.isprintable():
            message = message.translate(_ESCAPED)
        more = {**self._fields, **_more_fields(record)}
        fields = "".join(f" {name}={_show(value)}" for name, value in more.items())
        line = f"{_time(record)} {record.levelname} {record.name}: {message}{fields}"
        return "\n  ".join([line, *self._exception(record)])

    def _exception(self, record: logging.LogRecord) -> Iterator[str]:
        if record.exc_info:
            yield from self.formatException(record.exc_info).splitlines()


class JsonFormatter(logging.Formatter):
    """One object: `time`, `level`, `logger`, `message`, the fields, and `exception` with a traceback."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().strip(),
            **self._fields,
            **(record.args if isinstance(record.args, dict) else {}),
            **_more_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def _more_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Those that the message does not show."""
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    """In UTC, to the millisecond."""
    return f"{_second(int(record.created))}.{int(record.msecs):03}Z"


@lru_cache(maxsize=2)
def _second(since_1970: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_1970))


def _show(value: object) -> str:
    """As it is where that is plain, else as JSON."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return _encode(value)
