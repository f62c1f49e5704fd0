"""`tiller health`: checks whether the server with this configuration serves requests on this machine."""

import http.client
import ipaddress
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from app.commands.errors import FAILED, MISUSED, exit_on_errors, fail
from app.commands.output import AsJson, print_json
from app.configuration import SettingsError, default_config, read_settings
from app.settings import ServerSettings

_VERSION = re.compile(rb"\d+\.\d+\.\d+\S*")
_MAX_BYTES = 1000


def health(
    config: Annotated[
        Path | None, typer.Option(help="Configuration file (YAML), the same as for `tiller serve`.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the answer.")] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Check whether the server on this machine serves requests.

    Exit status: 0 if it does, 1 if it does not, 2 if the configuration is wrong.
    """
    with exit_on_errors(SettingsError, status=MISUSED):
        server = read_settings(default_config(config)).server
    fault = find_fault(server, timeout)
    if as_json:
        print_json({"serves": fault is None, "fault": fault})
        raise typer.Exit(FAILED if fault else 0)
    if fault:
        fail(fault)
    typer.echo("ok")


def find_fault(server: ServerSettings, timeout: float) -> str | None:
    """Why the server does not serve requests. None: it does."""
    if server.port == 0:
        return "server.port is 0, so the actual port is unknown"
    url = f"{_url(server)}/health"
    try:
        _get(url, timeout)
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # a URLError wraps what has happened
        return f"{url} cannot be reached: {getattr(reason, 'strerror', None) or str(reason) or repr(reason)}"
    return None


def is_tiller(server: ServerSettings, timeout: float) -> bool:
    """Whether a Tiller server listens there, even if it does not serve requests at the moment."""
    try:
        return bool(_VERSION.fullmatch(_get(f"{_url(server)}/version", timeout)))
    except (OSError, http.client.HTTPException):
        return False


def _get(url: str, timeout: float) -> bytes:
    """The begin of the answer. Raises OSError or HTTPException."""
    # No proxy: the server is on this machine. The certificate is for another host name than the one used
    # here, so it is not verified. That is safe, because the request contains no secret.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if url.startswith("https:"):
        handlers.append(urllib.request.HTTPSHandler(context=_unverified()))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=timeout) as answer:
            content: bytes = answer.read(_MAX_BYTES)
            return content
    except urllib.error.HTTPError as error:
        error.close()
        raise


def _url(server: ServerSettings) -> str:
    host = server.host
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
        host = f"[{host}]" if ":" in host else host
    return f"{'https' if server.tls else 'http'}://{host}:{server.port}"


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
