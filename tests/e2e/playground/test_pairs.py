"""Pairs from pasted texts. The page's own module runs in the browser."""

import json
from typing import Any

import pytest
from playwright.sync_api import Page

PAIR = {"positive": "Oui, merci", "negative": "Yes", "prompt": ""}
PARSE = """async (text) => {
    const { parsePairs } = await import("/playground/concepts/pairs.js");
    try { return await parsePairs(text); } catch (error) { return error.message; }
}"""


def parse(modules: Page, text: str) -> Any:
    return modules.evaluate(PARSE, text)


@pytest.mark.parametrize(
    "text",
    [
        'positive,negative\n"Oui, merci",Yes',
        "negative;positive\r\nYes;Oui, merci\r\n",
        "positive\tnegative\nOui, merci\tYes\n",
        '"Oui, merci",Yes',
        "Oui, merci\tYes\t\n",
        'Positive,Negative,note\n"Oui, merci",Yes,x\n\n',
        '[{"positive": "Oui, merci", "negative": "Yes"}]',
        '{"examples": [{"positive": "Oui, merci", "negative": "Yes"}]}',
        '{"positive": "Oui, merci", "negative": "Yes"}\n',
        '\ufeff{"positive": "Oui, merci", "negative": "Yes", "prompt": null}',
        "examples:\n  - positive: Oui, merci\n    negative: 'Yes'\n",
        "- positive: Oui, merci\n  negative: 'Yes'\n",
        "# a comment\nexamples:\n- {positive: 'Oui, merci', negative: 'Yes'}",
    ],
)
def test_a_pair_is_read(modules: Page, text: str) -> None:
    assert parse(modules, text)["pairs"] == [PAIR]


def test_a_file_of_configs_has_name_description_and_pairs(modules: Page) -> None:
    text = (
        "name: french\ndescription: In French\nexamples:\n  - {prompt: Hm?, positive: Oui, negative: 'Yes'}"
    )
    found = parse(modules, text)
    assert (found["name"], found["description"]) == ("french", "In French")
    assert found["pairs"] == [{"positive": "Oui", "negative": "Yes", "prompt": "Hm?"}]


def test_a_csv_may_have_prompts_quotes_and_line_breaks(modules: Page) -> None:
    text = 'prompt,positive,negative\nHm?,"He said ""oui""\nand left",No\n'
    assert parse(modules, text)["pairs"] == [
        {"prompt": "Hm?", "positive": 'He said "oui"\nand left', "negative": "No"}
    ]


def test_cells_of_a_spreadsheet_may_begin_like_something_else(modules: Page) -> None:
    text = '"Arr," said he\tYes, he said\n- Yo ho\tHey\n{"a"}\t[b]\n'
    texts = [(pair["positive"], pair["negative"]) for pair in parse(modules, text)["pairs"]]
    assert texts == [('"Arr," said he', "Yes, he said"), ("- Yo ho", "Hey"), ('{"a"}', "[b]")]
    assert parse(modules, '"two\nlines"\tb')["pairs"][0]["positive"] == "two\nlines"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "There is no text."),
        ("just a text", "There are no two columns."),
        ('{"positive": "a", "negative": "b"}\n{"positive": ', "Line 2 is not JSON"),
        ("positive,negative\na,b\nc,", 'Example 2 has no text "negative".'),
        ("Arr\tHello\nAye\n", 'Example 2 has no text "negative".'),
        ("positive,negative\nArr, matey,Hello, friend", "Row 2 has 4 columns."),
        ("Arr, matey,Hello, friend", "Row 1 has 4 columns."),
        ('positive,negative\n"Arr matey,Hello\nAye,Yes', "Row 2: a text in quotes has no end"),
        ('[{"positive": "a"}]', 'Example 1 has no text "negative".'),
        ("[1]", "Example 1 is not an object"),
        ("examples: [", "This is not YAML"),
        ("name: x", "There is no list of examples."),
        ("[]", "The list of examples is empty."),
        ("[{]", "JSON"),
    ],
)
def test_what_is_wrong_is_said(modules: Page, text: str, message: str) -> None:
    assert message in parse(modules, text)


def test_what_is_exported_is_read_again(modules: Page) -> None:
    concept = {
        "name": "odd",
        "description": "yes: no # really",
        "pairs": [
            {"positive": "- a: 'b'\n\"c\"", "negative": "null", "prompt": ""},
            {**PAIR, "prompt": "1e3"},
        ],
    }
    again = modules.evaluate(
        """async (concept) => {
            const { toYaml } = await import("/playground/concepts/yaml.js");
            const { parsePairs } = await import("/playground/concepts/pairs.js");
            return parsePairs(await toYaml(concept));
        }""",
        json.loads(json.dumps(concept)),
    )
    assert again == concept
