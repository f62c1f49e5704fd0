"""The engine gets what the chat request asks for, within the limits of the model."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from app.errors import ApiError, ErrorCode, InvalidRequest
from app.schemas.chat import ChatRequest
from app.settings import Settings
from app.text.generation_request import digests_in, generation_request
from inference.interface.protocol import ModelInfo
from inference.interface.requests import (
    GenerationRequest,
    SamplingParams,
    SteeringCondition,
    SteeringMode,
    SteeringScope,
    SteeringSpec,
)

MODEL = ModelInfo("", context_length=10, vocab_size=4, end_token_ids={}, weights_digest="", dtype="float32")


def chat(**fields: Any) -> ChatRequest:
    request = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
    return ChatRequest.model_validate(request, context=Settings())


def built(
    prompt: int = 4, digests: Mapping[str, str] = {}, default_max_tokens: int | None = None, **fields: Any
) -> GenerationRequest:
    """`digests`: name of each concept -> its digest."""
    digests = {f"_worker/{name}": digest for name, digest in digests.items()}
    return generation_request(
        chat(**fields), [1] * prompt, digests, MODEL, (2,), "r", False, default_max_tokens
    )


def test_the_defaults_are_those_of_the_engine() -> None:
    assert built().sampling == SamplingParams()
    assert built() == GenerationRequest("r", [1] * 4, 6, stop_token_ids=(2,))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "maximum_tokens"])
def test_max_tokens_may_have_any_of_its_names(name: str) -> None:
    assert built(**{name: 3}).max_tokens == 3


@pytest.mark.parametrize(("prompt", "max_tokens"), [(4, 6), (9, 1), (9, None)])
def test_prompt_and_completion_may_fill_the_context(prompt: int, max_tokens: int | None) -> None:
    assert built(prompt, max_tokens=max_tokens).max_tokens == 10 - prompt


@pytest.mark.parametrize(("default", "expected"), [(None, 6), (1, 1), (5, 5), (6, 6), (7, 6), (10**9, 6)])
def test_the_operators_default_for_max_tokens_ends_with_the_context(
    default: int | None, expected: int
) -> None:
    assert built(default_max_tokens=default).max_tokens == expected
    for name in ("max_tokens", "max_completion_tokens", "maximum_tokens"):
        assert built(default_max_tokens=default, **{name: 3}).max_tokens == 3


def test_the_operators_default_for_max_tokens_does_not_hide_a_full_context() -> None:
    with pytest.raises(ApiError, match=r"10 tokens"):
        built(10, default_max_tokens=5)


@pytest.mark.parametrize(("prompt", "max_tokens"), [(4, 7), (10, None), (11, None), (4, 10**30)])
def test_a_request_beyond_the_context_length_is_refused(prompt: int, max_tokens: int | None) -> None:
    with pytest.raises(ApiError, match=f"{prompt} tokens.* 10 tokens") as refused:
        built(prompt, max_tokens=max_tokens)
    assert refused.value.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


@pytest.mark.parametrize(
    ("limit", "end"),
    [
        ("", " tokens"),
        ("engine.kv_cache_gib", r" tokens \(the server's engine.kv_cache_gib limits it\)"),
        ("engine.context_length", r" tokens \(the server's engine.context_length limits it\)"),
    ],
)
def test_the_error_names_the_setting_that_limits_the_context(limit: str, end: str) -> None:
    model = msgspec.structs.replace(MODEL, context_limit=limit)
    with pytest.raises(ApiError, match=f"this model's maximum context length is 10{end}$"):
        generation_request(chat(), [1] * 11, {}, model, (), "r", nice=False)


def test_a_prompt_with_a_token_beyond_the_embedding_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="messages needs token 4 of the tokenizer") as refused:
        generation_request(chat(), [1, 4, 2], {}, MODEL, (), "r", nice=False)
    assert refused.value.param == "messages"


def test_a_top_k_above_the_vocabulary_size_is_reduced_to_it() -> None:
    assert built(top_k=10**30).sampling.top_k == 4


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"top_logprobs": 3}, 3),
        ({"logprobs": False, "top_logprobs": 3}, 3),
    ],
)
def test_the_number_of_reported_log_probabilities(fields: dict[str, Any], wanted: int | None) -> None:
    assert built(**fields).sampling.top_logprobs == wanted


def test_logit_bias_accepts_only_tokens_of_the_vocabulary() -> None:
    assert built(logit_bias={"0": 1, "3": -2.5}).sampling.logit_bias == {0: 1.0, 3: -2.5}
    with pytest.raises(InvalidRequest, match=r"logit_bias\['4'\]"):
        built(logit_bias={"4": 1})


def test_not_every_token_can_be_banned() -> None:
    bans = {"0": -100, "1": -101, "2": -100}
    assert built(logit_bias=bans)
    with pytest.raises(InvalidRequest, match="every token"):
        built(logit_bias={**bans, "3": -100})


def test_concept_ids_are_completed_and_duplicates_removed() -> None:
    named = chat(steering_concepts=["b", "_worker/a", "_worker/b"]).steering_concepts
    assert named == ("_worker/b", "_worker/a")


DIGESTS = {"b": "b2", "a": "a1", "c": "c3", "same-as-b": "b2"}


def test_the_engine_gets_each_digest_once_and_in_order() -> None:
    names, strengths = list(DIGESTS), {"a1": -0.5, "b2": -0.5, "c3": -0.5}
    for order in (names, names[::-1]):
        steering = built(digests=DIGESTS, steering_concepts=order, steering_strength=-0.5).steering
        assert steering == SteeringSpec(strengths)
        assert list(steering.strengths) == list(strengths)


def test_each_concept_can_have_its_strength() -> None:
    given = {"a": 0.5, "c": 0}
    request = built(digests=DIGESTS, steering_concepts=["c", "b", "a"], steering_strength=given)
    assert request.steering == SteeringSpec({"a1": 0.5, "b2": 1.0})


def test_one_digest_cannot_have_two_strengths() -> None:
    message = "same number for _worker/b and _worker/same-as-b, which have the same examples, got 0.5 and 1"
    with pytest.raises(InvalidRequest, match=message) as refused:
        built(digests=DIGESTS, steering_concepts=["b", "same-as-b"], steering_strength={"b": 0.5})
    assert refused.value.param == "steering_strength"


def test_strength_zero_means_no_steering() -> None:
    assert built(digests=DIGESTS, steering_concepts=["a"], steering_strength=0).steering is None
    assert built(digests=DIGESTS, steering_concepts=["a"], steering_strength={"a": 0}).steering is None


def test_a_strength_without_concepts_means_no_steering() -> None:
    assert built(steering_strength=2).steering is None


def test_scope_mode_and_condition_are_part_of_the_steering() -> None:
    fields = {"steering_scope": "answer", "steering_mode": "clamp"}
    request = built(
        digests=DIGESTS,
        steering_concepts=["a"],
        steering_when={"concept": "c", "above": 0.5, "below": 2},
        **fields,
    )
    condition = SteeringCondition("c3", 0.5, 2.0)
    expected = SteeringSpec({"a1": 1.0}, SteeringScope.ANSWER, SteeringMode.CLAMP, condition)
    assert request.steering == expected
    assert built(**fields).steering is None


def test_readings_keep_the_order_of_the_request() -> None:
    request = built(digests=DIGESTS, steering_readings=["same-as-b", "a", "b"])
    assert (request.readings, request.steering) == (("b2", "a1"), None)


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, []),
        ({"steering_concepts": ["a", "b"], "steering_strength": {"a": 0}}, ["b2"]),
        ({"steering_when": {"concept": "c", "above": 0}}, []),
        ({"steering_concepts": ["a"], "steering_when": {"concept": "c", "above": 0}}, ["a1", "c3"]),
        ({"steering_concepts": ["a"], "steering_readings": ["b"]}, ["a1", "b2"]),
        ({"steering_concepts": ["a"], "steering_strength": 0, "steering_readings": ["a"]}, ["a1"]),
    ],
    ids=str,
)
def test_the_engine_needs_what_steers_decides_or_is_read(fields: dict[str, Any], needed: list[str]) -> None:
    assert sorted(digests_in(built(digests=DIGESTS, **fields))) == needed
