"""Chat templates are found, compiled and rendered like in transformers, and tried when the server starts."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.errors import ApiError, InternalError, InvalidRequest, StartError
from app.text.chat_template import ChatTemplate, load_chat_template
from app.text.prompts import load_text
from app.text.template_trial import try_template
from app.text.tokenizer import Tokenizer
from tests.app.fakes import CHAT_TEMPLATE, write_model_directory
from tests.app.text.test_prompts import conversation

TURNS = [("system", "be brief"), ("user", "hi"), ("assistant", "yes"), ("user", "<b> é")]

PARTS_ONLY = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
)
FEATURES = (
    "{%- for message in messages %}\n    {%- if loop.index0 > 99 %}{% break %}{% endif %}\n"
    "    {{- bos_token + message.role | tojson + (message.content | tojson) }}\n"
    "    {% generation %}{{ 'x' }}{% endgeneration %}\n{%- endfor %}{{ eos_token }}"
)
TOOLS = (
    "{% if tools is not none %}{{ tools | length }}{% endif %}"
    "{% if documents is not none %}{{ documents[0] }}{% endif %}"
    "{% if tools is defined %}defined{% endif %}{{ xtra_token is defined }}" + CHAT_TEMPLATE
)


def rendered(directory: Path, template: str) -> str:
    return ChatTemplate(template, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}).render(TURNS)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, FEATURES, TOOLS], ids=["chatml", "features", "tools"])
def test_it_renders_like_in_transformers(tmp_path: Path, template: str) -> None:
    write_model_directory(tmp_path, template)
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": role, "content": text} for role, text in TURNS]
    expected = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    loaded = load_chat_template(tmp_path)
    assert loaded is not None
    assert loaded.render(TURNS) == expected


def write_files(directory: Path, files: dict[str, Any]) -> None:
    write_model_directory(directory, None)
    (directory / "tokenizer_config.json").unlink()
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


NAMED = [{"name": "tools", "template": "no"}, {"name": "default", "template": "T"}]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"chat_template": "T"}},
        {"tokenizer_config.json": {"chat_template": NAMED}},
        {"chat_template.json": {"chat_template": "T"}},
        {"chat_template.json": {"chat_template": NAMED}},
        {"chat_template.jinja": "T", "tokenizer_config.json": {"chat_template": "no"}},
        {"chat_templates/default.jinja": "T", "chat_templates/tool_use.jinja": "no"},
        {"additional_chat_templates/default.jinja": "T"},
        {"tokenizer_config.json": {"chat_template": "T"}, "chat_template.json": {"chat_template": "no"}},
    ],
)
def test_it_is_found_wherever_a_checkpoint_may_have_it(tmp_path: Path, files: dict[str, Any]) -> None:
    write_files(tmp_path, files)
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.source == "T"


def test_a_file_can_replace_the_models_own_template(tmp_path: Path) -> None:
    write_model_directory(tmp_path)
    (tmp_path / "mine.jinja").write_text("MINE")
    template = load_chat_template(tmp_path, tmp_path / "mine.jinja")
    assert template is not None
    assert template.source == "MINE"


def test_a_model_may_have_no_template(tmp_path: Path) -> None:
    write_model_directory(tmp_path, None)
    assert load_text(tmp_path)[1] is None


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"bos_token": "<|im_start|>"}},
        {"tokenizer_config.json": {"bos_token": {"content": "<|im_start|>", "lstrip": False}}},
        {"special_tokens_map.json": {"bos_token": "<|im_start|>"}},
        {"special_tokens_map.json": {"bos_token": {"content": "<|im_start|>"}}, "tokenizer_config.json": {}},
    ],
)
def test_special_tokens_may_be_in_either_file(tmp_path: Path, files: dict[str, Any]) -> None:
    write_files(tmp_path, {**files, "chat_template.jinja": "{{ bos_token }}"})
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.render(TURNS) == "<|im_start|>"


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"]
)
@pytest.mark.parametrize("content", ["{", "[]", "\ud800"])
def test_a_broken_file_is_named_at_start(tmp_path: Path, name: str, content: str) -> None:
    write_files(tmp_path, {})
    (tmp_path / name).write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(StartError, match=name):
        load_chat_template(tmp_path)


def test_a_refusal_by_the_template_is_an_invalid_request() -> None:
    template = ChatTemplate("{{ raise_exception('no system role' ~ 'x' * 9999) }}", {})
    with pytest.raises(InvalidRequest, match="no system role") as refused:
        template.render(TURNS)
    assert len(refused.value.message) < 300


FAILING = [
    "{{ 1 / 0 }}",
    "{{ messages[0].nothing.at_all }}",
    "{{ messages.append(1) }}",
    "{{ range(10 ** 9) | list }}",
    "{% macro bomb() %}{{ bomb() }}{% endmacro %}{{ bomb() }}",
]


@pytest.mark.parametrize("source", FAILING)
def test_any_other_failure_of_the_template_is_an_internal_error(source: str) -> None:
    with pytest.raises(InternalError):
        ChatTemplate(source, {}).render(TURNS)


def test_the_template_cannot_leave_its_sandbox() -> None:
    with pytest.raises(ApiError):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}", {}).render(TURNS)


def test_a_template_that_is_not_jinja_is_found_at_start(tmp_path: Path) -> None:
    write_model_directory(tmp_path, "{% for %}")
    with pytest.raises(StartError, match="not valid Jinja"):
        load_text(tmp_path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        *((source, "failed") for source in FAILING),
        ("{{ raise_exception('never') }}", "never"),
        ("", "drops the user's text"),
        ("{% for message in messages %}{{ message['role'] }}{% endfor %}", "drops the user's text"),
    ],
)
def test_a_template_that_cannot_be_used_is_found_at_start(source: str, words: str) -> None:
    with pytest.raises(StartError, match="chat template") as refused:
        try_template(ChatTemplate(source, {}))
    assert words in str(refused.value)


def test_a_template_that_reads_lists_of_parts_gets_them(tmp_path: Path) -> None:
    """Given a string, this template silently drops it."""
    write_model_directory(tmp_path, PARTS_ONLY)
    tokenizer, renderer = load_text(tmp_path)
    assert renderer is not None
    token_ids = renderer.encode(conversation("hi <|im_end|>"))
    assert tokenizer.decode(token_ids) == "<|im_start|>user\nhi <|im_end|><|im_end|>\n"
    assert token_ids.count(tokenizer.control_tokens["<|im_end|>"]) == 1


def test_a_template_that_reads_both_forms_gets_strings() -> None:
    text = "m['content'] if m['content'] is string else m['content'][0]['text']"
    source = "{% for m in messages %}{{ " + text + " }}{% endfor %}"
    assert not try_template(ChatTemplate(source, {})).template.as_parts


def test_a_list_of_parts_that_is_written_as_it_is_does_not_count_as_read() -> None:
    source = "{% for m in messages %}{{ m['content'][:10] ~ m['content'] }}{% endfor %}"
    assert not try_template(ChatTemplate(source, {})).template.as_parts


def test_named_special_tokens_reach_the_template(tmp_path: Path) -> None:
    """Like Gemma 3's `image_token`."""
    write_model_directory(tmp_path, "{{ image_token }}{{ messages[-1]['content'] }}")
    config = {"extra_special_tokens": {"image_token": "<|im_start|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    template = load_chat_template(tmp_path)
    assert template is not None
    messages = [{"role": "user", "content": "hi"}]
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False)
    assert template.render([("user", "hi")]) == expected == "<|im_start|>hi"


def test_a_template_may_demand_or_refuse_a_system_message() -> None:
    demands = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system?') }}{% endif %}" + CHAT_TEMPLATE
    )
    refuses = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('system!') }}{% endif %}" + CHAT_TEMPLATE
    )
    assert len(try_template(ChatTemplate(demands, {})).faults) == 2
    assert len(try_template(ChatTemplate(refuses, {})).faults) == 2


def test_a_failure_for_some_conversations_is_logged_at_start(caplog: pytest.LogCaptureFixture) -> None:
    source = "{% if messages[0]['role'] == 'system' %}{{ 1 / 0 }}{% endif %}" + CHAT_TEMPLATE
    with caplog.at_level(logging.WARNING):
        try_template(ChatTemplate(source, {}))
    assert caplog.messages == [
        "the model's chat template failed in line 1: ZeroDivisionError, in chats of these roles: "
        "system, user; system, user, assistant, user"
    ]


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (CHAT_TEMPLATE, "<|im_end|>"),
        ("{% for m in messages %}{{ m['content'] }} \n <|endoftext|>{% endfor %}", "<|endoftext|>"),
        ("{% for m in messages %}<|im_start|>{{ m['content'] | upper }}{% endfor %}", None),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", None),
        ("{{ messages[-1]['content'] }}", None),
        # Like gpt-oss: the last answer ends with another token than the earlier ones.
        (
            "{% for m in messages %}{{ m['content'] }}{% if loop.last and not add_generation_prompt %}"
            "<|im_end|>{% else %}<|endoftext|>{% endif %}{% endfor %}",
            "<|im_end|>",
        ),
        # Like Kimi K3: the same token closes the reasoning.
        (
            "{% for m in messages %}{% if m.reasoning %}{{ m.reasoning }}<|im_end|>{% endif %}"
            "{{ m['content'] }}<|im_end|>{% endfor %}",
            None,
        ),
    ],
)
def test_the_token_that_closes_an_assistants_turn_is_found(
    tmp_path: Path, template: str, closing: str | None
) -> None:
    write_model_directory(tmp_path, template)
    trial = try_template(ChatTemplate(template, {}))
    assert trial.closing_token(Tokenizer(tmp_path, trial.texts).reserved_tokens) == closing
