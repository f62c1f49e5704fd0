"""The code that the page shows runs as it is, and gets the answer that the page would get."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import MODEL, TOKEN, Server

FIELDS = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You're brief."},
        {"role": "user", "content": 'Say "it\'s $HOME" and `ls` \\n é 🙂'},
    ],
    "max_tokens": 8,
    "temperature": 0,
    "top_k": 5,
    "stop": ["zzz", "\n\n\n"],
    "frequency_penalty": 0.5,
    "logit_bias": {"5": -100},
    "steering_concepts": ["_worker/sentiment"],
    "steering_strength": {"_worker/sentiment": -0.5},
    "steering_scope": "answer",
    "steering_when": {"concept": "_worker/sentiment", "above": -100},
    "logprobs": True,
    "top_logprobs": 1,
    "steering_readings": ["_worker/sentiment"],
    "stream": True,
    "stream_options": {"include_usage": True},
}
SNIPPET = """async ([language, request, server, options]) => {
    const { snippet } = await import("/playground/request/snippets.js");
    return snippet(language, request, server, options);
}"""
NODE = """async () => {
    const printed = [];
    const stdout = { write: (text) => printed.push(text) };
    const process = { env: { TILLER_TOKEN: "TOKEN" }, stdout };
    const console = { log: (text) => printed.push(text) };
    class OpenAI {
        constructor({ baseURL, apiKey }) {
            const headers = { "Content-Type": "application/json", Authorization: `Bearer ${apiKey}` };
            const create = async (body, { query }) => {
                const url = `${baseURL}/chat/completions?${new URLSearchParams(query)}`;
                const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
                return body.stream ? this.chunks(response) : response.json();
            };
            this.chat = { completions: { create } };
        }
        async *chunks(response) {
            const { eventsOf } = await import("/playground/api/events.js");
            for await (const event of eventsOf(response)) if (event !== "[DONE]") yield JSON.parse(event);
        }
    }
    CODE
    return printed.join("");
}"""
PYTHON = ("python-openai", "python-aleph-alpha")


def snippet(modules: Page, server: Server, language: str, fields: dict[str, Any], **options: bool) -> str:
    where = {"address": server.url, "needsToken": True}
    return modules.evaluate(SNIPPET, [language, {"body": fields, "nice": True}, where, options])


@pytest.fixture
def expected(server: Server) -> str:
    fields = {name: value for name, value in FIELDS.items() if not name.startswith("stream")}
    return server.post("/chat/completions", fields).json()["choices"][0]["message"]["content"]


def run(*command: object) -> str:
    environment = {**os.environ, "TILLER_TOKEN": TOKEN}
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("language", PYTHON)
def test_python_code_prints_the_answer(
    modules: Page, server: Server, tmp_path: Path, expected: str, language: str, is_streamed: bool
) -> None:
    file = tmp_path / "snippet.py"
    code = snippet(modules, server, language, FIELDS, isStreamed=is_streamed, hasDetails=True)
    file.write_text(code, encoding="utf-8")
    assert run(sys.executable, file).strip() == expected.strip()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_curl_command_gets_the_answer(
    modules: Page, server: Server, expected: str, is_streamed: bool
) -> None:
    code = snippet(modules, server, "curl", FIELDS, isStreamed=is_streamed)
    given = modules.evaluate(
        """async ([output, isStreamed]) => {
            if (!isStreamed) return JSON.parse(output).choices[0].message.content;
            const { eventsOf } = await import("/playground/api/events.js");
            const events = [];
            for await (const event of eventsOf(new Response(output))) events.push(event);
            if (events.pop() !== "[DONE]") throw new Error("the stream is not complete");
            return events.map((event) => JSON.parse(event).choices[0].delta.content ?? "").join("");
        }""",
        [run("sh", "-c", f"{code} --silent"), is_streamed],
    )
    assert given == expected


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("language", ["javascript-fetch", "javascript-openai"])
def test_javascript_code_prints_the_answer(
    modules: Page, server: Server, expected: str, language: str, is_streamed: bool
) -> None:
    """Runs in the browser, with the few things of Node that the code needs, and a small client for openai."""
    code = snippet(modules, server, language, FIELDS, isStreamed=is_streamed)
    code = code.replace('import OpenAI from "openai";', "")
    printed = modules.evaluate(NODE.replace('"TOKEN"', json.dumps(TOKEN)).replace("CODE", code))
    assert printed == expected


def test_the_dialog_shows_each_language_and_never_the_token(page: Page) -> None:
    page.get_by_role("button", name="Copy as code").click()
    dialog = page.get_by_role("dialog")
    for label, mark in (
        ("curl", "curl 'http"),
        ("Python, openai", "from openai import OpenAI"),
        ("Python, aleph-alpha-client", "from aleph_alpha_client import Client"),
        ("JavaScript, openai", 'import OpenAI from "openai"'),
        ("JavaScript, fetch", "await fetch("),
    ):
        dialog.get_by_text(label, exact=True).click()
        expect(dialog.locator("pre")).to_contain_text(mark)
        assert TOKEN not in (dialog.locator("pre").text_content() or "")
    dialog.get_by_label("streamed").check()
    expect(dialog.locator("pre")).to_contain_text("stream: true")


def test_the_code_is_copied(new_page: Any) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as code").click()
    page.get_by_role("dialog").get_by_role("button", name="Copy").click()
    expect(page.get_by_role("dialog").get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.get_by_role("dialog").locator("pre").text_content()
