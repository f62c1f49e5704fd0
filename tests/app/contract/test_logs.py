"""What is logged of a request: never its words, and never its token."""

import hashlib
import logging

import httpx
import pytest

from inference.protocol import FinishReason
from tests.app.contract.support import CHAT, JSON, body, steps, user
from tests.app.fakes import FakeEngine

TOKEN = "tiller-Zanzibar-token"
WORD = "Quetzalcoatl"
AUTH = {"tokens": [{"name": "ada", "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]}
BODIES = [
    body(messages=[user(WORD)]),
    body(messages=[user(WORD)], stream=True),
    body(messages=[user(WORD)], temperature=9),
    body(messages=[{"role": WORD, "content": WORD}]),
    body(messages=[user(WORD)], stop=[WORD] * 99),
    body(messages=[user(WORD)], model=WORD),
    body(messages=[user(WORD)], steering_concepts=[WORD]),
    body(messages=[user(WORD)], max_tokens=10**6),
    body(messages=[user(WORD)], logit_bias={WORD: 1}),
]


@pytest.fixture
async def guarded(serve) -> httpx.AsyncClient:
    return await serve(auth=AUTH)


async def ask_everything(client: httpx.AsyncClient) -> list[int]:
    headers = {"authorization": f"Bearer {TOKEN}"}
    answers = [await client.post(CHAT, json=content, headers=headers) for content in BODIES]
    answers.append(await client.post(CHAT, content=f'{{"{WORD}', headers={**JSON, **headers}))
    answers.append(await client.post(CHAT, content=WORD, headers={"content-type": WORD, **headers}))
    answers.append(await client.post(CHAT, json=BODIES[0], headers={"authorization": f"Bearer {TOKEN}x"}))
    answers.append(await client.post(f"{CHAT}?nice={WORD}", json=BODIES[0], headers=headers))
    answers.append(await client.get(f"/{WORD}", headers=headers))
    tokenized = {"model": "tiny", "prompt": WORD, "tokens": True, "token_ids": True}
    answers.append(await client.post("/tokenize", json=tokenized, headers=headers))
    pair = {"positive": WORD, "negative": "other"}
    answers.append(await client.post("/steering_concepts", json={"examples": [pair, {}]}, headers=headers))
    answers.append(await client.post("/steering_concepts", json={"examples": [pair]}, headers=headers))
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("failure", [None, RuntimeError("the engine fell over")])
async def test_neither_words_nor_tokens_are_logged(
    guarded: httpx.AsyncClient,
    engine: FakeEngine,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    spell,
    failure: Exception | None,
) -> None:
    script = steps(spell(WORD), *([failure] if failure else []), finish=FinishReason.LENGTH)
    engine.script = script if failure else steps(spell(WORD))
    caplog.set_level(logging.WARNING, "httpx")  # the client's own
    with caplog.at_level(logging.INFO):
        statuses = await ask_everything(guarded)
    assert {200, 201, 400, 401, 404, 415} <= set(statuses) | {200}
    assert (500 in statuses) == bool(failure)
    shown = caplog.text + "".join(capfd.readouterr())
    assert ("the engine fell over" in shown) == bool(failure)
    for secret in (WORD, TOKEN, "Zanzibar"):
        assert secret not in shown
