"""Checks what a server needs to be reached: port, addresses, access tokens, certificate, open files."""

import stat
from datetime import UTC, datetime

from app import server
from app.commands.doctor.finding import Finding, ok, problem, warning
from app.commands.health import is_tiller
from app.configuration import SettingsError, refuse_open_network
from app.errors import StartError
from app.http.tls import load_tls
from app.limits.access_tokens import AccessTokenFile, AccessTokenFileError
from app.settings import Settings

_ANSWER_SECONDS = 3.0


def check_port(settings: Settings) -> Finding:
    """Whether a server can listen on its port. A Tiller server that does so already is fine."""
    where = f"{settings.server.host}:{settings.server.port}"
    try:
        server.bind(settings.server).close()
    except StartError as error:
        if is_tiller(settings.server, _ANSWER_SECONDS):
            return ok(f"a Tiller server runs at {where} already")
        reason = str(error)
        if "in use" in reason:
            mend = "stop the other program (`ss -ltnp` names it), or set server.port to another port"
        elif "Permission" in reason:
            mend = "set server.port to a port from 1024 on"
        else:
            mend = "set server.host to an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        return problem(reason, mend)
    return ok(f"{where} is free")


def check_network(settings: Settings) -> Finding:
    """Whether strangers could use the server."""
    try:
        refuse_open_network(settings)
    except SettingsError as error:
        what, _, mend = str(error).partition(": ")
        return problem(what, mend)
    host = settings.server.host
    if not settings.has_access_tokens:
        return ok(f"{host}: everybody on this machine may use the server")
    if settings.server.tls is None and not host.startswith(("127.", "::1", "localhost")):
        return warning(
            f"{host} without TLS: access tokens cross the network unencrypted",
            "set server.tls, or put a proxy with TLS in front of the server",
        )
    return ok(f"{host}: callers need an access token")


def check_tokens(settings: Settings) -> Finding:
    """Whether the server can read its access tokens, only its user can, and they are valid."""
    file = AccessTokenFile(settings.token_file)
    try:
        stored = file.read()
    except AccessTokenFileError as error:
        return problem(
            str(error), f"run as the user that the server runs as, or mend {file.path}, or remove it"
        )
    if file.path.exists() and stat.S_IMODE(file.path.stat().st_mode) & 0o077:
        return warning(f"{file.path}: other users can read or write it", f"chmod 600 {file.path}")
    tokens = (*settings.auth.tokens, *stored)
    now = datetime.now(UTC)
    expired = [token.name for token in tokens if token.expires and token.expires < now]
    if expired:
        names = ", ".join(expired)
        return warning(f"expired: {names}", "tiller token new NAME, and tiller token revoke NAME")
    return ok(f"access tokens: {len(tokens)}" if tokens else "no access tokens, so no caller needs one")


def check_certificate(settings: Settings) -> Finding:
    """Whether the certificate and its key can be used together."""
    if settings.server.tls is None:
        return ok("none: the server speaks plain HTTP")
    try:
        load_tls(settings.server.tls)
    except StartError as error:
        return problem(str(error), "name two files in PEM format: the certificate chain, and its plain key")
    return ok(settings.server.tls.certificate)


def check_open_files(settings: Settings) -> Finding:
    """Whether the system allows one open file for each connection."""
    wanted = settings.server.max_connections
    mend = "raise the hard limit (LimitNOFILE=, --ulimit nofile), or lower the setting"
    try:
        allowed = server.allow_connections(settings.server)
    except StartError as error:
        return problem(str(error), mend)
    if allowed < wanted:
        return warning(f"enough for {allowed} connections, not for server.max_connections, {wanted}", mend)
    return ok(f"enough for {wanted} connections")
