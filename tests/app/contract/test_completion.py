"""The unstreamed answer: its shape, finish reasons, usage, and the system fingerprint."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from inference.interface.requests import FinishReason, GenerationRequest
from tests.app.contract.support import chat, completion, events, steps, user
from tests.app.fakes import END_OF_TURN, FakeEngine, Script, Step

Spell = Callable[[str | bytes], list[int]]


def said(answer: dict[str, Any], index: int = 0) -> str:
    return answer["choices"][index]["message"]["content"]


def chorus(*parts: list[int], finish: FinishReason = FinishReason.STOP) -> Script:
    """A script: choice i generates parts[i], one token per step, all choices in the same steps."""

    def play(request: GenerationRequest) -> Iterable[Step]:
        lines = [[*part, END_OF_TURN] if finish is FinishReason.STOP else part for part in parts]
        for position in range(max(map(len, lines))):
            step = []
            for index, line in enumerate(lines):
                if position < len(line):
                    ends = position == len(line) - 1
                    step += events(request, [line[position]], index, finish if ends else None)
            yield step

    return play


async def test_the_answer_has_the_contracts_fields_and_no_others(
    client: httpx.AsyncClient, engine: FakeEngine, tiny_tokenizer: Tokenizer
) -> None:
    engine.script = steps(tiny_tokenizer.encode("Hello, world!").ids)
    answer = await completion(client)
    assert answer.keys() == {
        "id",
        "object",
        "created",
        "model",
        "system_fingerprint",
        "choices",
        "usage",
    }
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world!"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


async def test_ids_are_distinct(client: httpx.AsyncClient) -> None:
    ids = [(await completion(client))["id"] for _ in range(3)]
    assert all(id.startswith("chatcmpl-") for id in ids)
    assert len(set(ids)) == 3


async def test_created_is_the_time_of_the_request_in_whole_seconds(client: httpx.AsyncClient) -> None:
    before = int(time.time())
    created = (await completion(client))["created"]
    assert type(created) is int
    assert before <= created <= time.time() + 1


async def test_an_answer_without_tokens_is_the_empty_string(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.script = steps()
    answer = await completion(client)
    assert said(answer) == ""
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("finish", FinishReason)
async def test_the_finish_reason_comes_from_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, finish: FinishReason
) -> None:
    engine.script = steps(spell("ab"), spell("c"), finish=finish)
    answer = await completion(client, max_tokens=3)
    assert answer["choices"][0]["finish_reason"] == finish.value
    assert said(answer) == "abc"


async def test_the_end_of_turn_token_is_not_part_of_the_content(
    reworked: Callable[..., FakeEngine], serve, spell: Spell
) -> None:
    """This also holds for an end-of-turn token that has a text."""
    full_stop = spell(".")[0]
    engine = reworked(end_token_ids={"config.json": (full_stop,)})
    engine.script = lambda request: [events(request, [*spell("a"), full_stop], finish=FinishReason.STOP)]
    answer = await completion(await serve(engine), logprobs=True)
    assert said(answer) == "a"
    assert len(answer["choices"][0]["logprobs"]["content"]) == 1
    assert answer["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    "text",
    ["é", "日本語", "🙂🙃", "a\u2028b\x85c", 'tab\tquote"back\\slash', "\x00", " leading", "trailing \n"],
)
@pytest.mark.parametrize("one_step", [True, False])
async def test_any_generated_text_is_returned_unchanged(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, text: str, one_step: bool
) -> None:
    ids = spell(text)
    engine.script = steps(ids) if one_step else steps(*([token_id] for token_id in ids))
    assert said(await completion(client)) == text


@pytest.mark.parametrize("finish", FinishReason)
async def test_usage_counts_the_prompt_and_the_tokens_without_the_end_of_turn(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, finish: FinishReason
) -> None:
    engine.script = steps(spell("abc"), spell("de"), finish=finish)
    usage = (await completion(client))["usage"]
    prompt = len(engine.requests[0].prompt_token_ids)
    assert usage == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}


async def test_usage_counts_tokens_and_not_characters(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell, tiny_tokenizer: Tokenizer
) -> None:
    whole, split = tiny_tokenizer.encode("you").ids, spell("日")
    assert (len(whole), len(split)) == (1, 3)
    engine.script = steps(whole + split)
    assert (await completion(client))["usage"]["completion_tokens"] == 4


async def test_each_choice_has_its_own_text_and_finish_reason(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = chorus(spell("one"), spell("two!!"), spell(""))
    answer = await completion(client, n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [said(answer, index) for index in range(3)] == ["one", "two!!", ""]
    assert all(choice["finish_reason"] == "stop" for choice in answer["choices"])


async def test_choices_are_in_order_of_their_index_whichever_ends_first(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    def play(request: GenerationRequest) -> Iterable[Step]:
        yield events(request, spell("late"), 1, FinishReason.LENGTH) + events(request, spell("ear"), 0)
        yield events(request, spell("ly"), 0, FinishReason.LENGTH)

    engine.script = play
    answer = await completion(client, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [said(answer, 0), said(answer, 1)] == ["early", "late"]


async def test_usage_sums_the_choices_and_counts_the_prompt_once(
    client: httpx.AsyncClient, engine: FakeEngine, spell: Spell
) -> None:
    engine.script = chorus(spell("one"), spell("three"), spell(""))
    usage = (await completion(client, n=3))["usage"]
    prompt = len(engine.requests[0].prompt_token_ids)
    assert usage == {"prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8}


async def test_steering_adds_no_prompt_tokens(client: httpx.AsyncClient) -> None:
    plain = await completion(client)
    steered = await completion(client, steering_concepts=["_worker/a", "_worker/b"])
    assert steered["usage"] == plain["usage"]


async def test_usage_counts_the_tokens_of_the_chat_template(client: httpx.AsyncClient) -> None:
    short = (await completion(client, messages=[user("a")]))["usage"]["prompt_tokens"]
    longer = (await completion(client, messages=[user("a||")]))["usage"]["prompt_tokens"]
    assert longer == short + 2


async def test_the_fingerprint_does_not_change_with_the_request(client: httpx.AsyncClient) -> None:
    answers = [
        await completion(client),
        await completion(client, temperature=0.1, n=2, top_k=3, logprobs=True),
        await completion(client, steering_concepts=["a"], messages=[user("x")]),
    ]
    fingerprints = {answer["system_fingerprint"] for answer in answers}
    assert len(fingerprints) == 1
    assert fingerprints.pop()


async def fingerprint(client: httpx.AsyncClient) -> str:
    return (await completion(client))["system_fingerprint"]


@pytest.mark.parametrize(
    "fact", [{"weights_digest": "ab" * 32}, {"dtype": "bfloat16"}, {"quantization": "integer"}]
)
async def test_the_fingerprint_changes_with_the_weights_the_dtype_and_the_quantization(
    client: httpx.AsyncClient, reworked: Callable[..., FakeEngine], serve, fact: dict[str, str]
) -> None:
    assert await fingerprint(await serve(reworked(**fact))) != await fingerprint(client)


async def test_the_fingerprint_depends_on_nothing_else(
    client: httpx.AsyncClient, reworked: Callable[..., FakeEngine], serve
) -> None:
    original = await fingerprint(client)
    other = await serve(
        reworked(context_length=128), limits={"max_n": 2}, model={"name": "tiny", "description": "x"}
    )
    assert await fingerprint(other) == original


@pytest.mark.parametrize("name", ["org/tiny", "tiny-2"])
async def test_the_answer_names_the_requested_model(serve, name: str) -> None:
    client = await serve(model={"name": name})
    assert (await chat(client, model=name)).json()["model"] == name
