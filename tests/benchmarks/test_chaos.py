"""Chaos: clients that know the right answers count how their requests end."""

import json
import random
import time

import httpx
import pytest

from benchmarks.chaos.clients import Fate, LostError, Question, RefusedError, Tally, ask, ask_on

RIGHT = {"choices": [{"message": {"content": "yes"}}]}


def event(**delta: str) -> str:
    return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n"


def client(answer: httpx.Response | httpx.TransportError) -> httpx.AsyncClient:
    def respond(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.AsyncClient(transport=httpx.MockTransport(respond), base_url="http://server")


async def test_whole_answers() -> None:
    assert await ask(client(httpx.Response(200, json=RIGHT)), {}) == "yes"
    stream = event(role="assistant", content="") + event(content="ye") + event(content="s") + event()
    assert (
        await ask(client(httpx.Response(200, text=stream + "data: [DONE]\n\n")), {}, streamed=True) == "yes"
    )


async def test_an_error_code_is_a_refusal() -> None:
    with pytest.raises(RefusedError, match="503 UNAVAILABLE"):
        await ask(client(httpx.Response(503, json={"error": {}, "code": "UNAVAILABLE"})), {})
    stream = event(content="ye") + 'data: {"error": {}, "code": "INTERNAL"}\n\n'
    with pytest.raises(RefusedError, match="INTERNAL"):
        await ask(client(httpx.Response(200, text=stream)), {}, streamed=True)


@pytest.mark.parametrize(
    ("answer", "streamed"),
    [
        (httpx.ReadError("reset"), False),
        (httpx.Response(500, text="Internal Server Error"), False),
        (httpx.Response(200, json={"choices": []}), False),
        (httpx.Response(200, text=event(content="ye")), True),
        (httpx.Response(200, text=""), True),
        (httpx.Response(200, text="data: {"), True),
    ],
)
async def test_other_answers_are_lost(answer: httpx.Response | httpx.TransportError, streamed: bool) -> None:
    with pytest.raises(LostError):
        await ask(client(answer), {}, streamed)


async def test_clients_compare_answers_with_the_right_ones() -> None:
    http, tally = client(httpx.Response(200, json=RIGHT)), Tally()
    questions = [Question({}, "yes"), Question({}, "no")]
    await ask_on(http, questions, time.monotonic() + 0.2, random.Random(0), tally, streamed=0.0, leaving=0.0)
    assert set(tally.fates) == {Fate.FINISHED, Fate.WRONG}
    assert tally.problems[0] == "wrong: 'yes' instead of 'no'"
