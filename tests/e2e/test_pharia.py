"""A Pharia checkpoint, laid out as the real one but tiny, answers chats."""

from collections.abc import Iterator

import pytest

from tests.e2e.conftest import MODEL, Server, serving
from tests.inference.models.pharia_checkpoint import (
    BEGIN,
    CHARACTERS,
    CONTROL_TOKENS,
    END,
    END_HEADER,
    END_OF_TURN,
    START_HEADER,
    make_weights,
    reference_greedy,
    write_checkpoint,
)

VOCAB_SIZE = len(CONTROL_TOKENS) + len(CHARACTERS)
WEIGHTS = make_weights(vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def pharia(embedded_config: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("pharia")
    source = write_checkpoint(directory / "model", WEIGHTS, trace=directory / "trace", vocab_size=VOCAB_SIZE)
    model = {"name": MODEL, "source": str(source), "chat_template": "configs/chat_templates/pharia-1.jinja"}
    with serving({**embedded_config, "model": model, "engine": {"kv_cache_gib": 0.01}}, directory) as server:
        yield server
    assert not (directory / "trace").exists(), "code of the checkpoint ran"


def ids(text: str) -> list[int]:
    return [len(CONTROL_TOKENS) + CHARACTERS.index(character) for character in text]


def turn(role: str, text: str = "") -> list[int]:
    return [START_HEADER, *ids(role), END_HEADER, *ids("\n" + text)]


def test_a_chat_is_answered_as_the_reference_continues_the_prompt(pharia: Server) -> None:
    prompt = [BEGIN, *turn("system", "Be brief."), END_OF_TURN, *turn("user", "Hi"), END_OF_TURN]
    prompt += turn("assistant")
    expected = reference_greedy(WEIGHTS, prompt, 24)
    ends = [i for i, token in enumerate(expected) if token in (END, END_OF_TURN)]
    expected = expected[: ends[0] if ends else None]
    assert len(set(expected)) > 3, "the answer varies too little"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    answer = pharia.chat("", messages=messages, max_tokens=24)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    texts = [CHARACTERS[token - len(CONTROL_TOKENS)] for token in expected if token >= len(CONTROL_TOKENS)]
    assert answer["choices"][0]["message"]["content"] == "".join(texts)
    assert answer["choices"][0]["finish_reason"] == ("stop" if ends else "length")


@pytest.mark.parametrize("token", [END, END_OF_TURN])
def test_both_end_tokens_end_the_answer(pharia: Server, token: int) -> None:
    answer = pharia.chat("Hi", max_tokens=5, logit_bias={str(token): 100})
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (answer["choices"][0]["message"]["content"], answer["usage"]["completion_tokens"]) == ("", 0)
