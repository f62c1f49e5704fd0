"""Malformed HTTP: the server answers with an error of the contract or closes, and serves the next client."""

import gzip
import hashlib
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from app.settings import Settings
from tests.app.contract.support import assert_error_payload, body
from tests.app.fakes import FakeEngine, model_info, reply
from tests.app.live import serving

BODY = json.dumps(body()).encode()
PAIR = '{"positive": "%s", "negative": "b"}'
LIMITS = {"header_seconds": 1, "body_seconds": 1, "max_body_bytes": 2**20}
Answer = tuple[int, bytes]
"""A response's status and body."""


def get(
    target: str, *headers: str, method: str = "GET", version: str = "HTTP/1.1", token: str = "secret"
) -> bytes:
    sent = ["Host: tiller", f"Authorization: Bearer {token}", "Connection: close", *headers]
    lines = [f"{method} {target} {version}", *sent, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def post(*headers: str, body: bytes = BODY, path: str = "/v1/chat/completions") -> bytes:
    """Adds a Content-Length unless `headers` has one or a Transfer-Encoding."""
    framed = any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers)
    framing = [] if framed else [f"Content-Length: {len(body)}"]
    return get(path, *headers, *framing, method="POST") + body


def chunked(*chunks: bytes, coding: str = "chunked") -> bytes:
    return post(f"Transfer-Encoding: {coding}", body=b"".join(chunks))


def in_chat(content: str = '"hi"', stop: str = '"x"') -> bytes:
    """A chat request with these JSON values."""
    message = f'{{"role": "user", "content": {content}}}'
    raw = f'{{"model": "tiny", "messages": [{message}], "stop": {stop}}}'
    return post(body=raw.encode("utf-8", "surrogatepass"))


def in_concept(examples: str = PAIR % "a", name: str = '"a"') -> bytes:
    raw = f'{{"examples": [{examples}], "name": {name}}}'.encode("utf-8", "surrogatepass")
    return post(body=raw, path="/v1/steering_concepts")


def whole(data: bytes = BODY) -> bytes:
    """The data as one chunk, and the last chunk."""
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


INVALID = {
    "length below zero": post("Content-Length: -1"),
    "length that is no number": post("Content-Length: abc"),
    "length with a sign": post("Content-Length: +5"),
    "length in hex": post("Content-Length: 0x10"),
    "length with an exponent": post("Content-Length: 1e3"),
    "length that overflows": post("Content-Length: " + "9" * 30),
    "empty length": post("Content-Length: "),
    "list of lengths": post(f"Content-Length: {len(BODY)}, {len(BODY)}"),
    "two lengths": post(f"Content-Length: {len(BODY)}", "Content-Length: 5"),
    "the same length twice": post(f"Content-Length: {len(BODY)}", f"Content-Length: {len(BODY)}"),
    "length and chunks": post("Content-Length: 5", "Transfer-Encoding: chunked", body=whole()),
    "chunks and length": post("Transfer-Encoding: chunked", "Content-Length: 5", body=whole()),
    "request hidden behind a length": post(
        "Content-Length: 6", "Transfer-Encoding: chunked", body=b"0\r\n\r\nG" + get("/v1/models")
    ),
    "coding that is not the last": chunked(whole(), coding="chunked, gzip"),
    "chunked twice": chunked(whole(), coding="chunked, chunked"),
    "unknown coding": chunked(whole(), coding="xchunked"),
    "identity": chunked(whole(), coding="identity"),
    "hidden coding": chunked(whole(), coding="\x0bchunked"),
    "two codings": chunked(whole(), coding="chunked\r\nTransfer-Encoding: identity"),
    "space before the colon": get("/v1/models", "Transfer-Encoding : chunked"),
    "chunk size that is no number": chunked(b"zzz\r\n"),
    "chunk size below zero": chunked(b"-1\r\n"),
    "chunk size with a prefix": chunked(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size that overflows": chunked(b"f" * 20 + b"\r\n"),
    "no chunk size": chunked(b"\r\n"),
    "chunk longer than its size": chunked(b"5\r\nhello!\r\n0\r\n\r\n"),
    "chunks in bare lines": chunked(b"5\nhello\n0\n\n"),
    "folded header": get("/v1/models", "X: a\r\n b"),
    "bare line feeds": get("/v1/models").replace(b"\r\n", b"\n"),
    "bare carriage returns": get("/v1/models").replace(b"\r\n", b"\r"),
    "NUL in a header": get("/v1/models", "X: a\x00b"),
    "header without a colon": get("/v1/models", "nonsense"),
    "header without a name": get("/v1/models", ": a"),
    "name that is none": get("/v1/models", "X(: a"),
    "HTTP/0.9": b"GET /v1/models\r\nAuthorization: Bearer secret\r\n\r\n",
    "HTTP/2.0": get("/v1/models", version="HTTP/2.0"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "NUL bytes": bytes(100),
    "method that is none": get("/v1/models", method="get"),
    "target that is no path": get("v1/models"),
    "target of a proxy without a path": get("http://"),
    "target with an impossible port": get("http://evil:99999/v1/models"),
    "tunnel": get("evil:80", method="CONNECT"),
    "byte in a target": get("/\xff"),
    "tab in a target": get("/v1/models\tx"),
    "deep array": post(body=b"[" * 10**5 + b"]" * 10**5),
    "deep object": in_chat('{"a":' * 10**5 + "1" + "}" * 10**5),
    "BOM": post(body=b"\xef\xbb\xbf" + BODY),
    "UTF-16": post("Content-Type: application/json; charset=utf-16", body=BODY.decode().encode("utf-16")),
    "UTF-32": post(body=BODY.decode().encode("utf-32")),
    "NUL within JSON": post(body=BODY.replace(b"hi", b"\x00")),
    "bytes that are no UTF-8": post(body=BODY.replace(b"hi", b"\xff\xfe")),
    "raw surrogate in a content": in_chat('"\ud800"'),
    "raw surrogate in a stop": in_chat(stop='"\ud800"'),
    "raw surrogate in an example": in_concept(PAIR % "\ud800"),
    "raw surrogate in a name": in_concept(name='"\ud800"'),
    "escaped surrogate in a content": in_chat(r'"\ud800"'),
    "escaped surrogate in a stop": in_chat(stop=r'["x", "\udfff\ud800"]'),
    "escaped surrogate in an example": in_concept(PAIR % r"\ud800"),
    "escaped surrogate in a name": in_concept(name=r'"\ud800"'),
    "NaN": in_chat(stop="NaN"),
    "Infinity": in_chat(stop="-Infinity"),
    "number beyond floats": in_chat(stop="1e999"),
    "integer of 400 digits": in_chat(stop="9" * 400),
    "nice that is no boolean": post(path="/v1/chat/completions?nice=%ff"),
}
OTHERS = {
    "long length": (post("Content-Length: 5000"), 408, "REQUEST_TIMEOUT"),
    "chunks that do not end": (chunked(b"5\r\nhello\r\n"), 408, "REQUEST_TIMEOUT"),
    "head that does not end": (b"GET /\r\n", 408, "REQUEST_TIMEOUT"),
    "endless chunks": (chunked(*[b"10000\r\n" + b"x" * 2**16 + b"\r\n"] * 20), 413, "PAYLOAD_TOO_LARGE"),
    "huge length": (post("Content-Length: 9999999999"), 413, "PAYLOAD_TOO_LARGE"),
    "endless chunk extension": (chunked(b"5;", b"x" * 2**20), 431, "HEADERS_TOO_LARGE"),
    "10^4 headers": (get("/v1/models", *(f"X-{n}: 1" for n in range(10**4))), 431, "HEADERS_TOO_LARGE"),
    "giant header": (get("/v1/models", "X: " + "x" * 2**20), 431, "HEADERS_TOO_LARGE"),
    "giant target": (get("/" + "x" * 2**20), 431, "HEADERS_TOO_LARGE"),
    "two tokens": (get("/v1/models", "Authorization: Bearer secret"), 401, "UNAUTHORIZED"),
    "a token of bytes": (get("/v1/models", token="\xff\x80"), 401, "UNAUTHORIZED"),
    "half a token": (get("/v1/models", token="secre"), 401, "UNAUTHORIZED"),
    "compressed zeros": (
        post("Content-Encoding: gzip", body=gzip.compress(bytes(10**7))),
        415,
        "UNSUPPORTED_MEDIA_TYPE",
    ),
    "unknown encoding": (post("Content-Encoding: br, gzip"), 415, "UNSUPPORTED_MEDIA_TYPE"),
    "form": (post("Content-Type: application/x-www-form-urlencoded"), 415, "UNSUPPORTED_MEDIA_TYPE"),
    "multipart": (
        post("Content-Type: multipart/form-data; boundary=x", body=b"--x\r\n\r\n1\r\n--x--"),
        415,
        "UNSUPPORTED_MEDIA_TYPE",
    ),
    "type of bytes": (post("Content-Type: \xff\xff"), 415, "UNSUPPORTED_MEDIA_TYPE"),
    "two slashes": (get("//v1/models"), 404, "NOT_FOUND"),
    "two slashes within": (get("/v1//models"), 404, "NOT_FOUND"),
    "way up": (get("/v1/../models"), 404, "NOT_FOUND"),
    "NUL in a path": (get("/v1/models%00"), 404, "NOT_FOUND"),
    "file of the system": (get("/v1/models/..%2f..%2f..%2fetc/passwd/tokenizer"), 404, "UNKNOWN_MODEL"),
    "no file but a concept": (get("/v1/steering_concepts/..%2f..%2fx"), 404, "UNKNOWN_STEERING_CONCEPT"),
    "broken percents": (get("/v1/models/%zz%"), 404, "UNKNOWN_MODEL"),
    "any target": (get("*"), 404, "NOT_FOUND"),
    "trace": (get("/v1/models", method="TRACE"), 405, "METHOD_NOT_ALLOWED"),
}
"""Invalid requests with another error than 400: the request, its status and its code."""
SERVED = {
    "target of a proxy": get("http://evil/v1/models"),
    "encoded path": get("/v1%2f%6dodels"),
    "query of nonsense": get("/v1/models?%ff=%zz&&&="),
    "HTTP/1.0": get("/v1/models", version="HTTP/1.0"),
    "header of bytes": get("/v1/models", "X: \xff\xfe"),
    "upgrade to WebSocket": get("/v1/models", "Connection: Upgrade", "Upgrade: websocket"),
    "body of a GET request": get("/v1/models", "Content-Length: 5") + b"hello",
    "unknown expectation": post("Expect: 200-ok"),
    "chunks": chunked(whole(), coding="CHUNKED"),
    "chunk with an extension": chunked(b"%x;a=b\r\n%b\r\n0\r\nX: trailer\r\n\r\n" % (len(BODY), BODY)),
    "NUL in a content": in_chat(r'"\u0000"'),
    "surrogate pair": in_chat(stop=r'"\ud83d\ude42"'),
    "the same key twice": post(body=BODY.replace(b'"model"', b'"model": 5, "model"')),
}


@pytest.fixture(scope="module")
def engine(model_directory: Path, tiny_tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(model_info(model_directory, tiny_tokenizer.get_vocab_size()), script=reply([40, 41]))


@pytest.fixture(scope="module")
def address(
    engine: FakeEngine, no_concepts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    data = tmp_path_factory.mktemp("data")
    token = {"name": "ada", "sha256": hashlib.sha256(b"secret").hexdigest()}
    settings = Settings(
        model={"name": "tiny"},
        data_directory=str(data),
        server=LIMITS,
        steering={"concepts": str(no_concepts)},
        auth={"tokens": [token]},
    )
    with serving(settings, engine) as address:
        yield address


@pytest.fixture
def talk(address: tuple[str, int], caplog: pytest.LogCaptureFixture):
    """`talk(bytes)` returns the server's responses until it closes the connection.

    After the test, the server must serve another client, and its log must have no warnings.
    """

    def exchange(raw: bytes, shut: bool = False) -> list[Answer]:
        with socket.create_connection(address, timeout=10) as client:
            with suppress(ConnectionError):  # if the server answered before it read everything
                client.sendall(raw)
                if shut:
                    client.shutdown(socket.SHUT_WR)
            return answers(read_all(client))

    yield exchange
    assert [status for status, _ in exchange(post())] == [200]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def read_all(client: socket.socket) -> bytes:
    data = b""
    with suppress(ConnectionError):  # if the server did not read everything
        while piece := client.recv(2**16):
            data += piece
    return data


def answers(raw: bytes) -> list[Answer]:
    found = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        status, *lines = head.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers.get("content-length", 0))
        found.append((int(status.split()[1]), raw[:length]))
        raw = raw[length:]
    return found


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_request_is_a_400(talk, name: str) -> None:
    [(status, payload)] = talk(INVALID[name])
    assert status == 400
    assert_error_payload(payload, "INVALID_REQUEST")


@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_have_their_own_status(talk, name: str) -> None:
    raw, expected, code = OTHERS[name]
    [(status, payload)] = talk(raw)
    assert status == expected
    assert_error_payload(payload, code)


@pytest.mark.parametrize("name", SERVED)
def test_unusual_but_valid_requests_are_served(talk, name: str) -> None:
    [(status, _)] = talk(SERVED[name])
    assert status == 200


def test_the_rest_of_a_body_with_a_short_length_is_not_served_as_a_request(talk, engine: FakeEngine) -> None:
    before = len(engine.requests)
    hidden = post()
    for status, payload in talk(post("Content-Length: 2", body=b"{}x" + hidden)):
        assert status == 400
        assert_error_payload(payload, "INVALID_REQUEST")
    assert len(engine.requests) == before


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_an_incomplete_request_gets_no_response_when_the_client_closes(
    talk, engine: FakeEngine, part: float
) -> None:
    before = len(engine.requests)
    raw = post()
    assert talk(raw[: int(part * len(raw))], shut=True) == []
    assert len(engine.requests) == before


def test_requests_in_one_packet_are_answered_in_order(talk) -> None:
    paths = ["/v1/models", "/nowhere", "/version", "/v1/models/x"]
    ahead = b"".join(get(path).replace(b"Connection: close\r\n", b"") for path in paths)
    assert [status for status, _ in talk(ahead + post())] == [200, 404, 200, 404, 200]


def test_expect_100_continue_is_answered_with_100(talk) -> None:
    assert [status for status, _ in talk(post("Expect: 100-continue"))] == [100, 200]


def test_an_unauthorized_request_gets_no_100_continue(talk) -> None:
    request = get("/v1/tokenize", "Expect: 100-continue", "Content-Length: 9", method="POST", token="wrong")
    assert [status for status, _ in talk(request)] == [401]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT"])
def test_every_route_answers_every_method(talk, address: tuple[str, int], method: str) -> None:
    paths = json.loads(talk(get("/openapi.json"))[0][1])["paths"]
    for path in paths:
        raw = get("/v1" + path.replace("{model}", "tiny").replace("{concept}", "x"), method=method)
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(raw)
            status = int(read_all(client).split(b" ", 2)[1])
        allowed = {"HEAD": {200, 404, 405}, "OPTIONS": {204}, "PUT": {405}}
        assert status in allowed[method], path


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    request=st.sampled_from([post(), chunked(whole()), get("/v1/models")]),
    position=st.floats(0, 1, exclude_max=True),
    length=st.integers(0, 4),
    junk=st.one_of(st.binary(max_size=4), st.sampled_from([b"\r\n", b"\n", b": ", b"\0", b"0", b"\r\n\r\n"])),
)
def test_random_damage_to_a_request_breaks_nothing(
    address: tuple[str, int], talk, request: bytes, position: float, length: int, junk: bytes
) -> None:
    start = int(position * len(request))
    with socket.create_connection(address, timeout=0.3) as client:
        client.sendall(request[:start] + junk + request[start + length :])
        with suppress(TimeoutError, ConnectionError):  # if the server waits for more bytes
            found = answers(read_all(client))
            for status, payload in found:
                assert status < 500
                if status >= 400:
                    assert len(payload) < 4096
                    assert json.loads(payload).keys() == {"error", "code"}
