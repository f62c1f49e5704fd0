"""The certificate and key of a server that speaks HTTPS. Knows no server."""

import os
import ssl
from pathlib import Path

from app.errors import StartError
from app.settings import TlsSettings


def load_tls(settings: TlsSettings) -> ssl.SSLContext:
    """Raises StartError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, file in settings:
        if not os.access(Path(file).expanduser(), os.R_OK):
            raise StartError(f"server.tls.{name}: {file} cannot be read")
    try:
        # Without a password it would ask for one at the terminal.
        certificate, key = (Path(file).expanduser() for _, file in settings)
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        reason = str(getattr(error, "reason", None) or "they are not in PEM format, or the key is encrypted")
        told = reason.replace("_", " ").lower()
        raise StartError(f"server.tls: certificate and key cannot be used: {told}") from None
    return context
