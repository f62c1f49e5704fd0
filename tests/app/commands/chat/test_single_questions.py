"""`tiller chat QUESTION` and a question on stdin: the answer on stdout, and everything else on stderr."""

import hashlib
import json

import pytest

from app.errors import InternalError, QueueFull, RateLimited
from app.settings import AuthSettings, Settings
from inference.interface.requests import FinishReason
from tests.app.command_line import assert_one_line
from tests.app.commands.chat.conftest import Say, chat
from tests.app.fakes import FakeEngine, reply


async def test_the_answer_is_all_that_stdout_has(live_url: str, say: Say) -> None:
    say("Good day\nto you.")
    done = await chat("Hello", url=live_url)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Good day\nto you.\n", "")


async def test_a_question_comes_from_stdin(live_url: str, say: Say, engine: FakeEngine) -> None:
    say("Yes.")
    for text in ("two\nlines\n", " two\nlines"):
        done = await chat(url=live_url, stdin=text)
        assert (done.exit_code, done.stdout) == (0, "Yes.\n")
    first, second = engine.requests
    assert first.prompt_token_ids == second.prompt_token_ids


async def test_stdin_is_not_read_if_there_is_a_question(live_url: str, say: Say, engine: FakeEngine) -> None:
    say("Yes.")
    await chat("one", url=live_url, stdin="two")
    await chat("one", url=live_url)
    first, second = engine.requests
    assert first.prompt_token_ids == second.prompt_token_ids


async def test_options_become_fields_of_the_request(live_url: str, say: Say, engine: FakeEngine) -> None:
    say("Yes.")
    words = ["Hello", "--concept", "kind=-1.5", "--concept", "_worker/rude", "--system", "Be brief."]
    words += ["--set", "temperature=.25", "--set", "max_tokens=7", "--set", "stop=STOP"]
    done = await chat(*words, url=live_url)
    assert (done.exit_code, done.stderr) == (0, "")
    [request] = engine.requests
    assert sorted(request.steering.strengths.values()) == [-1.5, 1.0]
    assert (request.sampling.temperature, request.max_tokens) == (0.25, 7)
    plain = await chat("Hello", "--set", "temperature=.25", url=live_url)
    assert plain.exit_code == 0
    assert len(engine.requests[1].prompt_token_ids) < len(request.prompt_token_ids)


async def test_json_is_the_servers_answer(live_url: str, say: Say) -> None:
    say("Grüße")
    done = await chat("Hello", "--json", "--set", "n=2", "--set", "logprobs=true", url=live_url)
    assert (done.exit_code, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["Grüße"] * 2
    assert answer["choices"][0]["logprobs"]["content"]


async def test_parameters_that_text_cannot_show_need_json(live_url: str) -> None:
    assert_one_line(
        await chat("Hello", "--set", "n=2", url=live_url), "n needs a question and --json", status=2
    )


async def test_unknown_names_are_answered_with_the_known_ones(live_url: str) -> None:
    done = await chat("Hello", "--concept", "kin", url=live_url)
    assert_one_line(done, "_worker/kin is unknown; there are: kind, rude")
    done = await chat("Hello", "--concept", "kin", "--json", url=live_url)
    assert_one_line(done, "_worker/kin is unknown; there are: kind, rude")
    assert_one_line(await chat("Hello", "--model", "x", url=live_url), "'x' is unknown; there are: tiny")
    done = await chat("Hello", "--set", "temprature=1", url=live_url)
    assert_one_line(done, "there is no parameter 'temprature'; there are: temperature, ", status=2)


@pytest.mark.parametrize(
    ("words", "explanation", "status"),
    [
        (["Hello", "--concept", "kind=much"], "a strength is a number from -2 to 2", 2),
        (["Hello", "--concept", "kind=nan"], "a strength is a number from -2 to 2", 2),
        (["Hello", "--concept", "kind=3"], "from -2 to 2, such as -1, and not '3'", 2),
        (["Hello", "--set", "temperature"], "--set needs NAME=VALUE", 2),
        (["Hello", "--set", "temperature=hot"], "temperature must be a number, got 'hot'", 1),
        (["Hello\udcff"], "surrogate", 1),
        (["  "], "the question is empty", 2),
        ([], "the question is empty", 2),
    ],
)
async def test_mistakes_are_one_line(live_url: str, words: list[str], explanation: str, status: int) -> None:
    assert_one_line(await chat(*words, url=live_url), explanation, status=status)


async def test_stdin_that_is_not_utf8_is_one_line(live_url: str) -> None:
    assert_one_line(await chat(url=live_url, stdin=b"\xff"), "is not UTF-8")


async def test_without_a_server_the_error_says_how_to_start_one() -> None:
    done = await chat("Hello", url="http://127.0.0.1:9")
    assert_one_line(done, "cannot be reached", "`tiller serve` starts one")


async def test_refusals_say_when_to_try_again(live_url: str, engine: FakeEngine) -> None:
    for refusal in (RateLimited("too many tokens", 7), QueueFull()):
        engine.refusal = refusal
        done = await chat("Hello", url=live_url)
        assert_one_line(done, f"{refusal.message}; try again in {refusal.retry_after} s")
    engine.refusal = None
    engine.available = False
    assert_one_line(await chat("Hello", url=live_url), "try again in 1 s")


async def test_an_answer_that_fails_keeps_its_begin(live_url: str, engine: FakeEngine, say: Say) -> None:
    say("Good day.")
    whole = engine.script

    def failing(request):
        yield from list(whole(request))[:-1]
        yield InternalError()

    engine.script = failing
    done = await chat("Hello", url=live_url)
    assert (done.exit_code, done.stdout, done.stderr) == (1, "Good day.\n", done.stderr)
    assert done.stderr.startswith("tiller: internal error; see request ")


async def test_notes_about_an_answer_are_not_on_stdout(live_url: str, engine: FakeEngine, say: Say) -> None:
    say("Good", finish=FinishReason.LENGTH)
    done = await chat("Hello", "--concept", "kind=2", url=live_url)
    engine.clipped = dict.fromkeys(engine.requests[0].steering.strengths, 1.25)
    done = await chat("Hello", "--concept", "kind=2", url=live_url)
    assert (done.exit_code, done.stdout) == (0, "Good\n")
    assert "[kind steers with 1.25," in done.stderr
    assert "limit of tokens" in done.stderr


async def test_an_empty_answer_is_an_empty_output(live_url: str, engine: FakeEngine) -> None:
    engine.script = reply([])
    done = await chat("Hello", url=live_url)
    assert (done.exit_code, done.stdout) == (0, "")


class TestWithAccessTokens:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        digest = hashlib.sha256(b"secret").hexdigest()
        auth = AuthSettings.model_validate({"tokens": [{"name": "ada", "sha256": digest}]})
        return settings.model_copy(update={"auth": auth})

    async def test_the_error_says_how_to_pass_one(self, live_url: str, say: Say) -> None:
        say("Yes.")
        for token in (None, "wrong"):
            assert_one_line(await chat("Hello", url=live_url, TILLER_TOKEN=token), "--token or TILLER_TOKEN")
        assert (await chat("Hello", url=live_url, TILLER_TOKEN="secret")).stdout == "Yes.\n"
        assert (await chat("Hello", "--token", "secret", url=live_url)).stdout == "Yes.\n"
