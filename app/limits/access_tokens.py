"""Valid access tokens, from the configuration and from a file that may change while the server runs.

Stores only SHA-256 digests. `tiller token` writes the file; the server reads it again after each change.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from app.errors import StartError
from app.settings import AccessToken, Settings
from inference.interface.files import write_atomically

_log = logging.getLogger(__name__)
_LIST = TypeAdapter(tuple[AccessToken, ...])


class AccessTokenFileError(StartError):
    """The access token file cannot be read or written."""


class AccessTokenFile:
    """A JSON list of access tokens. A missing file counts as an empty list."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[AccessToken, ...]:
        """Raises AccessTokenFileError if the file exists but is unreadable or invalid."""
        try:
            return _LIST.validate_json(self.path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise AccessTokenFileError(f"{self.path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            reason = f"{where} {first['msg'].removeprefix('Value error, ')}".strip()
            raise AccessTokenFileError(f"{self.path}: {reason}") from None

    def write(self, tokens: Iterable[AccessToken]) -> None:
        """Replaces the file atomically. Only its owner can read it. Raises AccessTokenFileError."""
        content = _LIST.dump_json(tuple(tokens), indent=2, exclude_none=True) + b"\n"
        try:
            write_atomically(self.path, content)
        except OSError as error:
            raise AccessTokenFileError(f"{self.path}: cannot be written: {error.strerror}") from None

    def stamp(self) -> tuple[int, ...] | None:
        """A value that changes whenever the file is replaced. None if there is no file."""
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # the file may exist
            return (error.errno or 0,)
        return status.st_mtime_ns, status.st_ino, status.st_size


class AccessTokens:
    """Looks up the access token that a caller sends.

    Without access tokens in the configuration and without a file, the server accepts everybody. A running
    server that requires access tokens keeps requiring them, even if all are revoked or the file is deleted.
    """

    def __init__(self, configured: Sequence[AccessToken], file: AccessTokenFile) -> None:
        """Reads the file. Raises AccessTokenFileError."""
        self._configured = configured
        self._file = file
        self._stamp = file.stamp()
        self._known = _by_digest(configured, file.read())
        self.required = bool(configured) or self._stamp is not None

    def find(self, token: str) -> AccessToken | None:
        """Compares only digests, so that the time it takes reveals nothing about the valid access tokens."""
        return self._known.get(hashlib.sha256(token.encode("latin-1")).hexdigest())

    def refresh(self) -> None:
        """Reads the file again if it has changed. If that fails, the access tokens stay the same."""
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self.required = True
        try:
            self._known = _by_digest(self._configured, self._file.read())
        except AccessTokenFileError as error:
            _log.error("the access tokens are unchanged: %s", error)


def load_access_tokens(settings: Settings) -> AccessTokens:
    """Raises AccessTokenFileError if the file exists but is unreadable or invalid."""
    return AccessTokens(settings.auth.tokens, AccessTokenFile(settings.token_file))


def _by_digest(*tokens: Iterable[AccessToken]) -> dict[str, AccessToken]:
    return {token.sha256: token for group in tokens for token in group}
