"""Formats log lines, in the gateway and in the worker: text, or one JSON object per line. Knows no requests.

The items of a record's `fields` attribute are added to its line. A message with named arguments, such as
`_log.error("%(what)s failed", {"what": …})`, has these arguments as JSON fields too.
"""

import json
import logging
import re
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from inference.interface.config import LogConfig
from inference.interface.progress import Seldom

_encode = json.JSONEncoder(default=str).encode
_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII, but no space, `"` or `=`

_OWN_LOGGERS = ("app", "inference", "tiller")
_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_ESCAPED |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def set_up_logging(config: LogConfig, **fields: object) -> None:
    """Makes this process log to stderr as `config` says. Adds `fields` to every line."""
    handler = _make_handler(config)
    handler.setFormatter(JsonFormatter(fields) if config.format == "json" else TextFormatter(fields))
    level = config.level.upper()
    # No debug lines from libraries: they would hide our own, and nobody has checked what they contain.
    logging.basicConfig(handlers=[handler], level="INFO" if level == "DEBUG" else level, force=True)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)
    for name in logging.root.manager.loggerDict:  # Some libraries set handlers and levels of their own.
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        if logger.level < logging.INFO and name not in _OWN_LOGGERS:
            logger.setLevel(logging.NOTSET)
    logging.captureWarnings(True)
    # No line shows these, so logging need not look them up for each record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _make_handler(config: LogConfig) -> logging.Handler:
    if config.bars:
        from inference.interface.bars import BarHandler  # rich takes time to import

        return BarHandler()
    handler = logging.StreamHandler()
    handler.addFilter(Seldom())
    return handler


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE field=value …`, followed by the indented lines of a traceback."""

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
    """One JSON object: `time`, `level`, `logger`, `message`, the fields, and a traceback as `exception`."""

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
    """The fields that are not part of the message."""
    return getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    """The record's time in UTC, with milliseconds."""
    return f"{_second(int(record.created))}.{int(record.msecs):03}Z"


@lru_cache(maxsize=2)
def _second(since_1970: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since_1970))


def _show(value: object) -> str:
    """Formats a field's value: numbers and plain words without quotes, everything else as JSON."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return _encode(value)
