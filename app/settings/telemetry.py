"""The settings of logs and traces."""

import re
from typing import Annotated

from pydantic import AfterValidator

from app.settings.section import Section
from inference.interface.config import LogFormat, LogLevel


def _check_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
        raise ValueError("must be a URL such as 'http://localhost:4318/v1/traces'")
    return url


class LogSettings(Section):
    """The log of the gateway and its workers, which goes to stderr."""

    format: LogFormat = "text"
    """ "text": lines for people. "json": one JSON object per line."""
    level: LogLevel = "info"
    """The lowest level that is logged."""
    texts: bool = False
    """True: log the messages and answers of chats. Access tokens are never logged."""


class TracingSettings(Section):
    """OpenTelemetry traces. Its own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT, turn them on as well."""

    endpoint: Annotated[str, AfterValidator(_check_url)] | None = None
    """URL that receives the spans, in OTLP over HTTP, such as `http://localhost:4318/v1/traces`. None: only
    OpenTelemetry's variables decide."""
