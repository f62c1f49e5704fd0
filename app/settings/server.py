"""The settings of the HTTP server."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from app.settings.section import PositiveFloat, PositiveInt, Section


def _check_origin(origin: str) -> str:
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
        raise ValueError("must be '*' or an origin such as 'https://example.org'")
    return origin


Origin = Annotated[str, AfterValidator(_check_origin)]


class TlsSettings(Section):
    """Two files in PEM format. The key must not be encrypted."""

    certificate: str
    """Path of the server's certificate, followed by the intermediate certificates."""
    key: str
    """Path of the certificate's private key."""


class ServerSettings(Section):
    """The HTTP server and its connections."""

    host: str = "127.0.0.1"
    """Address or host name to listen on. Without access tokens, it must be a loopback address."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port. 0: any free port."""
    max_body_bytes: PositiveInt = 8 * 2**20
    """Maximum size of a request's body, in bytes."""
    max_header_bytes: PositiveInt = 32 * 2**10
    """Maximum size of a request's target and headers together, in bytes."""
    max_headers: PositiveInt = 100
    """Maximum number of headers of a request."""
    header_seconds: PositiveFloat = 10.0
    """Seconds for a request's headers to arrive, and seconds that a new connection may send nothing."""
    body_seconds: PositiveFloat = 60.0
    """Seconds for a request's body to arrive, after its headers."""
    keepalive_seconds: PositiveInt = 75
    """Seconds that a connection may be idle between requests. Clients and proxies should close idle ones
    earlier: a request is lost if the server closes its connection while the request is on its way."""
    max_connections: PositiveInt = 2048
    """Maximum number of concurrent connections. Each running or waiting request needs one. The default is
    lowered to what the system's limit of open files allows."""
    drain_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Seconds that running requests may go on after the server gets a signal to stop."""
    stall_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60.0
    """Seconds after which the server cuts a connection whose client accepts no data. Needs Linux."""
    stream_open_seconds: PositiveFloat = 10.0
    """A streamed answer begins after this many seconds, even if there is no token yet. So no proxy cuts the
    request. Until then, a failure has its own HTTP status."""
    ping_seconds: Annotated[float, Field(ge=1)] | None = None
    """Seconds between two comment lines in a streamed answer, for proxies that cut silent connections. None:
    no comment lines. Aleph Alpha's Python client fails when it reads one."""
    cors_origins: tuple[Origin, ...] = ()
    """Origins whose pages may call from a browser, such as `https://example.org`. `*`: all origins."""
    tls: TlsSettings | None = None
    """Certificate and key for HTTPS. None: plain HTTP."""
