"""The documentation as text: each block is run or has a reason, and what it names exists.

tests/e2e/test_documentation.py and tests/tiller/test_documentation.py run the blocks.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from compose_spec import PyCompose

from app.cli import build_commands
from app.configuration import read_settings
from app.schemas.chat import ChatRequest
from app.schemas.concepts import ConceptRequest
from app.settings import Settings
from tests.documentation import shown
from tests.documentation.blocks import PAGES, ROOT, SHELL, Block, all_blocks, parse
from tests.documentation.not_run import NOT_RUN, reason
from tests.documentation.reader import check_measurement
from tests.documentation.runners import Runner, runner_of

BLOCKS = all_blocks()
CHART = ROOT / "deploy" / "helm" / "tiller"
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
EXAMPLES = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("examples/*.py")]


def test_each_block_is_run_or_says_why_not() -> None:
    left_out = [
        f"{block.where} [{block.language}] {block.first_line}"
        for block in BLOCKS
        if runner_of(block) is None and reason(block.page, block.first_line) is None
    ]
    assert left_out == []


def test_each_reason_is_for_something() -> None:
    texts = {page: [block.first_line for block in BLOCKS if block.page == page] for page in NOT_RUN}
    for block in BLOCKS:
        if block.page in NOT_RUN and block.language in SHELL:
            texts[block.page] += [command for command, _ in block.commands()]
    unused = [
        (page, beginning)
        for page, reasons in NOT_RUN.items()
        for beginning in reasons
        if not any(text.startswith(beginning) for text in texts[page])
    ]
    assert unused == []


def chats(blocks: list[Block]) -> list[tuple[str, dict[str, Any]]]:
    """The bodies of all chat requests that are sent with curl."""
    found = [
        (block.where, json.loads(body))
        for block in blocks
        if block.language in SHELL
        for body in re.findall(r"-d '(\{.*?\})'", block.text, re.DOTALL)
    ]
    return [(where, body) for where, body in found if "messages" in body and "texts" not in body]


def test_each_chat_is_short_and_calm() -> None:
    """A small model rambles at a high temperature and without `max_tokens`."""
    found = chats(BLOCKS)
    assert {"README.md", "docs/api.md"} <= {where.partition(":")[0] for where, _ in found}
    for where, body in found:
        ChatRequest.model_validate(body, context=Settings())
        assert body["max_tokens"] <= 64, where
        assert body["temperature"] < 0.5, where


PROGRAMS = {block.where: block.text for block in BLOCKS if block.language == "python"}
CHATTING = {where: text for where, text in PROGRAMS.items() if "client.chat" in text or ".chat(" in text}
CHATTING |= {name: (ROOT / name).read_text() for name in EXAMPLES}


@pytest.mark.parametrize("where", CHATTING)
def test_each_program_that_chats_sets_max_tokens_and_temperature(where: str) -> None:
    assert re.search(r"max(imum)?_tokens", CHATTING[where])
    assert "temperature" in CHATTING[where]


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=block.where) for block in BLOCKS if runner_of(block) is Runner.STATIC]
)
def test_each_yaml_file_is_accepted(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if "services" in content:
        PyCompose.from_json(json.dumps(content)).validate()
    elif "examples" in content:
        ConceptRequest.model_validate(content, context=Settings())
    elif block.page == "docs/kubernetes.md":
        jsonschema.validate(content, json.loads((CHART / "values.schema.json").read_text()))
    else:
        (tmp_path / "config.yaml").write_text(block.text)
        assert read_settings(tmp_path / "config.yaml") != Settings()


def named(pattern: str) -> list[tuple[str, str]]:
    """What the pattern finds in the pages' code, in and outside blocks."""
    codes = {page: re.findall(r"`([^`\n]+)`", text) for page, text in TEXTS.items()}
    for block in BLOCKS:
        codes[block.page] += block.text.splitlines()
    return [
        (page, name)
        for page, lines in codes.items()
        for line in lines
        for name in re.findall(pattern, line.removeprefix("$ "))
    ]


def test_each_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    found = named(r"^make ([a-z-]+)")
    assert len(found) > 10
    assert [(page, target) for page, target in found if target not in targets] == []


def test_each_command_of_tiller_exists() -> None:
    root = typer.main.get_command(build_commands())
    commands = {name: getattr(command, "commands", {}) for name, command in root.commands.items()}  # type: ignore[attr-defined]
    found = named(r"^(?:\.venv/bin/)?tiller ([a-z]+(?: [a-z-]+)?)")
    assert len(found) > 20
    for page, text in found:
        command, _, rest = text.partition(" ")
        assert command in commands, f"{page}: tiller {text}"
        if commands[command] and rest:
            assert rest in commands[command], f"{page}: tiller {text}"


def test_each_option_of_tiller_exists() -> None:
    """In code that is one command, such as `tiller serve --config FILE`."""
    root = typer.main.get_command(build_commands())
    found = named(r"^(?:\.venv/bin/)?(tiller .*--.*)")
    assert len(found) > 5
    for page, text in found:
        command: Any = root
        for word in text.split()[1:]:
            command = getattr(command, "commands", {}).get(word, command)
        known = {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        given = re.findall(r"(?<= )--[a-z-]+", text.partition("#")[0])
        assert set(given) <= known | {"--help"}, f"{page}: {text}"


class TestTheTestsThemselves:
    """They would find a mistake."""

    def test_commands_and_their_outputs(self) -> None:
        text = "```console\n$ a -d '{\n  1}'\nout\nmore\n$ b \\\n  c\n```\n"
        [block] = parse("page", text)
        assert list(block.commands()) == [("a -d '{\n  1}'", "out\nmore"), ("b \\\n  c", "")]

    def test_a_block_in_a_list_is_a_block(self) -> None:
        [block] = parse("page", "1. One\n\n    ```yaml\n    a: 1\n    ```\n")
        assert (block.language, block.text, block.line) == ("yaml", "a: 1\n", 3)

    @pytest.mark.parametrize(
        ("documented", "answered"),
        [
            ('{"a":1}', {"b": 1}),
            ('{"a":1}', {"a": "1"}),
            ('{"a":null}', {"a": 1}),
            ('{"a":[{"b":1},…]}', {"a": []}),
            ('{"a":true}', {"a": 1}),
        ],
    )
    def test_answers_that_look_different(self, documented: str, answered: Any) -> None:
        assert not shown.is_part_of(shown.parse(documented), answered)

    def test_answers_that_look_the_same(self) -> None:
        documented = shown.parse('{"a":"x…","b":{…},"c":[{"d":1.5,…},…]}')
        assert shown.is_part_of(documented, [{"a": "y", "b": {"z": 1}, "c": [{"d": 2, "e": None}], "f": 1}])

    def test_events(self) -> None:
        stream = 'data: {…,"a":1}\n\ndata: {"a":2,…}\n\ndata: [DONE]\n'
        assert shown.events(stream) == [{"a": 1}, {"a": 2}]

    def test_printed_lines(self) -> None:
        assert shown.appears_in("Token: tiller_…", "Token: tiller_abc\nstored")
        assert not shown.appears_in("Token: tiller_…\nb", "Token: tiller_abc\nstored")
        assert not shown.appears_in("Token: tiller_…", "Token: abc")

    @pytest.mark.parametrize(
        "command", ["python -m benchmarks.missing", "python -m benchmarks.growth --missing"]
    )
    def test_measurements_that_do_not_exist(self, command: str) -> None:
        with pytest.raises((AssertionError, OSError)):
            check_measurement(command)
