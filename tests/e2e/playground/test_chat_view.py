"""The chat: streaming, stopping, editing, regenerating, and branches."""

import json

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import Server
from tests.e2e.playground.helpers import bodies_of, set_parameter, wait_for_answers


@pytest.fixture
def page(new_page) -> Page:
    page = new_page("#chat")
    set_parameter(page, "max_tokens", 6)
    return page


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Your message").fill(text)
    page.keyboard.press("Enter")


def turns(page: Page) -> Locator:
    return page.locator(".turn .text")


def test_an_answer_is_that_of_the_server(page: Page, server: Server) -> None:
    say(page, "Name three fruits.")
    wait_for_answers(page)
    expected = server.chat("Name three fruits.", max_tokens=6)["choices"][0]["message"]["content"]
    assert turns(page).all_text_contents() == ["Name three fruits.", expected]


def test_an_answer_appears_while_it_is_made_and_can_be_stopped(page: Page) -> None:
    set_parameter(page, "max_tokens", 2000)
    set_parameter(page, "temperature", 2)
    say(page, "Write a long story.")
    expect(turns(page).nth(1)).not_to_have_text("")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".turn.assistant")).to_contain_text("stopped")
    before = turns(page).nth(1).text_content()
    page.wait_for_timeout(300)
    assert turns(page).nth(1).text_content() == before


def test_a_conversation_goes_on_with_all_turns(page: Page) -> None:
    say(page, "My name is Ann.")
    wait_for_answers(page)
    first = turns(page).nth(1).text_content()
    bodies = bodies_of(page)
    say(page, "What is my name?")
    wait_for_answers(page)
    assert bodies[0]["messages"] == [
        {"role": "user", "content": "My name is Ann."},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What is my name?"},
    ]


def test_regenerating_makes_a_branch_and_both_can_be_shown(page: Page) -> None:
    say(page, "Say something.")
    wait_for_answers(page)
    set_parameter(page, "max_tokens", 3)
    page.get_by_role("button", name="Regenerate").click()
    wait_for_answers(page)
    second = turns(page).nth(1).text_content()
    expect(page.locator(".branches")).to_have_text("‹ 2 / 2 ›")
    page.get_by_role("button", name="Previous branch").click()
    expect(page.locator(".branches")).to_have_text("‹ 1 / 2 ›")
    first = turns(page).nth(1).text_content() or ""
    assert first.startswith(second or "-")
    assert len(first) > len(second or "")


def test_editing_a_turn_branches_the_conversation_from_there(page: Page) -> None:
    say(page, "Name a fruit.")
    wait_for_answers(page)
    say(page, "Another one.")
    wait_for_answers(page)
    page.get_by_role("button", name="Edit").first.click()
    page.locator(".turn textarea").fill("Name a city.")
    page.get_by_role("button", name="Send as a new branch").click()
    wait_for_answers(page)
    assert turns(page).count() == 2
    page.get_by_role("button", name="Previous branch").first.click()
    expect(turns(page)).to_have_count(4)
    assert turns(page).nth(2).text_content() == "Another one."


def test_an_edited_turn_is_sent_with_enter_and_left_with_escape(page: Page) -> None:
    say(page, "Name a fruit.")
    wait_for_answers(page)
    edit = page.get_by_role("button", name="Edit")
    edit.click()
    page.keyboard.press("Escape")
    expect(edit).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Edited message")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.type(" Or a city.")
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    wait_for_answers(page)
    expect(turns(page).first).to_have_text("Name a fruit. Or a city.")


def test_the_same_request_at_temperature_0_is_said_to_have_the_same_answer(page: Page) -> None:
    note = page.get_by_text("Raise the temperature for another one.")
    say(page, "Name a fruit.")
    wait_for_answers(page)
    page.get_by_role("button", name="Regenerate").click()
    expect(note).to_be_visible()
    set_parameter(page, "temperature", 1)
    page.get_by_role("button", name="Regenerate").click()
    wait_for_answers(page)
    expect(note).to_have_count(0)


def test_the_end_of_a_long_conversation_stays_in_view_unless_one_scrolls_away(page: Page) -> None:
    chunk = '{"choices": [{"index": 0, "delta": {"content": "a line\\n"}, "finish_reason": null}]}'
    events = f"data: {chunk}\n\n" * 60 + "data: [DONE]\n\n"
    headers = {"content-type": "text/event-stream"}
    page.route("**/chat/completions", lambda route: route.fulfill(body=events, headers=headers))
    end = page.locator(".turn").last.locator("footer")
    for text in ("first", "second"):
        say(page, text)
        wait_for_answers(page)
        expect(end).to_be_in_viewport(ratio=1)
    composer = page.get_by_role("textbox", name="Your message").bounding_box()
    last = end.bounding_box()
    assert composer
    assert last
    assert last["y"] + last["height"] <= composer["y"]
    grow(page)
    expect(page.get_by_text("It has grown.").last).to_be_in_viewport()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(100)
    grow(page)
    assert page.evaluate("scrollY") == 0


def grow(page: Page) -> None:
    """Makes the conversation longer, as the next tokens of an answer do."""
    page.locator(".turns").evaluate(
        """list => {
            const added = document.createElement("li");
            added.textContent = "It has grown.";
            added.style.paddingTop = "10em";
            list.append(added);
        }"""
    )
    page.wait_for_timeout(200)


def test_several_choices_are_branches(page: Page) -> None:
    set_parameter(page, "n", 3)
    set_parameter(page, "temperature", 1)
    say(page, "Say a word.")
    wait_for_answers(page)
    expect(page.locator(".turn.assistant .branches")).to_have_text("‹ 1 / 3 ›")
    page.get_by_role("button", name="Next branch").click()
    expect(turns(page).nth(1)).not_to_have_text("")


def test_the_chat_is_steered_by_its_own_concepts_only(page: Page) -> None:
    bodies = bodies_of(page)
    say(page, "Hello!")
    wait_for_answers(page)
    page.get_by_role("combobox", name="Add a concept").fill("sentiment")
    page.keyboard.press("Enter")
    page.get_by_role("slider", name="sentiment").fill("-0.5")
    page.get_by_role("button", name="Regenerate").click()
    wait_for_answers(page)
    assert "steering_concepts" not in bodies[0]
    assert (bodies[1]["steering_concepts"], bodies[1]["steering_strength"]) == (["_worker/sentiment"], -0.5)
    expect(page.locator(".turn.assistant")).to_contain_text("sentiment −0.5")


def test_readings_need_no_steering(page: Page) -> None:
    page.get_by_text("What comes back").click()
    page.get_by_role("combobox", name="Also read a concept").fill("sentiment")
    page.keyboard.press("Enter")
    bodies = bodies_of(page)
    say(page, "Hello!")
    wait_for_answers(page)
    assert bodies[0]["steering_readings"] == ["_worker/sentiment"]
    page.get_by_label("Colour by").select_option("sentiment")
    assert page.locator(".turn .t").count() > 0


def test_a_screen_reader_hears_the_whole_answer_once(page: Page) -> None:
    say(page, "Name three fruits.")
    wait_for_answers(page)
    answer = turns(page).nth(1).text_content() or ""
    expect(page.get_by_role("status")).to_contain_text("Answer complete")
    assert answer.strip().split("\n")[0] in (page.get_by_role("status").text_content() or "")


def test_the_request_of_the_last_answer_can_be_copied(page: Page) -> None:
    say(page, "Name a colour.")
    wait_for_answers(page)
    page.get_by_role("button", name="Copy as code").click()
    code = page.get_by_role("dialog").locator("pre").text_content() or ""
    body = json.loads(code.split("-d '")[1].rstrip("'\n"))
    assert body["messages"] == [{"role": "user", "content": "Name a colour."}]
