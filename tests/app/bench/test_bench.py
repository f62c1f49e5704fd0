"""`tiller bench`, against Tiller's own gateway and against fake servers."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.bench import load
from app.bench.client import BenchError, Target, Workload, connect, parse_target
from app.bench.load import Plan, compare
from app.cli import build_commands
from inference.interface.requests import FinishReason
from tests.app.command_line import assert_one_line
from tests.app.contract.support import pieces
from tests.app.fakes import FakeEngine, reply

TEMPLATE_TOKENS = 30
SHORT = ("--concurrency", "1,2", "--prompt-tokens", "16,50", "--tokens", "3", "--rounds", "1")


async def bench(*arguments: object, token: str | None = None) -> Result:
    """Runs `tiller bench …` on another thread, because the server runs in this one."""
    runner = CliRunner(env={"TILLER_TOKEN": token})
    return await asyncio.to_thread(runner.invoke, build_commands(), ["bench", *map(str, arguments)])


# Tiller's own gateway, over a socket.


async def test_the_gateway_is_measured(live_url: str, engine: FakeEngine) -> None:
    engine.script = reply([40, 41, 42], FinishReason.LENGTH)
    words = ("--url", f"ours={live_url}/v1", *SHORT, "--requests", 3)
    done = await bench(*words, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["figures"]
    assert [(row["server"], row["concurrency"], row["prompt_tokens"]) for row in rows] == [
        ("ours", 1, 16),
        ("ours", 2, 16),
        ("ours", 1, 50),
        ("ours", 2, 50),
    ]
    assert [row["requests"] for row in rows] == [3, 6, 3, 6]
    assert [row["output_tokens"] for row in rows] == [9, 18, 9, 18]
    assert all(row["failed"] == row["wrong_lengths"] == 0 for row in rows)
    assert len(done.stderr.splitlines()) == 4
    assert len((await bench(*words)).stdout.splitlines()) == 2 + 4


async def test_requests_ask_for_a_fixed_length(live_url: str, engine: FakeEngine) -> None:
    engine.script = reply([40, 41, 42], FinishReason.LENGTH)
    await bench("--url", live_url, *SHORT, "--ban", "0,2", "--temperature", 0.5)
    request = engine.requests[-1]
    assert request.max_tokens == 3
    assert request.sampling.temperature == 0.5
    assert dict(request.sampling.logit_bias) == {0: -100, 2: -100}


async def test_a_refusal_by_the_gateway_is_one_line(live_url: str, engine: FakeEngine) -> None:
    assert_one_line(await bench("--url", live_url, "--model", "nobody"), "answers 404", "nobody")
    assert engine.requests == []


# Fake servers, without a socket.


@dataclass
class Peer:
    """A fake server that counts each word as one token, and records the requests."""

    bodies: list[dict] = field(default_factory=list)
    tokens: int | None = None
    """Length of each answer. None: the requested one."""
    refuses: Callable[[dict], bool] = lambda _: False
    authorizations: set[str | None] = field(default_factory=set)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.authorizations.add(request.headers.get("authorization"))
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "first"}, {"id": "second"}]})
        assert request.url.path == "/v1/chat/completions"
        body = json.loads(request.content)
        self.bodies.append(body)
        if self.refuses(body):
            return httpx.Response(503, json={"error": {"message": "too\nbusy"}})
        tokens = self.tokens or body["max_tokens"]
        usage = {"prompt_tokens": TEMPLATE_TOKENS + len(prompt_of(body).split()), "completion_tokens": tokens}
        if not body.get("stream"):
            return httpx.Response(200, json={"usage": usage})
        chunks = [{"choices": [{"delta": {"content": "a"}}]} for _ in range(tokens)]
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, {"choices": [], "usage": usage}]]
        return httpx.Response(
            200, content=pieces(*(event.encode() for event in [*events, "data: [DONE]\n\n"]))
        )

    @property
    def streamed(self) -> list[dict]:
        return [body for body in self.bodies if body.get("stream")]


def prompt_of(body: dict) -> str:
    [message] = body["messages"]
    return message["content"]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Peer]:
    """The fake servers by host: a and b."""
    servers = {"a": Peer(), "b": Peer()}

    def connect_to_peers(target: Target) -> httpx.AsyncClient:
        client = connect(target)
        transport = httpx.MockTransport(lambda request: servers[request.url.host](request))
        return httpx.AsyncClient(base_url=client.base_url, headers=client.headers, transport=transport)

    monkeypatch.setattr(load, "connect", connect_to_peers)
    return servers


BOTH = ("--url", "http://a", "--url", "bee=http://b/v1/")


async def test_all_servers_get_the_same_distinct_prompts(peers: dict[str, Peer]) -> None:
    done = await bench(*BOTH, *SHORT, "--rounds", 3, "--requests", 2)
    assert done.exit_code == 0, done.output
    drawn = [prompt_of(body) for body in peers["a"].bodies]
    assert len(set(drawn)) == len(drawn)
    assert drawn == [prompt_of(body) for body in peers["b"].bodies]
    assert {body["model"] for body in peers["a"].bodies} == {"first"}


async def test_prompts_have_the_requested_length_including_the_template(peers: dict[str, Peer]) -> None:
    await bench("--url", "http://a", *SHORT, "--requests", 2)
    measured = [len(prompt_of(body).split()) for body in peers["a"].streamed if body["temperature"] == 0.7]
    assert measured.count(50 - TEMPLATE_TOKENS) == 2 + 4
    assert min(measured) == 4  # 16 is less than the length of the template


async def test_without_ban_there_is_no_logit_bias(peers: dict[str, Peer]) -> None:
    await bench("--url", "http://a", *SHORT, "--ban", "")
    assert all("logit_bias" not in body for body in peers["a"].bodies)


async def test_the_access_token_is_sent(peers: dict[str, Peer]) -> None:
    await bench("--url", "http://a", *SHORT, token="secret")
    assert peers["a"].authorizations == {"Bearer secret"}
    await bench("--url", "http://b", *SHORT)
    assert peers["b"].authorizations == {None}


async def test_servers_take_turns_and_get_no_requests_outside_their_turn(peers: dict[str, Peer]) -> None:
    turns: list[tuple[str, int]] = []

    @contextmanager
    def turn(target: Target) -> Iterator[None]:
        before = {name: len(peer.bodies) for name, peer in peers.items()}
        yield
        sent = {name: len(peer.bodies) - before[name] for name, peer in peers.items()}
        turns.append((target.name, sent.pop(target.name)))
        assert set(sent.values()) == {0}

    plan = Plan((1, 4), (50,), rounds=2, requests=2, workload=Workload(3))
    targets = [Target("a", "http://a"), Target("b", "http://b")]
    measured = [
        (number, made.server, made.point.concurrency) async for number, made in compare(targets, plan, turn)
    ]
    assert measured == [
        (0, "a", 1), (0, "b", 1), (0, "a", 4), (0, "b", 4),
        (1, "b", 1), (1, "a", 1), (1, "b", 4), (1, "a", 4),
    ]  # fmt: skip
    # First: two probes, and a warm-up for each concurrency. Then: one request to wake up, and the load.
    assert turns[:2] == [("a", 2 + 5), ("b", 2 + 5)]
    assert turns[2:] == [(server, 1 + 2 * concurrency) for _, server, concurrency in measured]


async def test_failures_are_counted_and_reported(peers: dict[str, Peer]) -> None:
    peers["b"].refuses = lambda body: "stream" in body and len(peers["b"].streamed) % 2 == 0
    done = await bench(*BOTH, *SHORT, "--requests", 4)
    assert done.exit_code == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("tiller: ")]
    assert "bee: 12 of 24 requests failed" in line
    assert "answers 503: too busy" in line
    failed = [row.split(" | ")[-1] for row in done.stdout.splitlines()[2:]]
    assert failed == ["0 |", "2 |", "0 |", "4 |"] * 2


async def test_answers_of_another_length_are_reported(peers: dict[str, Peer]) -> None:
    peers["a"].tokens = 2
    done = await bench("--url", "http://a", *SHORT)
    assert done.exit_code == 1
    assert "12 of 12 answers do not have 3 tokens" in done.stderr


async def test_a_server_that_refuses_the_first_request_is_one_line(peers: dict[str, Peer]) -> None:
    peers["b"].refuses = lambda body: True
    assert_one_line(await bench(*BOTH, *SHORT), "bee answers 503: too busy")


async def test_an_unreachable_server_is_one_line() -> None:
    assert_one_line(await bench("--url", "http://127.0.0.1:1"), "127.0.0.1:1 cannot be reached")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "nowhere"], "nowhere"),
        (["--url", "ftp://a"], "ftp://a"),
        (["--url", "http://a:port"], "http://a:port"),
        (["--url", "x=http://a", "--url", "x=http://b"], "same name"),
        (["--concurrency", "1,0"], "1,0"),
        (["--concurrency", ""], "''"),
        (["--prompt-tokens", "short"], "short"),
        (["--ban", "-1"], "-1"),
        (["--plot", "no/such/folder/x.svg"], "no/such/folder"),
        (["--plot", "figures.txt"], "figures.txt"),
    ],
)
async def test_a_mistake_is_one_line_before_anything_is_sent(
    peers: dict[str, Peer], arguments: list[str], words: str
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    url = [] if "--url" in arguments else ["--url", "http://a"]
    assert_one_line(await bench(*url, *arguments), words)
    assert peers["a"].bodies == []


async def test_without_matplotlib_there_is_a_hint_before_anything_is_sent(
    peers: dict[str, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert_one_line(await bench("--url", "http://a", *SHORT, "--plot", "x.svg"), "matplotlib", "tiller[eval]")
    assert peers["a"].bodies == []


async def test_figures_are_drawn(peers: dict[str, Peer], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "figures.svg"
    assert (await bench(*BOTH, *SHORT, "--plot", file)).exit_code == 0
    drawn = file.read_text()
    assert drawn.startswith("<?xml")
    assert "bee" in drawn


def test_a_targets_default_name_is_its_host_and_port() -> None:
    assert parse_target("http://host:81/v1/", "t", "m") == Target("host:81", "http://host:81", "t", "m")
    assert parse_target("peer=https://host/x=y/v1", None, None) == Target("peer", "https://host/x=y")
    with pytest.raises(BenchError):
        parse_target("peer=host:80", None, None)
