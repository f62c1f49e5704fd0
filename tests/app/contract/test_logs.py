"""The log never contains a request's texts or access token, whatever goes wrong."""

import base64
import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import app.http.body
from app.errors import EngineUnavailable, InternalError, QueueFull
from inference.interface.logs import JsonFormatter, TextFormatter
from inference.interface.requests import FinishReason
from tests.app.contract.support import CHAT, JSON, body, steps, user
from tests.app.fakes import CHAT_TEMPLATE, FakeEngine, model_info, write_model_directory

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
    body(messages=[user(WORD)], top_p=WORD, n=WORD, stream=WORD, logprobs=WORD),
    body(messages=[user(WORD)], tools=[{WORD: WORD}]),
    body(messages=[user(WORD)], user=WORD, metadata={WORD: WORD}, **{WORD: WORD}),
    body(messages=WORD),
    body(messages=[{"role": "user", "content": [{"type": WORD, WORD: WORD}]}]),
    body(messages=[user(WORD), user(WORD)]),
    {WORD: WORD},
]


@pytest.fixture
async def guarded(serve) -> httpx.AsyncClient:
    return await serve(auth=AUTH)


async def ask_everything(client: httpx.AsyncClient) -> list[int]:
    """Sends valid and invalid requests with a secret in every part that a request has."""
    odd = dict.fromkeys(("x-any", "user-agent", "referer", "cookie", "traceparent"), f"{WORD} {{{WORD}}}")
    odd |= {
        "x-request-id": f"{WORD}!",
        "x-client-request-id": f"{WORD} {WORD}",
        f"x-{WORD}": WORD,
        "host": WORD,
    }
    headers = {"authorization": f"Bearer {TOKEN}", **odd}

    async def post(path: str, **options: Any) -> httpx.Response:
        return await client.post(path, **{"headers": headers, **options})

    answers = [await post(CHAT, json=content) for content in BODIES]
    answers.append(await post(CHAT, content=f'{{"{WORD}', headers={**JSON, **headers}))
    answers.append(await post(CHAT, content=f"\xff{WORD}".encode("latin-1"), headers={**JSON, **headers}))
    answers.append(await post(CHAT, content=WORD, headers={"content-type": WORD, **headers}))
    wrong = [{**odd, "authorization": given} for given in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN)]
    answers += [await post(CHAT, json=BODIES[0], headers=given) for given in wrong]
    answers.append(await post(f"{CHAT}?nice={WORD}&{WORD}={WORD}", json=BODIES[0]))
    answers.append(await client.get(f"/{WORD}?{WORD}", headers=headers))
    answers.append(await client.get(f"/models/{WORD}", headers=headers))
    answers.append(await client.request(WORD, CHAT, headers=headers))
    answers.append(await client.request("PATCH", f"/models/{WORD}", headers=headers))
    tokenized = {"model": "tiny", "prompt": WORD, "tokens": True, "token_ids": True}
    answers.append(await post("/tokenize", json=tokenized))
    answers.append(await post("/tokenize", json={**tokenized, "prompt": [WORD], WORD: WORD}))
    answers.append(await post("/detokenize", json={"model": "tiny", "token_ids": [WORD]}))
    pair = {"positive": WORD, "negative": "other"}
    answers.append(await post("/steering_concepts", json={"examples": [pair, {}]}))
    answers.append(await post("/steering_concepts", json={"examples": [{**pair, "positive": WORD * 999}]}))
    answers.append(await post("/steering_concepts", json={"examples": [pair], "description": WORD}))
    answers.append(await client.delete(f"/steering_concepts/{WORD}", headers=headers))
    return [answer.status_code for answer in answers]


@pytest.fixture
def shown(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Everything that a server would have logged so far, in both formats and at debug level."""
    stream = io.StringIO()
    root, ours = logging.getLogger(), [logging.getLogger(name) for name in ("app", "inference", "tiller")]
    handlers = []
    for formatter in (TextFormatter({}), JsonFormatter({})):
        handlers.append(logging.StreamHandler(stream))
        handlers[-1].setFormatter(formatter)
        handlers[-1].addFilter(lambda record: record.name != "httpx")  # the test client's own log
        root.addHandler(handlers[-1])
    levels = {logger: logger.level for logger in (root, *ours)}
    for logger in levels:
        logger.setLevel(logging.INFO if logger is root else logging.DEBUG)
    yield lambda: stream.getvalue() + "".join(capfd.readouterr())
    for handler in handlers:
        root.removeHandler(handler)
    for logger, level in levels.items():
        logger.setLevel(level)


def hold_no_secrets(shown: str) -> None:
    """Checks for the secrets in several spellings and encodings."""
    for secret in (WORD, TOKEN, "Zanzibar", hashlib.sha256(TOKEN.encode()).hexdigest()):
        encoded = secret.encode().hex(), base64.b64encode(secret.encode()).decode()
        for spelling in (secret, secret.lower(), secret.upper(), *encoded):
            assert spelling not in shown


FAILURES = {
    "none": None,
    "a fault of the engine": RuntimeError("the engine fell over"),
    "a worker that fails at it": InternalError("the request cannot be computed"),
    "a worker that is lost": EngineUnavailable(),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_neither_texts_nor_access_tokens_are_logged(
    guarded: httpx.AsyncClient, engine: FakeEngine, shown: Callable[[], str], spell, failure: str
) -> None:
    error = FAILURES[failure]
    engine.script = steps(spell(WORD), *([error] if error else []), finish=FinishReason.LENGTH)
    statuses = await ask_everything(guarded)
    assert {201, 400, 401, 404, 405, 415} <= set(statuses)
    assert (200 in statuses, 500 in statuses, 503 in statuses) == {
        "none": (True, False, False),
        "a worker that is lost": (True, False, True),
    }.get(failure, (True, True, False))
    said = shown()
    assert said.count("/chat/completions 4") > 10
    assert ("Traceback" in said) == (500 in statuses)
    hold_no_secrets(said)


async def test_no_texts_are_logged_when_the_engine_refuses_or_is_down(
    guarded: httpx.AsyncClient, engine: FakeEngine, shown: Callable[[], str]
) -> None:
    for engine.refusal in (QueueFull(), InternalError(), RuntimeError("a bug"), EngineUnavailable()):
        assert (await ask_everything(guarded))[0] >= 500
    engine.available = False
    assert 503 in await ask_everything(guarded)
    hold_no_secrets(shown())


async def test_the_error_of_a_failing_template_does_not_quote_the_text(
    serve, engine: FakeEngine, shown: Callable[[], str], tmp_path: Path
) -> None:
    lookup = "{% for message in messages %}{{ {'a': 1}[message.content].x }}{% endfor %}"
    condition = "{% if '" + WORD + "' in messages[-1].content %}"
    template = "{{ bos_token }}\n" + condition + lookup + "{% endif %}" + CHAT_TEMPLATE
    tokenizer = write_model_directory(tmp_path, template)
    client = await serve(FakeEngine(model_info(tmp_path, tokenizer.get_vocab_size())), auth=AUTH)
    assert 500 in await ask_everything(client)
    said = shown()
    assert "the model's chat template failed in line 2: UndefinedError" in said
    hold_no_secrets(said)


@pytest.mark.parametrize("name", ["invalid_request", "from_json"])
async def test_a_bug_while_a_body_is_parsed_does_not_quote_it(
    guarded: httpx.AsyncClient, shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """If the bug occurs while another error is handled, the traceback contains that error too."""

    def fail(*given: object, **more: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(app.http.body, name, fail)
    statuses = await ask_everything(guarded)
    said = shown()
    assert 500 in statuses
    assert "a bug of ours" in said
    assert ("ValidationError" in said) == (name == "invalid_request")
    hold_no_secrets(said)


async def test_a_model_that_cannot_chat_is_logged_at_the_start(
    serve, templateless: FakeEngine, shown: Callable[[], str]
) -> None:
    await serve(templateless)
    assert (
        shown().count("WARNING app.models.loading: model tiny has no chat template, so it cannot chat") == 1
    )
