"""A server that speaks the part of the Hugging Face hub's API that downloads need."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@dataclass
class Hub:
    """One repository, `org/model`, whose files lie in a directory for each branch."""

    root: Path
    url: str = ""
    token: str | None = None
    """If set, requests need this access token."""
    gated: bool = False
    cut_after: int | None = None
    """If set, the connection breaks after so many bytes of a file of weights."""
    cuts: int = 1
    """How many more times it breaks."""
    status: int | None = None
    """If set, every request gets this status."""
    downloads: list[str] = field(default_factory=list)

    def files(self, revision: str) -> Path | None:
        branches = [branch for branch, commit in COMMITS.items() if revision in (branch, commit)]
        return self.root / branches[0] if branches and (self.root / branches[0]).is_dir() else None


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        if self.hub.status is not None:
            return self._send(self.hub.status, b"{}")
        if repo not in ("org/model", "cdn/model"):
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if repo == "org/model" and self.hub.token not in (None, self._given_token()):
            code = "GatedRepo" if self.hub.gated else "RepoNotFound"
            return self._send(403 if self.hub.gated else 401, b"{}", {"X-Error-Code": code})
        kind, revision = (parts[4], parts[5]) if api else (parts[2], parts[3])
        files = self.hub.files(revision)
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if api:
            return self._list(files, kind)
        return self._file(files, "/".join(parts[4:]), is_cdn=repo == "cdn/model")

    def _given_token(self) -> str | None:
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if scheme == "Bearer" else None

    def _list(self, files: Path, kind: str) -> None:
        names = sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())
        if kind == "revision":
            sha = COMMITS[files.name]
            content: object = {"id": "org/model", "sha": sha, "siblings": [{"rfilename": n} for n in names]}
        else:
            content = [self._entry(files / name, name) for name in names]
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _entry(self, file: Path, name: str) -> dict[str, object]:
        size, digest = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": digest[:40]}
        return (
            entry | {"lfs": {"oid": digest, "size": size, "pointerSize": 130}} if _is_large(name) else entry
        )

    def _file(self, files: Path, name: str, is_cdn: bool) -> None:
        """Large files are redirected to another path, as the hub redirects to its CDN."""
        file = files / name
        if not file.is_file():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        headers = {"X-Repo-Commit": COMMITS[files.name], "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        if _is_large(name) and not is_cdn:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(data))}
            return self._send(
                302, b"", headers | {"Location": f"{self.hub.url}/cdn/model/resolve/{files.name}/{name}"}
            )
        return self._content(data, name, headers)

    def _content(self, data: bytes, name: str, headers: dict[str, str]) -> None:
        status, wanted = 200, self.headers.get("Range")
        if wanted:
            status, start = 206, int(wanted.removeprefix("bytes=").partition("-")[0])
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            data = data[start:]
        if self.command == "GET":
            self.hub.downloads.append(name)
        if self.command == "GET" and _is_large(name) and self.hub.cut_after and self.hub.cuts:
            self.hub.cuts -= 1
            self._send(status, data, headers, data[: self.hub.cut_after])
            self.close_connection = True
            return
        self._send(status, data, headers)

    def _send(
        self, status: int, data: bytes, headers: dict[str, str] | None = None, sent: bytes | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if sent is None else sent)


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf"))
