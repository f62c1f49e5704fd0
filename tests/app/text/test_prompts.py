"""Prompts have the same tokens as in transformers, and a caller's text never becomes a control token."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import ApiError, InternalError, InvalidRequest, StartError
from app.schemas.chat import Message
from app.text.prompts import PromptRenderer, load_prompt_renderer
from app.text.tokenizer import Tokenizer
from tests.app.fakes import CHAT_TEMPLATE, SPECIAL_TOKENS, write_model_directory

JOINING = "{% for message in messages %}{{ message['content'] | trim }}{% endfor %}<|im_start|>"
FEATURES = (
    "{%- for message in messages %}\n    {%- if loop.index0 > 99 %}{% break %}{% endif %}\n"
    "    {{- bos_token + message.role | tojson + (message.content | tojson) }}\n"
    "    {% generation %}{{ 'x' }}{% endgeneration %}\n{%- endfor %}{{ eos_token }}"
)


def conversation(*contents: str) -> list[Message]:
    roles = ("user", "assistant") * len(contents)
    return [
        Message(role=role, content=content)  # type: ignore[arg-type]
        for role, content in zip(roles, contents, strict=False)
    ]


def load(directory: Path, template: str | None = CHAT_TEMPLATE) -> tuple[PromptRenderer, Tokenizer]:
    write_model_directory(directory, template)
    tokenizer = Tokenizer(directory)
    renderer = load_prompt_renderer(directory, tokenizer)
    assert renderer is not None
    return renderer, tokenizer


@pytest.fixture(
    scope="module", params=[CHAT_TEMPLATE, JOINING, FEATURES], ids=["chatml", "joining", "features"]
)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiller's renderer and tokenizer, and transformers' tokenizer, from the same files."""
    directory = tmp_path_factory.mktemp("prompts")
    renderer, tokenizer = load(directory, request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import PreTrainedTokenizerFast

        oracle = PreTrainedTokenizerFast(
            tokenizer_file=str(directory / "tokenizer.json"), bos_token="<|im_start|>", eos_token="<|im_end|>"
        )
    oracle.chat_template = request.param
    return renderer, tokenizer, oracle


ordinary = st.text(alphabet="ab<|>é😀 \n\ue000", max_size=8)
hostile = st.lists(st.sampled_from(["<|im_", "end|>", "<|im_end|>", "<", "|>", " ", "a", "start|>"])).map(
    "".join
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(contents=st.lists(ordinary, min_size=1, max_size=3))
def test_ordinary_text_is_encoded_like_in_transformers(models: Any, contents: list[str]) -> None:
    renderer, _, oracle = models
    messages = conversation(*contents)
    dumped = [message.model_dump() for message in messages]
    expected = oracle.apply_chat_template(dumped, add_generation_prompt=True, return_dict=False)
    assert renderer.encode(messages) == expected


@quick
@given(contents=st.lists(hostile, min_size=1, max_size=3))
def test_the_names_of_control_tokens_stay_text(models: Any, contents: list[str]) -> None:
    renderer, tokenizer, _ = models
    control = set(tokenizer.control_tokens.values())
    harmless = renderer.encode(conversation(*("x" for _ in contents)))
    token_ids = renderer.encode(conversation(*contents))
    assert [i for i in token_ids if i in control] == [i for i in harmless if i in control]
    assert tokenizer.decode(token_ids) == renderer._apply(conversation(*contents), {})


def test_a_control_token_name_across_messages_stays_text(tmp_path: Path) -> None:
    renderer, tokenizer = load(tmp_path, JOINING)
    token_ids = renderer.encode(conversation("a<|im_ ", " end|>b", "c"))
    assert token_ids.count(tokenizer.control_tokens["<|im_end|>"]) == 0
    assert tokenizer.decode(token_ids) == "a<|im_end|>bc<|im_start|>"


def test_overlapping_control_token_names_stay_text(tmp_path: Path) -> None:
    renderer, tokenizer = load(tmp_path)
    token_ids = renderer.encode(conversation("<|im_<|im_end|>end|>"))
    assert token_ids.count(tokenizer.control_tokens["<|im_end|>"]) == 1


async def test_a_long_prompt_is_encoded_like_a_short_one(tmp_path: Path) -> None:
    renderer, _ = load(tmp_path)
    messages = conversation("Hello, world! " * 2000)
    assert await renderer.render(messages) == renderer.encode(messages)


def test_a_refusal_by_the_template_is_an_invalid_request(tmp_path: Path) -> None:
    renderer, _ = load(tmp_path, "{{ raise_exception('no system role' ~ 'x' * 9999) }}")
    with pytest.raises(InvalidRequest, match="no system role") as refused:
        renderer.encode(conversation("a"))
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[0].nothing.at_all }}",
        "{{ messages.append(1) }}",
        "{{ range(10 ** 9) | list }}",
        "{% macro bomb() %}{{ bomb() }}{% endmacro %}{{ bomb() }}",
    ],
)
def test_any_other_failure_of_the_template_is_an_internal_error(tmp_path: Path, template: str) -> None:
    renderer, _ = load(tmp_path, template)
    with pytest.raises(InternalError):
        renderer.encode(conversation("a"))


def test_the_template_cannot_leave_its_sandbox(tmp_path: Path) -> None:
    renderer, _ = load(tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ApiError):
        renderer.encode(conversation("a"))


def test_the_server_does_not_start_with_a_broken_template(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="chat template"):
        load(tmp_path, "{% for %}")


@pytest.mark.parametrize(
    "given",
    ["T<|im_end|>", [{"name": "tools", "template": "no"}, {"name": "default", "template": "T<|im_end|>"}]],
)
def test_the_template_may_be_in_the_tokenizers_configuration(tmp_path: Path, given: object) -> None:
    write_model_directory(tmp_path, None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    tokenizer = Tokenizer(tmp_path)
    renderer = load_prompt_renderer(tmp_path, tokenizer)
    assert renderer is not None
    assert tokenizer.decode(renderer.encode(conversation("a"))) == "T<|im_end|>"


def test_a_model_may_have_no_template(tmp_path: Path) -> None:
    write_model_directory(tmp_path, None)
    assert load_prompt_renderer(tmp_path, Tokenizer(tmp_path)) is None


def test_the_fixture_has_the_expected_special_tokens(tmp_path: Path) -> None:
    assert tuple(load(tmp_path)[1].control_tokens) == SPECIAL_TOKENS
