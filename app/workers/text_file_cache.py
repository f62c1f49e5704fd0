"""Keeps the tokenizer and chat template of models on other hosts. Knows no sockets."""

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from anyio import to_thread

from app.errors import StartError
from inference.interface import text_files
from inference.interface.files import write_atomically


class TextFileCache:
    def __init__(self, cache: Path) -> None:
        """`cache`: the gateway's cache directory."""
        self._root = cache / "text"

    async def get(self, files: Mapping[str, str], fetch: Callable[[str], Awaitable[bytes]]) -> Path:
        """The directory with these files: name -> SHA-256. `fetch`: gets the content with this SHA-256.

        Raises StartError if a file has another content or a name that no such file has.
        """
        if unknown := set(files) - set(text_files.NAMES):
            raise StartError(f"the worker offers files that are no part of a tokenizer: {sorted(unknown)}")
        target = self._root / text_files.digest_of(files)
        if await to_thread.run_sync(text_files.hash_files, target) != files:
            contents = {name: await _checked(name, sha256, fetch) for name, sha256 in files.items()}
            await to_thread.run_sync(self._store, target, contents)
        return target

    def _store(self, target: Path, contents: Mapping[str, bytes]) -> None:
        """Writes all files or none. Another gateway may store the same at the same time."""
        self._root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=self._root))
        for name, content in contents.items():
            write_atomically(scratch / name, content)
        shutil.rmtree(target, ignore_errors=True)
        try:
            scratch.rename(target)
        except OSError:
            shutil.rmtree(scratch)
            if not target.is_dir():
                raise


async def _checked(name: str, sha256: str, fetch: Callable[[str], Awaitable[bytes]]) -> bytes:
    content = await fetch(sha256)
    if text_files.sha256_of(content) != sha256:
        raise StartError(f"the worker sends another content of {name} than it has announced")
    return content
