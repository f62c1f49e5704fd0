"""LLM: chat, stream and generate_many."""

import asyncio
import gc
import inspect
import math
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.interface.protocol import StepReport
from inference.runner.recovery import BrokenEngineError
from tests.tiller.conftest import MakeLLM
from tiller import LLM, EngineError, InvalidRequestError, LoadError, Options, Request

QUESTION = "hi there, how is the weather?"
CONVERSATION = [
    {"role": "system", "content": "a | b"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "how is <the> weather?"},
    {"role": "user", "content": QUESTION},
]


@contextmanager
def at_step(llm: LLM, number: int, act: Callable[[], None]) -> Iterator[None]:
    """In the `with` block, `act` is called in the middle of the engine's step of this number."""
    engine = llm._loaded().driver.engine
    apply, steps = engine._apply, 0

    def apply_then_act(*arguments: object) -> StepReport:
        nonlocal steps
        steps += 1
        if steps == number:
            act()
        return apply(*arguments)

    with patch.object(engine, "_apply", apply_then_act):
        yield
    assert steps >= number


# The oracle: plain transformers.


@pytest.mark.parametrize("messages", [QUESTION, CONVERSATION], ids=["text", "conversation"])
def test_greedy_answers_are_those_of_transformers(
    llm: LLM, checkpoint: Path, messages: str | list[dict[str, str]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
    expected = output[0, prompt["input_ids"].shape[1] :].tolist()
    answer = llm.chat(messages, max_tokens=24, temperature=0)
    assert answer.num_prompt_tokens == prompt["input_ids"].shape[1]
    assert answer.token_ids == expected[: len(answer.token_ids)]
    assert len(answer.token_ids) == len(expected) - (answer.finish_reason == "stop")
    assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_log_probabilities_are_those_of_transformers(llm: LLM, checkpoint: Path) -> None:
    answer = llm.chat(QUESTION, max_tokens=8, temperature=0, logprobs=2)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    turns = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer.token_ids])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0].tolist()
    assert answer.logprobs is not None
    assert [entry.logprob for entry in answer.logprobs] == pytest.approx(expected, abs=1e-3)
    assert [entry.token for entry in answer.logprobs] == answer.tokens
    assert {len(entry.top_logprobs) for entry in answer.logprobs} == {2}


# What an answer holds.


def test_a_stop_sequence_ends_the_text_and_its_tokens(llm: LLM) -> None:
    whole = llm.chat(QUESTION, max_tokens=24, temperature=0)
    stop = whole.text[len(whole.text) // 2 :][:3]
    cut = llm.chat(QUESTION, max_tokens=24, temperature=0, stop=stop, logprobs=True)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.logprobs is not None
    assert len(cut.token_ids) == len(cut.tokens) == len(cut.logprobs) < len(whole.tokens)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


def test_max_tokens_ends_an_answer(llm: LLM) -> None:
    answer = llm.chat(QUESTION, max_tokens=3, temperature=0)
    assert (answer.finish_reason, len(answer.token_ids), len(answer.tokens)) == ("length", 3, 3)
    assert (answer.logprobs, answer.readings, answer.applied) == (None, {}, {})
    assert str(answer) == answer.text


def test_without_max_tokens_an_answer_has_at_most_256(llm: LLM) -> None:
    answer = llm.chat("hi", temperature=0, logit_bias=dict.fromkeys(llm._loaded().end_token_ids, -100))
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 256)


def test_n_answers_come_as_a_list(llm: LLM) -> None:
    answers = llm.chat(QUESTION, n=4, max_tokens=8, temperature=2)
    assert len(answers) == 4
    assert len({tuple(answer.token_ids) for answer in answers}) > 1
    assert [len(llm.chat(QUESTION, n=1, max_tokens=2))] == [1]


def test_the_seed_repeats_sampled_answers(make_llm: MakeLLM) -> None:
    answers = []
    for seed in (1, 1, 2):
        with make_llm(seed=seed) as llm:
            answers.append(llm.chat(QUESTION, max_tokens=8, temperature=2).token_ids)
    assert answers[0] == answers[1] != answers[2]


# Streams.


def test_the_pieces_of_a_stream_are_the_text(llm: LLM) -> None:
    pieces = list(llm.stream(QUESTION, max_tokens=24, temperature=0))
    assert len(pieces) > 1
    assert "".join(pieces) == llm.chat(QUESTION, max_tokens=24, temperature=0).text


def test_a_closed_stream_ends_its_generation(llm: LLM) -> None:
    stream = llm.stream(QUESTION, max_tokens=200, temperature=0)
    next(stream)
    assert not llm._loaded().driver.engine.is_idle
    stream.close()
    assert llm._loaded().driver.engine.is_idle


def test_other_calls_run_while_a_stream_is_open(llm: LLM) -> None:
    alone = llm.chat(QUESTION, max_tokens=24, temperature=0).text
    stream = llm.stream(QUESTION, max_tokens=24, temperature=0)
    first = next(stream)
    assert llm.chat("hi", max_tokens=4, temperature=0) == llm.chat("hi", max_tokens=4, temperature=0)
    assert first + "".join(stream) == alone


def test_a_stream_that_is_dropped_during_a_step_ends_its_generation(llm: LLM) -> None:
    streams = [llm.stream(QUESTION, max_tokens=200, temperature=0)]
    next(streams[0])
    with at_step(llm, 2, streams.clear):  # the engine steps in this thread when the stream's finalizer runs
        llm.chat("hi", max_tokens=4, temperature=0)


# Many requests.

MIXED: list[Request] = [
    {"messages": QUESTION, "max_tokens": 12, "temperature": 0},
    {"messages": "hi", "max_tokens": 20, "temperature": 0, "frequency_penalty": 1.0},
    Request(messages=CONVERSATION, max_tokens=9, temperature=0, logprobs=3),
    Request(messages=QUESTION, max_tokens=16, top_k=1, stop=["zz", "qq"]),
]


def test_a_mixed_batch_gives_what_each_request_gives_alone(llm: LLM) -> None:
    together = llm.generate_many(MIXED)
    alone = [llm.generate_many([request])[0] for request in MIXED]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.logprobs is not None for answer in together] == [False, False, True, False]


def test_the_requests_of_a_batch_run_in_the_same_steps(llm: LLM) -> None:
    driver = llm._loaded().driver
    requests: list[Request] = [{"messages": "hi", "max_tokens": 10, "top_k": 1} for _ in range(8)]
    before = driver.num_steps
    llm.generate_many(requests[:1])
    for_one = driver.num_steps - before
    llm.generate_many(requests)
    assert driver.num_steps - before - for_one <= for_one + 2


def test_more_requests_than_the_engine_queues_are_fed_as_it_has_room(make_llm: MakeLLM) -> None:
    with make_llm(max_running=2) as llm:
        llm._loaded().driver.engine._max_queued = 1
        requests: list[Request] = [
            {"messages": "hi", "max_tokens": count, "top_k": 1} for count in range(1, 9)
        ]
        answers = llm.generate_many(requests)
        longest = llm.chat("hi", max_tokens=8, top_k=1)
    assert [answer.token_ids for answer in answers] == [longest.token_ids[:count] for count in range(1, 9)]


def test_no_requests_have_no_answers(llm: LLM) -> None:
    assert llm.generate_many([]) == []


# Threads, event loops and interrupts.


def test_threads_share_the_steps(llm: LLM) -> None:
    expected = llm.chat(QUESTION, max_tokens=24, temperature=0)
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(llm.chat(QUESTION, max_tokens=24, temperature=0)), daemon=True
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [expected] * 4


async def test_calls_work_while_an_event_loop_runs(llm: LLM) -> None:
    assert asyncio.get_running_loop().is_running()
    answer = llm.chat(QUESTION, max_tokens=8, temperature=0)
    assert await asyncio.to_thread(llm.chat, QUESTION, max_tokens=8, temperature=0) == answer


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_call_ends_its_requests_and_no_others(llm: LLM) -> None:
    expected = llm.chat(QUESTION, max_tokens=24, temperature=0)
    stream = llm.stream(QUESTION, max_tokens=24, temperature=0)
    first = next(stream)
    with at_step(llm, 3, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        llm.generate_many([{"messages": "hi", "max_tokens": 200}] * 3)
    assert len(llm._loaded().driver.engine._sequences) == 1
    assert first + "".join(stream) == expected.text
    assert llm.chat(QUESTION, max_tokens=24, temperature=0) == expected


# Errors.


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"temperature": 3}, "temperature", "temperature must be at most 2, got 3"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, got 0"),
        ({"max_tokens": "5"}, "max_tokens", "max_tokens must be an integer, got '5'"),
        ({"logprobs": 21}, "logprobs", "logprobs must be at most 20, got 21"),
        ({"stop": 5}, "stop", "stop must be a string or an array of strings, got 5"),
        ({"logit_bias": {-1: 1}}, "logit_bias['-1']", "logit_bias['-1'] is not a token id, got '-1'"),
        ({"scope": "prompts"}, "scope", "scope must be 'all', 'prompt' or 'answer', got 'prompts'"),
        ({"mode": 1}, "mode", "mode must be 'add', 'ablate' or 'clamp', got 1"),
        ({"n": 99}, "n", "n must be at most 16, got 99"),
    ],
)
def test_a_bad_option_is_a_value_error_that_names_it(
    llm: LLM, options: dict[str, object], param: str, message: str
) -> None:
    with pytest.raises(ValueError, match=r"must|not") as caught:
        llm.chat("hi", **options)
    assert isinstance(caught.value, InvalidRequestError)
    assert (caught.value.param, str(caught.value)) == (param, message)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "assistant", "content": "hi"}], "messages[0].role"),
        (None, "messages"),
        (5, "messages"),
    ],
)
def test_bad_messages_are_a_value_error(llm: LLM, messages: object, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        llm.chat(messages, max_tokens=1)
    assert caught.value.param == param


def test_a_prompt_beyond_the_context_is_a_value_error(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="maximum context length is 512 tokens") as caught:
        llm.chat("hi " * 600)
    assert caught.value.param == "messages"


def test_an_unknown_option_is_a_type_error(llm: LLM) -> None:
    with pytest.raises(TypeError, match="'temprature' is not an option"):
        llm.chat("hi", temprature=0)
    with pytest.raises(TypeError, match="'stream' is not an option"):
        llm.generate_many([{"messages": "hi", "stream": True}])


@pytest.mark.parametrize("requests", [["hi"], {"messages": "hi"}])
def test_a_request_that_is_no_dictionary_is_a_type_error(llm: LLM, requests: Any) -> None:
    with pytest.raises(TypeError, match=r"^requests\[0\] must be a dictionary .*, got str"):
        llm.generate_many(requests)


def test_numbers_of_numpy_count_as_numbers(llm: LLM) -> None:
    options = {"max_tokens": 3, "temperature": 0, "logprobs": 2, "logit_bias": {5: 1.5}}
    theirs = {
        "max_tokens": np.int64(3),
        "temperature": np.float32(0),
        "logprobs": np.int8(2),
        "logit_bias": {np.int64(5): np.float32(1.5)},
    }
    assert llm.chat("hi", **theirs) == llm.chat("hi", **options)


def test_a_bad_request_among_many_is_named_and_none_runs(llm: LLM) -> None:
    before = llm._loaded().driver.num_steps
    with pytest.raises(
        InvalidRequestError, match=r"^requests\[1\]\.top_p must be at most 1, got 2$"
    ) as caught:
        llm.generate_many([{"messages": "hi"}, {"messages": "hi", "top_p": 2}])
    assert caught.value.param == "requests[1].top_p"
    assert llm._loaded().driver.num_steps == before


def test_a_request_that_cannot_be_computed_is_an_engine_error(llm: LLM) -> None:
    logits = torch.nn.functional.linear
    with (
        patch("torch.nn.functional.linear", lambda *parts: logits(*parts) * math.nan),
        pytest.raises(EngineError, match="the request failed: the model's output is not finite"),
    ):
        llm.chat("a new prompt", max_tokens=4)
    assert llm.chat("a new prompt", max_tokens=4).token_ids


def test_a_broken_engine_is_an_engine_error(make_llm: MakeLLM) -> None:
    def break_down() -> None:
        raise BrokenEngineError("several steps computed nothing")

    with make_llm() as llm:
        with at_step(llm, 2, break_down), pytest.raises(EngineError, match="several steps"):
            llm.chat("hi", max_tokens=4)
        with pytest.raises(EngineError, match="has failed"):
            llm.chat("hi", max_tokens=4)


def test_bad_arguments_of_the_constructor_are_value_errors(make_llm: MakeLLM) -> None:
    with pytest.raises(InvalidRequestError, match="dtype must be") as caught:
        make_llm(dtype="int4")
    assert caught.value.param == "dtype"


def test_a_model_that_is_not_there_cannot_be_loaded(make_llm: MakeLLM, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="missing"):
        make_llm(tmp_path / "missing")


def test_a_model_without_a_chat_template_cannot_chat(
    make_llm: MakeLLM, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path / "base", ignore=shutil.ignore_patterns("chat_template.jinja"))
    with make_llm(tmp_path / "base") as llm, pytest.raises(InvalidRequestError, match="no chat template"):
        llm.chat("hi")


# Notebooks.


def test_the_options_are_in_the_signatures() -> None:
    for method in (LLM.chat, LLM.stream):
        assert (
            list(Options.__annotations__)
            == list(inspect.signature(method).parameters)[-len(Options.__annotations__) :]
        )


# The end.


def test_a_closed_llm_refuses_calls_and_is_freed(make_llm: MakeLLM) -> None:
    llm = make_llm()
    llm.chat("hi", max_tokens=2)
    engine = weakref.ref(llm._loaded().driver.engine)
    llm.close()
    llm.close()
    gc.collect()
    assert engine() is None
    for call in (lambda: llm.chat("hi"), lambda: llm.train([]), lambda: llm.concepts):
        with pytest.raises(EngineError, match="closed"):
            call()
