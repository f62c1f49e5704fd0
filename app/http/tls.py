"""Loads the server's TLS certificate and key. Knows no server."""

import os
import ssl
from pathlib import Path

from app.errors import StartError
from app.settings import TlsSettings


def load_tls(settings: TlsSettings) -> ssl.SSLContext:
    """Raises StartError if a file cannot be read, or if certificate and key cannot be used together."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, file in settings:
        if not os.access(Path(file).expanduser(), os.R_OK):
            raise StartError(f"server.tls.{name}: {file} cannot be read")
    try:
        # Without `password`, OpenSSL would prompt for one at the terminal if the key is encrypted.
        certificate, key = (Path(file).expanduser() for _, file in settings)
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = str(getattr(error, "reason", None) or "they are not in PEM format, or the key is encrypted")
        reason = reason.replace("_", " ").lower()
        raise StartError(f"server.tls: certificate and key cannot be used: {reason}") from None
    return context
