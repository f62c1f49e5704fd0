"""Examples reach the engine as tokens of plain text, or the error names the invalid text."""

from pathlib import Path

import pytest

from app.concepts.concept import Concept, Example, digest_of
from app.concepts.examples import ExampleEncoder
from app.concepts.neutral_texts import NEUTRAL_QUESTIONS, NEUTRAL_TEXTS, TRAINING_PROMPT
from app.concepts.texts import ConceptTexts
from app.concepts.vectors.imported import ServedModel, bind
from app.errors import ApiError, ErrorCode, InvalidRequest
from app.schemas.messages import Message
from app.settings import SteeringSettings
from app.text.prompts import load_text
from app.text.tokenizer import Tokenizer
from inference.interface.concepts import GivenVectors
from tests.app.fakes import CHAT_TEMPLATE, CONTEXT_LENGTH, SPECIAL_TOKENS, write_model_directory

SERVED = ServedModel("tiny", "5f" * 32, hidden_size=8, num_layers=4)


@pytest.fixture(scope="module")
def tokenizer(model_directory: Path) -> Tokenizer:
    return Tokenizer(model_directory)


def encoder(
    directory: Path,
    context_length: int = CONTEXT_LENGTH,
    max_tokens: int = 1000,
    vocab_size: int = 1000,
) -> ExampleEncoder:
    texts = ConceptTexts(*load_text(directory), vocab_size)
    return ExampleEncoder(texts, SERVED, context_length, max_tokens, stop_token_ids=(2, 5))


def rendered(directory: Path, text: str) -> list[int]:
    """The prompt that the chat template makes from a user message."""
    _, renderer = load_text(directory)
    assert renderer is not None
    return renderer.encode([Message(role="user", content=text)])


def concept(*texts: tuple[str, ...]) -> Concept:
    return Concept("_worker/x", "", tuple(Example(*pair) for pair in texts), created=0)


def prompt_length(directory: Path) -> int:
    return len(encoder(directory).encode(concept(("a", "b"))).prompt_token_ids)


@pytest.mark.parametrize("count", [0, 3, len(NEUTRAL_QUESTIONS)])
def test_a_training_asks_as_many_questions_as_configured(model_directory: Path, count: int) -> None:
    texts = ConceptTexts(*load_text(model_directory), 1000)
    few = ExampleEncoder(texts, SERVED, CONTEXT_LENGTH, 1000, num_questions=count)
    assert few.encode(concept(("a", "b"))).questions == [
        rendered(model_directory, question) for question in NEUTRAL_QUESTIONS[:count]
    ]


def test_all_questions_are_the_default_and_the_limit_of_the_setting() -> None:
    assert SteeringSettings().questions == len(NEUTRAL_QUESTIONS)
    with pytest.raises(ValueError, match="less than or equal to 20"):
        SteeringSettings(questions=len(NEUTRAL_QUESTIONS) + 1)


def test_texts_become_tokens_after_the_training_prompt(model_directory: Path, tokenizer: Tokenizer) -> None:
    command = encoder(model_directory).encode(concept(("Hello", "Bye"), ("日本", "x\n")))
    assert command.prompt_token_ids == rendered(model_directory, TRAINING_PROMPT)
    assert command.pair_prompts == [command.prompt_token_ids] * 2
    assert [tokenizer.decode(token_ids) for token_ids in command.positive] == ["Hello", "日本"]
    assert [tokenizer.decode(token_ids) for token_ids in command.negative] == ["Bye", "x\n"]
    assert command.concept == concept(("Hello", "Bye"), ("日本", "x\n")).digest
    assert not command.background
    assert command.vectors is None


def test_the_questions_come_with_the_tokens_that_end_an_answer(model_directory: Path) -> None:
    command = encoder(model_directory).encode(concept(("a", "b")))
    assert command.questions == [rendered(model_directory, text) for text in NEUTRAL_QUESTIONS]
    assert len(set(map(tuple, command.questions))) == len(NEUTRAL_QUESTIONS) >= 8
    assert command.stop_token_ids == (2, 5)


def test_the_questions_end_before_the_first_one_without_room_for_an_answer(model_directory: Path) -> None:
    questions = [rendered(model_directory, text) for text in NEUTRAL_QUESTIONS]
    limit = max(map(len, questions))
    command = encoder(model_directory, context_length=limit).encode(concept(("a", "b")))
    assert command.questions == questions[: list(map(len, questions)).index(limit)]


def test_an_example_may_have_its_own_prompt(model_directory: Path) -> None:
    examples = concept(("a", "b"), ("c", "d", "Why?"), ("e", "f", "Why?"))
    command = encoder(model_directory).encode(examples)
    own = rendered(model_directory, "Why?")
    assert command.pair_prompts == [command.prompt_token_ids, own, own]
    assert own != command.prompt_token_ids


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_control_tokens_in_a_prompt_stay_text(model_directory: Path, name: str) -> None:
    command = encoder(model_directory).encode(concept(("a", "b", f"x{name}y")))
    plain = rendered(model_directory, "xy")
    control_ids = [token_id for token_id in command.pair_prompts[0] if token_id < len(SPECIAL_TOKENS)]
    assert control_ids == [token_id for token_id in plain if token_id < len(SPECIAL_TOKENS)]


def test_a_text_must_fit_the_context_together_with_its_own_prompt(model_directory: Path) -> None:
    own = len(rendered(model_directory, "x" * 90))
    assert own > prompt_length(model_directory)
    assert encoder(model_directory, own + 1).encode(concept(("a", "b", "x" * 90)))
    with pytest.raises(InvalidRequest, match="room for 1") as refused:
        encoder(model_directory, own + 1).encode(concept(("a", "bb", "x" * 90)))
    assert refused.value.param == "examples[0].negative"
    with pytest.raises(
        InvalidRequest, match=rf"prompt has {own} tokens; the model's context has {own}"
    ) as no:
        encoder(model_directory, own).encode(concept(("a", "b"), ("a", "b", "x" * 90)))
    assert no.value.param == "examples[1].prompt"


def test_own_prompts_count_towards_the_limit_for_all_texts(model_directory: Path) -> None:
    own = len(rendered(model_directory, "Why?"))
    assert encoder(model_directory, max_tokens=4 + own).encode(concept(("a", "b"), ("c", "d", "Why?")))
    with pytest.raises(InvalidRequest, match="in total"):
        encoder(model_directory, max_tokens=3 + own).encode(concept(("a", "b"), ("c", "d", "Why?")))


def test_a_prompt_that_the_chat_template_refuses_is_named(tmp_path: Path) -> None:
    demand = "{% if 'no' in messages[0].content %}{{ raise_exception('no such thing') }}{% endif %}"
    write_model_directory(tmp_path, demand + CHAT_TEMPLATE)
    with pytest.raises(InvalidRequest, match="no such thing") as refused:
        encoder(tmp_path).encode(concept(("a", "b"), ("a", "b", "no")))
    assert refused.value.param == "examples[1].prompt"


def test_a_prompt_that_needs_a_token_beyond_the_embedding_is_refused(model_directory: Path) -> None:
    size = max(rendered(model_directory, "hello there"))
    with pytest.raises(InvalidRequest, match=f"needs token {size} of the tokenizer") as refused:
        encoder(model_directory, vocab_size=size).encode(concept(("!", "#", "hello there")))
    assert refused.value.param == "examples[0].prompt"


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


GIVEN = GivenVectors(blocks=(1,), values=bytes(32))


def imported(served: ServedModel, *texts: tuple[str, ...]) -> Concept:
    examples = concept(*texts).examples
    vectors = bind(GIVEN, served, digest_of(examples) if examples else "")
    return Concept("_worker/x", "", examples, created=0, vectors=vectors)


def test_imported_vectors_reach_the_engine_without_pairs(model_directory: Path) -> None:
    wanted = imported(SERVED)
    command = encoder(model_directory).encode(wanted)
    assert command.vectors == GIVEN
    assert command.concept == wanted.digest
    assert command.pair_prompts == command.positive == command.negative == []
    assert command.prompt_token_ids == rendered(model_directory, TRAINING_PROMPT)
    assert command.neutral


def test_imported_vectors_are_measured_with_the_pairs_that_come_with_them(model_directory: Path) -> None:
    command = encoder(model_directory).encode(imported(SERVED, ("a", "b")))
    assert command.vectors == GIVEN
    assert len(command.positive) == len(command.negative) == len(command.pair_prompts) == 1
    assert command.concept != encoder(model_directory).encode(imported(SERVED)).concept


def test_vectors_of_another_model_cannot_be_used(model_directory: Path) -> None:
    other = ServedModel("other", "c0" * 32, hidden_size=8, num_layers=4)
    assert encoder(model_directory).refusal(imported(SERVED)) is None
    assert encoder(model_directory).refusal(concept(("a", "b"))) is None
    with pytest.raises(InvalidRequest, match="belong to the model 'other'"):
        encoder(model_directory).encode(imported(other))
