"""Bodies that are not JSON, not an object, too large, or of another media type get the right 4xx."""

import gc
import json
import threading
from typing import Any

import httpx
import pydantic_core
import pytest

from tests.app.contract.support import CHAT, JSON, assert_error, body, pieces
from tests.app.fakes import FakeEngine

ROUTES = [CHAT, "/tokenize", "/detokenize", "/steering_concepts"]
SOUND = json.dumps(body())
DEEP = 200_000
MALFORMED = {
    "empty": b"",
    "blank": b" \n\t ",
    "text": b"hello",
    "cut": SOUND[:-1].encode(),
    "trailing": f"{SOUND} x".encode(),
    "twice": f"{SOUND}{SOUND}".encode(),
    "trailing comma": SOUND.replace("}]", "},]").encode(),
    "single quotes": SOUND.replace('"', "'").encode(),
    "comment": f"/* hi */ {SOUND}".encode(),
    "unquoted": SOUND.replace('"model"', "model").encode(),
    "control character": SOUND.replace("hi", "h\ni").encode(),
    "bad escape": SOUND.replace("hi", "\\x41").encode(),
    "cut escape": SOUND.replace("hi", "\\ud8").encode(),
    "lone surrogate": SOUND.replace("hi", "\\ud800").encode(),
    "surrogates swapped": SOUND.replace("hi", "\\udc00\\ud800").encode(),
    "lone surrogate as the model": SOUND.replace("tiny", "\\udfff").encode(),
    "bad utf-8": SOUND.encode().replace(b"hi", b"\xff\xfe"),
    "cut utf-8": SOUND.encode().replace(b"hi", b"\xe6\x97"),
    "overlong utf-8": SOUND.encode().replace(b"hi", b"\xc0\xaf"),
    "surrogate in utf-8": SOUND.encode().replace(b"hi", b"\xed\xa0\x80"),
    "utf-16": SOUND.encode("utf-16"),
    "null bytes": b"\x00" * 20,
    "leading zero": SOUND.replace("}]", '}], "n": 01').encode(),
    "bare point": SOUND.replace("}]", '}], "temperature": 1.').encode(),
    "plus sign": SOUND.replace("}]", '}], "temperature": +1').encode(),
    "open arrays": b"[" * DEEP,
    "open objects": b'{"a":' * DEEP,
    "deep array": b"[" * DEEP + b"]" * DEEP,
    "deep messages": b'{"model": "tiny", "messages": ' + b"[" * DEEP + b"]" * DEEP + b"}",
}
NOT_OBJECTS = [b"[]", b"[{}]", b'"text"', b"5", b"1.5", b"true", b"null", json.dumps([body()]).encode()]


@pytest.mark.parametrize("raw", list(MALFORMED.values()), ids=list(MALFORMED))
async def test_a_malformed_chat_request_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, raw: bytes
) -> None:
    assert_error(await client.post(CHAT, content=raw, headers=JSON), 400, "INVALID_REQUEST")
    assert engine.requests == []


@pytest.mark.parametrize(
    "raw", [MALFORMED["empty"], MALFORMED["cut"], MALFORMED["bad utf-8"], MALFORMED["deep array"]]
)
@pytest.mark.parametrize("path", ROUTES)
async def test_a_malformed_body_is_refused_by_every_route(
    client: httpx.AsyncClient, path: str, raw: bytes
) -> None:
    assert_error(await client.post(path, content=raw, headers=JSON), 400, "INVALID_REQUEST")


@pytest.mark.parametrize("raw", NOT_OBJECTS)
@pytest.mark.parametrize("path", ROUTES)
async def test_a_body_that_is_not_an_object_is_refused(
    client: httpx.AsyncClient, path: str, raw: bytes
) -> None:
    assert_error(await client.post(path, content=raw, headers=JSON), 400, "INVALID_REQUEST")


async def test_a_malformed_streamed_request_gets_a_plain_400(client: httpx.AsyncClient) -> None:
    raw = json.dumps(body(stream=True))[:-1]
    assert_error(await client.post(CHAT, content=raw, headers=JSON), 400, "INVALID_REQUEST")


@pytest.mark.parametrize(("first", "second"), [("0.25", "0.75"), ('"x"', "0.75")])
async def test_a_body_with_a_repeated_key_is_read_with_one_value_or_refused(
    client: httpx.AsyncClient, engine: FakeEngine, first: str, second: str
) -> None:
    raw = SOUND.replace("}]", f'}}], "temperature": {first}, "temperature": {second}')
    response = await client.post(CHAT, content=raw, headers=JSON)
    if response.status_code == 200:
        assert engine.requests[0].sampling.temperature == 0.75
    else:
        assert_error(response, 400, "INVALID_REQUEST")


async def test_whitespace_and_order_do_not_matter(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    fields = dict(reversed(body(temperature=0.5).items()))
    raw = "\r\n\t " + json.dumps(fields, indent=7) + " \n"
    assert (await client.post(CHAT, content=raw, headers=JSON)).status_code == 200
    assert engine.requests[0].sampling.temperature == 0.5


async def test_deep_nesting_in_an_ignored_field_is_served_or_refused(client: httpx.AsyncClient) -> None:
    raw = SOUND.replace("}]", '}], "metadata": ' + "[" * DEEP + "]" * DEEP)
    response = await client.post(CHAT, content=raw, headers=JSON)
    if response.status_code != 200:
        assert_error(response, 400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/json;charset=UTF-8",
        "Application/JSON",
        None,
    ],
)
async def test_json_is_accepted_with_its_content_type_or_with_none(
    client: httpx.AsyncClient, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    assert (await client.post(CHAT, content=SOUND, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
        "application/jsonp",
        "application/json-seq",
        "json",
        "x" * 2000,
    ],
)
@pytest.mark.parametrize("path", ROUTES)
async def test_another_media_type_is_refused(client: httpx.AsyncClient, path: str, media_type: str) -> None:
    response = await client.post(path, content=SOUND, headers={"content-type": media_type})
    assert_error(response, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize("path", ROUTES)
async def test_a_body_above_the_limit_is_too_large(serve, path: str) -> None:
    client = await serve(server={"max_body_bytes": 500})
    response = await client.post(path, content=b" " * 501, headers=JSON)
    assert_error(response, 413, "PAYLOAD_TOO_LARGE", "500")


async def test_a_body_above_the_limit_is_too_large_without_a_content_length(
    serve, engine: FakeEngine
) -> None:
    client = await serve(server={"max_body_bytes": 500})
    content = pieces(SOUND.encode(), *[b" " * 100] * 5)
    assert_error(await client.post(CHAT, content=content, headers=JSON), 413, "PAYLOAD_TOO_LARGE")
    assert engine.requests == []


async def test_a_body_at_the_limit_is_served(serve) -> None:
    client = await serve(server={"max_body_bytes": 500})
    assert (await client.post(CHAT, content=SOUND.ljust(500), headers=JSON)).status_code == 200


async def test_a_body_may_arrive_in_pieces(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    raw = json.dumps(body(user="日本"), ensure_ascii=False).encode()
    content = pieces(*(raw[start : start + 1] for start in range(len(raw))))
    assert (await client.post(CHAT, content=content, headers=JSON)).status_code == 200
    assert len(engine.requests) == 1


@pytest.mark.parametrize(("size", "in_thread"), [(100, False), (200_000, True)])
async def test_a_large_body_is_parsed_in_another_thread(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, size: int, in_thread: bool
) -> None:
    threads: list[int] = []

    def decode(data: bytes, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return pydantic_core.from_json(data, **options)

    monkeypatch.setattr("app.http.body.from_json", decode)
    raw = json.dumps(body(metadata="x" * size))
    assert (await client.post(CHAT, content=raw, headers=JSON)).status_code == 200
    assert [thread != threading.get_ident() for thread in threads] == [in_thread]


async def test_a_large_body_gets_the_same_errors_as_a_small_one(client: httpx.AsyncClient) -> None:
    filling = "x" * 200_000
    assert_error(
        await client.post(CHAT, content=f'["{filling}"', headers=JSON), 400, "INVALID_REQUEST", "JSON"
    )
    response = await client.post(CHAT, content=json.dumps(body(metadata=filling, n=0)), headers=JSON)
    assert_error(response, 400, "INVALID_REQUEST", param="n")
    assert gc.isenabled()
