"""The access tokens that are good now: the configuration's, and those of a file that changes while we serve.

Only digests are kept. `tiller token` writes the file; the server reads it again as soon as it is another.
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
    """The file cannot be read or written."""


class AccessTokenFile:
    """A JSON list of access tokens. Where there is none, nobody has made any."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[AccessToken, ...]:
        """Raises AccessTokenFileError."""
        try:
            return _LIST.validate_json(self.path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise AccessTokenFileError(f"{self.path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise AccessTokenFileError(f"{self.path}: {where} {first['msg']}".replace(":  ", ": ")) from None

    def write(self, tokens: Iterable[AccessToken]) -> None:
        """Whole or not at all, and for this user's eyes only. Raises AccessTokenFileError."""
        content = _LIST.dump_json(tuple(tokens), indent=2, exclude_none=True) + b"\n"
        try:
            write_atomically(self.path, content)
        except OSError as error:
            raise AccessTokenFileError(f"{self.path}: cannot be written: {error.strerror}") from None

    def stamp(self) -> tuple[int, ...] | None:
        """Another one whenever the file was replaced; None: there is none."""
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # There may be one.
            return (error.errno or 0,)
        return status.st_mtime_ns, status.st_ino, status.st_size


class AccessTokens:
    """Finds the one that a caller shows.

    Where neither the configuration nor a file has any, the server is open to everybody. It never opens
    again by itself: not when the last token is revoked, nor when the file is gone.
    """

    def __init__(self, configured: Sequence[AccessToken], file: AccessTokenFile) -> None:
        """Raises AccessTokenFileError."""
        self._configured = configured
        self._file = file
        self._stamp = file.stamp()
        self._known = _by_digest(configured, file.read())
        self.guarded = bool(configured) or self._stamp is not None

    def find(self, token: str) -> AccessToken | None:
        """The time that it takes tells nothing of other tokens: only digests are compared."""
        return self._known.get(hashlib.sha256(token.encode("latin-1")).hexdigest())

    def refresh(self) -> None:
        """Sees what was made or revoked since the last time. A file that cannot be read changes nothing."""
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self.guarded = True
        try:
            self._known = _by_digest(self._configured, self._file.read())
        except AccessTokenFileError as error:
            _log.error("the access tokens stay as they were: %s", error)


def load_access_tokens(settings: Settings) -> AccessTokens:
    """Raises AccessTokenFileError."""
    return AccessTokens(settings.auth.tokens, AccessTokenFile(settings.token_file))


def _by_digest(*tokens: Iterable[AccessToken]) -> dict[str, AccessToken]:
    return {token.sha256: token for some in tokens for token in some}
