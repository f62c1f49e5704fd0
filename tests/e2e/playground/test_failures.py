"""What the page says when something fails, and how it asks for the access token."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import TOKEN
from tests.e2e.playground.helpers import set_parameter, wait_for_answers

CHATS = "**/chat/completions"


def error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "code": code, "param": None}, "code": code}


def test_the_token_is_asked_for_once_and_kept_for_the_session(new_page: Callable[..., Page]) -> None:
    page = new_page(has_token=False)
    dialog = page.get_by_role("dialog", name="Access token")
    expect(dialog).to_contain_text("This server needs an access token.")
    dialog.get_by_label("Access token", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("the access token is not valid")
    dialog.get_by_label("Access token", exact=True).fill(TOKEN)
    page.keyboard.press("Enter")
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("slider", name="sentiment")).to_be_visible()
    page.reload()
    expect(page.get_by_role("slider", name="sentiment")).to_be_visible()
    expect(dialog).to_have_count(0)
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_a_token_can_be_forgotten(page: Page) -> None:
    page.get_by_role("button", name="Forget access token").click()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("dialog", name="Access token")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").first).to_contain_text("Access denied")
    expect(page.get_by_role("alert").first).to_contain_text("Try again to give another access token.")


@pytest.mark.parametrize(
    ("status", "code", "headers", "expected"),
    [
        (400, "INVALID_REQUEST", {}, "The server refused the request"),
        (404, "UNKNOWN_MODEL", {}, "Not found"),
        (429, "RATE_LIMITED", {"Retry-After": "7"}, "Try again in 7 seconds."),
        (503, "QUEUE_FULL", {"Retry-After": "1"}, "Try again in 1 second."),
        (500, "INTERNAL", {}, "The server failed"),
    ],
)
def test_an_error_is_readable_and_can_be_tried_again(
    page: Page, status: int, code: str, headers: dict[str, str], expected: str
) -> None:
    set_parameter(page, "max_tokens", 2)
    answer = error(code, "something specific")
    page.route(CHATS, lambda route: route.fulfill(status=status, headers=headers, json=answer))
    page.get_by_role("button", name="Compare").click()
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text(expected)
    expect(alert).to_contain_text("Something specific.")
    expect(alert).to_contain_text(code)
    page.unroute(CHATS)
    page.goto(page.url.split("#")[0] + "#chat")
    page.goto(page.url.split("#")[0] + "#steer")
    page.get_by_role("button", name="Try again").first.click()
    wait_for_answers(page)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_time_to_wait_is_said_once(page: Page) -> None:
    answer = error("RATE_LIMITED", "this caller has used up its tokens; try again in 7 seconds")
    headers = {"Retry-After": "7"}
    page.route(CHATS, lambda route: route.fulfill(status=429, headers=headers, json=answer))
    page.get_by_role("button", name="Compare").click()
    text = page.get_by_role("alert").first.text_content() or ""
    assert text.lower().count("try again in 7 seconds") == 1


def test_a_lost_network_is_readable(page: Page) -> None:
    page.route(CHATS, lambda route: route.abort())
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("alert").first).to_contain_text("No connection")


@pytest.mark.parametrize(
    ("end", "title", "expected"),
    [
        (
            'data: {"error": {"message": "the engine stopped", "code": "UNAVAILABLE"}}\n\n',
            "The server is busy or restarting",
            "The engine stopped. Try again in a moment.",
        ),
        (
            'data: {"error": {"message": "something broke", "code": "INTERNAL"}}\n\n',
            "The server failed",
            "Something broke.",
        ),
        ("", "No connection", "The connection was lost before the answer was complete."),
    ],
)
def test_an_error_in_a_stream_keeps_the_text_before_it(
    page: Page, end: str, title: str, expected: str
) -> None:
    chunk = '{"choices": [{"index": 0, "delta": {"content": "Half an ans"}, "finish_reason": null}]}'
    headers = {"content-type": "text/event-stream"}
    page.route(CHATS, lambda route: route.fulfill(body=f"data: {chunk}\n\n{end}", headers=headers))
    page.get_by_role("button", name="Compare").click()
    side = page.get_by_role("article", name="Without steering")
    expect(side).to_contain_text("Half an ans")
    expect(side.get_by_role("alert")).to_contain_text(title)
    expect(side.get_by_role("alert")).to_contain_text(expected)


def test_a_server_that_does_not_answer_at_the_start_is_readable(new_page: Callable[..., Page]) -> None:
    page = new_page()
    page.route("**/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("No connection")
    page.unroute("**/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("slider", name="sentiment")).to_be_visible()


def test_an_unknown_concept_in_the_address_is_readable(new_page: Callable[..., Page]) -> None:
    page = new_page("#concepts/nothing")
    expect(page.locator("main")).to_contain_text("There is no concept called nothing.")
