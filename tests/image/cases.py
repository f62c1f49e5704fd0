"""What the image must do. Each case returns a remark, or raises ImageError or EngineError."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.image.engine import Engine, EngineError
from tests.image.server import MODEL, ImageError, Server, serving

MAX_GB = 1.2
_CACHE, _DATA, _CONFIG = "/var/cache/tiller", "/var/lib/tiller", "/etc/tiller/config.yaml"
_STREAMED_TOKENS = 300
_UNPRIVILEGED = ("--cap-drop=ALL", "--security-opt=no-new-privileges")
_PAIRS = [
    {"positive": f"I love {thing}.", "negative": f"I hate {thing}."} for thing in ("tea", "rain", "maths")
]
_CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "max_tokens": 16,
    "temperature": 0,
    "logit_bias": {"0": -100, "2": -100},  # no token ends the answer
}


@dataclass(frozen=True)
class Lab:
    """The image under test, and the names of what belongs to the test."""

    engine: Engine
    image: str
    base: str
    configuration: Path
    prefix: str

    @property
    def cache(self) -> str:
        """The volume of the cache, of all cases: the model is downloaded once."""
        return f"{self.prefix}-cache"

    @property
    def data(self) -> str:
        return f"{self.prefix}-data"

    def own(self, user: str) -> None:
        """Gives both volumes to a user, as Kubernetes does."""
        options = [
            "--user=0:0",
            "--entrypoint=chown",
            f"--volume={self.cache}:/a",
            f"--volume={self.data}:/b",
        ]
        self.engine.once(self.image, options, "-R", user, "/a", "/b")

    def volumes(self) -> list[str]:
        mounted = {self.cache: f"{_CACHE}", self.data: f"{_DATA}", str(self.configuration): f"{_CONFIG}:ro"}
        return [f"--volume={source}:{target}" for source, target in mounted.items()]

    def new_token(self) -> tuple[str, str]:
        """An access token, and JSON for the configuration. `docker run IMAGE token new` prints them."""
        printed = self.engine.once(self.image, [], "token", "new", "--print-only", "--json", "ada")
        content = json.loads(printed)
        return content["token"], json.dumps(content["configuration"]["auth"]["tokens"])

    @contextmanager
    def serving(self, *options: str) -> Iterator[Server]:
        everything = [*self.volumes(), *_UNPRIVILEGED, *options]
        with serving(
            self.engine, self.image, f"{self.prefix}-server", self.new_token(), everything
        ) as server:
            yield server


def size(lab: Lab) -> str:
    total, base = (
        int(lab.engine.run("image", "inspect", "--format={{.Size}}", image)) / 1e9
        for image in (lab.image, lab.base)
    )
    if total > MAX_GB:
        mend = "with PyPI's torch it cannot be small: name PyTorch's index of CPU wheels with --torch-index"
        raise ImageError(f"the image has {total:.2f} GB, more than {MAX_GB} GB; {mend}")
    return f"{total:.2f} GB, of which the base has {base:.2f} GB; the limit is {MAX_GB} GB"


_REST = """
for program in c++ g++ gcc cc make; do command -v $program && echo "$program is in the image"; done
find / -xdev '(' -name tests -o -path '*/torch/include' -o -path '*/pip/cache' ')' -type d 2>/dev/null \
    | grep -v '^/proc' | grep -E 'site-packages|cache'
find /var/lib/apt/lists /var/cache/apt/archives -name '*_Packages*' -o -name '*.deb'
true
"""


def contents(lab: Lab) -> str:
    found = lab.engine.once(lab.image, ["--entrypoint=sh"], "-c", _REST)
    if found:
        raise ImageError(f"the image has what it should not have: {' '.join(found.split())[:300]}")
    return "no compiler, no headers, no tests, no caches"


def default_user(lab: Lab) -> str:
    """New volumes, and the user of the image. A second server finds what the first one has stored."""
    with lab.serving() as server:
        remark = _check(lab, server, "10001", 0)
        _create_concept(server)
        _end(server)
    with lab.serving() as server:
        server.wait_until_ready()
        listed = server.request("GET", "/steering_concepts")[1]
        if "_worker/likes" not in json.dumps(listed):
            raise ImageError("the concept is gone after a restart")
        _end(server)
    return f"new volumes; {remark}; keeps its concepts"


def root(lab: Lab) -> str:
    lab.own("0:0")
    return _check_and_end(lab, "0", 0, "--user=0:0")


def any_user_of_group_0(lab: Lab) -> str:
    """As OpenShift does it: the volumes belong to the group, not to the user."""
    options = ["--user=0:0", "--entrypoint=sh", f"--volume={lab.cache}:/a", f"--volume={lab.data}:/b"]
    lab.engine.once(lab.image, options, "-c", "chown -R 0:0 /a /b && chmod -R g=u /a /b")
    return _check_and_end(lab, "1000650000", 0, "--user=1000650000:0")


def read_only(lab: Lab) -> str:
    """As the Helm chart does it: a user without group 0, and only the two volumes can be written."""
    lab.own("10001:10001")
    options = ["--user=10001:10001", "--read-only"]
    options += ["--read-only-tmpfs=false"] if lab.engine.is_podman else []
    with lab.serving(*options) as server:
        remark = _check(lab, server, "10001", 10001)
        writable = lab.engine.run(
            "exec",
            server.name,
            "sh",
            "-c",
            "for d in / /tmp /opt/tiller /run; do test -w $d && echo $d; done; true",
        )
        if writable:
            raise ImageError(f"these can be written: {' '.join(writable.split())}")
        _create_concept(server)
        _end(server)
    return remark


def drains(lab: Lab) -> str:
    """After SIGTERM, a running stream ends whole, new requests are refused, and /live stays 200."""
    with lab.serving() as server:
        server.wait_until_ready()
        events = server.events(
            {**_CHAT, "max_tokens": _STREAMED_TOKENS, "stream_options": {"include_usage": True}}
        )
        first = [next(events) for _ in range(3)]
        server.signal()
        time.sleep(0.3)
        statuses = server.statuses("/live", "/ready", "/health")
        if statuses != {"/live": 200, "/ready": 503, "/health": 503}:
            raise ImageError(f"while it drains, the probes get {statuses}")
        refused = server.request("POST", "/chat/completions", _CHAT)
        if refused[0] != 503 or refused[1]["code"] != "UNAVAILABLE":
            raise ImageError(f"while it drains, a new chat gets {refused}")
        rest = list(events)
        if rest[-1] != "[DONE]":
            raise ImageError(f"the running stream was cut: {rest[-1][:300]}")
        tokens = json.loads(rest[-2])["usage"]["completion_tokens"]
        if tokens != _STREAMED_TOKENS:
            raise ImageError(f"the running stream ended after {tokens} tokens, not {_STREAMED_TOKENS}")
        if (status := server.wait_for_end()) != 0:
            raise ImageError(f"the server ends with status {status}")
        return f"a stream ends whole, {len(rest) - 2} events after {len(first)} before SIGTERM; exit status 0"


def few_open_files(lab: Lab) -> str:
    limit = "--ulimit=nofile=1024:1024"
    with lab.serving(limit) as server:
        remark = _check(lab, server, "10001", 0)
        if "server.max_connections is 512, not 2048" not in server.log:
            raise ImageError("the log does not say that max_connections is lowered")
        _end(server)
    with lab.serving(limit, "--env=TILLER_SERVER__MAX_CONNECTIONS=2048") as server:
        if (status := server.wait_for_end()) != 1 or "the system allows 1024" not in server.log:
            raise ImageError(f"a configured 2048 is not refused: status {status}")
    return f"512 connections instead of 2048; {remark}; a configured 2048 is refused"


CASES: dict[str, Callable[[Lab], str]] = {
    "size": size,
    "contents": contents,
    "the user of the image": default_user,
    "SIGTERM": drains,
    "1024 open files": few_open_files,
    "root": root,
    "any user of group 0": any_user_of_group_0,
    "read-only root file system": read_only,
}


def _check_and_end(lab: Lab, user: str, group: int, *options: str) -> str:
    with lab.serving(*options) as server:
        remark = _check(lab, server, user, group)
        _create_concept(server)
        _end(server)
    return remark


def _check(lab: Lab, server: Server, user: str, group: int) -> str:
    """Waits until the server is ready. Checks its user, probes, health, doctor and a chat."""
    seconds = server.wait_until_ready()
    ids = lab.engine.run("exec", server.name, "id")
    if not re.match(rf"uid={user}\b.* gid={group}\b", ids):
        raise ImageError(f"it runs as {ids}, not as {user}:{group}")
    _expect(server.statuses("/live", "/ready", "/health"), {"/live": 200, "/ready": 200, "/health": 200})
    _expect(server.request("GET", "/metrics", secret="")[0], 401)
    for command in (["health"], ["doctor"]):
        lab.engine.run("exec", server.name, "tiller", *command, "--config", _CONFIG)
    status, answer = server.request("POST", "/chat/completions", _CHAT)
    _expect((status, answer.get("usage", {}).get("completion_tokens")), (200, _CHAT["max_tokens"]))
    return f"ready after {seconds:.0f} s"


def _create_concept(server: Server) -> None:
    status, answer = server.request("POST", "/steering_concepts", {"name": "likes", "examples": _PAIRS})
    if status != 201:
        raise ImageError(f"a concept cannot be created: {status} {json.dumps(answer)[:300]}")
    steered = {**_CHAT, "steering_concepts": ["_worker/likes"]}
    _expect(server.request("POST", "/chat/completions", steered)[0], 200)


def _end(server: Server) -> None:
    server.signal()
    _expect(server.wait_for_end(), 0)


def _expect(found: object, expected: object) -> None:
    if found != expected:
        raise ImageError(f"got {found}, expected {expected}")


def run(lab: Lab, names: Sequence[str]) -> bool:
    """Prints a line for each case. Returns whether all have passed."""
    failed = False
    for name in names:
        try:
            word, remark = "ok", CASES[name](lab)
        except (ImageError, EngineError, OSError) as error:
            word, remark, failed = "FAILED", str(error), True
        print(f"{word:6} {name:26} {remark}", flush=True)
    return not failed
