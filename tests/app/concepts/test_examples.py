"""Examples reach the engine as tokens of plain text, or the error names the invalid text."""

from pathlib import Path

import pytest

from app.concepts.concept import Concept, Example
from app.concepts.examples import ExampleEncoder
from app.concepts.neutral_texts import NEUTRAL_TEXTS, TRAINING_PROMPT
from app.errors import ApiError, ErrorCode, InvalidRequest
from app.schemas.messages import Message
from app.text.prompts import load_text
from app.text.tokenizer import Tokenizer
from tests.app.fakes import CHAT_TEMPLATE, CONTEXT_LENGTH, SPECIAL_TOKENS, write_model_directory


@pytest.fixture(scope="module")
def tokenizer(model_directory: Path) -> Tokenizer:
    return Tokenizer(model_directory)


def encoder(
    directory: Path,
    context_length: int = CONTEXT_LENGTH,
    max_tokens: int = 1000,
    vocab_size: int = 1000,
) -> ExampleEncoder:
    return ExampleEncoder(*load_text(directory), context_length, max_tokens, vocab_size)


def concept(*texts: tuple[str, str]) -> Concept:
    return Concept("_worker/x", "", tuple(Example(*pair) for pair in texts), created=0)


def prompt_length(directory: Path) -> int:
    return len(encoder(directory).encode(concept(("a", "b"))).prompt_token_ids)


def test_texts_become_tokens_after_the_training_prompt(model_directory: Path, tokenizer: Tokenizer) -> None:
    command = encoder(model_directory).encode(concept(("Hello", "Bye"), ("日本", "x\n")))
    _, renderer = load_text(model_directory)
    assert renderer is not None
    assert command.prompt_token_ids == renderer.encode([Message(role="user", content=TRAINING_PROMPT)])
    assert [tokenizer.decode(token_ids) for token_ids in command.positive] == ["Hello", "日本"]
    assert [tokenizer.decode(token_ids) for token_ids in command.negative] == ["Bye", "x\n"]
    assert command.concept == concept(("Hello", "Bye"), ("日本", "x\n")).digest
    assert not command.background


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_control_tokens_in_texts_stay_text(model_directory: Path, tokenizer: Tokenizer, name: str) -> None:
    command = encoder(model_directory).encode(concept((f"a{name}b", name)))
    control_ids = set(tokenizer.control_tokens.values())
    for token_ids in (command.positive[0], command.negative[0]):
        assert control_ids.isdisjoint(token_ids)
    assert tokenizer.decode(command.positive[0]) == f"a{name}b"


def test_neutral_texts_differ_and_fit_the_context(model_directory: Path) -> None:
    room = 10
    context_length = prompt_length(model_directory) + room
    for neutral in (
        encoder(model_directory).encode(concept(("a", "b"))).neutral,
        encoder(model_directory, context_length).encode(concept(("a", "b"))).neutral,
    ):
        assert len(neutral) == len(set(map(tuple, neutral))) == len(NEUTRAL_TEXTS)
    assert all(len(token_ids) == room for token_ids in neutral)


@pytest.mark.parametrize(
    ("texts", "path"),
    [
        ([("a" * 12, "b"), ("c", "d")], "examples[0].positive"),
        ([("a", "b"), ("c", "d" * 12)], "examples[1].negative"),
    ],
)
def test_a_text_must_fit_the_context_together_with_the_prompt(
    model_directory: Path, texts: list[tuple[str, str]], path: str
) -> None:
    """Each letter of these texts is a separate token."""
    prompt = prompt_length(model_directory)
    assert encoder(model_directory, prompt + 12).encode(concept(*texts))
    with pytest.raises(InvalidRequest) as refused:
        encoder(model_directory, prompt + 11).encode(concept(*texts))
    assert refused.value.param == path
    for word in (path, "12 tokens", "11"):
        assert word in refused.value.message


def test_a_prompt_as_long_as_the_context_leaves_no_room(model_directory: Path) -> None:
    with pytest.raises(InvalidRequest, match="room for 0"):
        encoder(model_directory, prompt_length(model_directory)).encode(concept(("a", "b")))


def test_all_texts_together_have_a_limit(model_directory: Path) -> None:
    texts = [("a" * 3, "b" * 3), ("c" * 3, "d" * 3)]
    assert encoder(model_directory, max_tokens=12).encode(concept(*texts))
    with pytest.raises(InvalidRequest, match="at most 11 tokens") as refused:
        encoder(model_directory, max_tokens=11).encode(concept(*texts))
    assert refused.value.param == "examples"


def test_a_text_without_tokens_is_refused_by_name(
    model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tokenizers drop control characters."""
    target = encoder(model_directory)
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text: [] if text == "\x01" else encode(self, text))
    with pytest.raises(InvalidRequest, match="no tokens") as refused:
        target.encode(concept(("a", "b"), ("c", "\x01")))
    assert refused.value.param == "examples[1].negative"


def test_a_model_without_a_chat_template_cannot_be_steered(tmp_path: Path) -> None:
    write_model_directory(tmp_path, chat_template=None)
    with pytest.raises(ApiError, match="no chat template") as refused:
        encoder(tmp_path).encode(concept(("a", "b")))
    assert refused.value.code is ErrorCode.MISSING_CAPABILITY


def test_a_model_whose_template_needs_a_system_message_cannot_be_steered(tmp_path: Path) -> None:
    demand = "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    write_model_directory(tmp_path, demand + CHAT_TEMPLATE)
    with pytest.raises(ApiError, match="conversation of one message") as refused:
        encoder(tmp_path).encode(concept(("a", "b")))
    assert refused.value.code is ErrorCode.MISSING_CAPABILITY


def test_a_text_that_needs_a_token_beyond_the_embedding_is_refused(model_directory: Path) -> None:
    with pytest.raises(
        InvalidRequest, match=r"examples\[0\]\.negative needs token \d+ of the tokenizer"
    ) as error:
        encoder(model_directory, vocab_size=10).encode(concept(("!", "z")))
    assert error.value.param == "examples[0].negative"
