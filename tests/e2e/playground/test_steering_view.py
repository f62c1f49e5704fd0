"""The view in which a person sees what steering does: side by side, and as a contact sheet."""

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Server
from tests.e2e.playground.helpers import bodies_of, set_parameter, wait_for_answers

PROMPT = "Tell me about the hotel."


def compare(page: Page, max_tokens: int = 12) -> None:
    set_parameter(page, "max_tokens", max_tokens)
    page.get_by_role("button", name="Compare").click()
    wait_for_answers(page)


def side(page: Page, title: str) -> Any:
    return page.get_by_role("article", name=title)


def test_both_answers_are_what_the_server_gives_without_and_with_the_concept(
    page: Page, server: Server
) -> None:
    compare(page)
    steering = {"steering_concepts": ["sentiment"], "steering_strength": -1}
    plain, steered = server.chat(PROMPT, max_tokens=12), server.chat(PROMPT, max_tokens=12, **steering)
    for title, answer in (("Without steering", plain), ("Steered", steered)):
        text = answer["choices"][0]["message"]["content"]
        expect(side(page, title).locator(".text")).to_have_text(text)
        expect(side(page, title)).to_contain_text("cut at max_tokens · 12 tokens")
    assert plain["choices"] != steered["choices"]


def test_moving_a_slider_asks_the_steered_side_again_and_keeps_the_other_one(page: Page) -> None:
    compare(page, max_tokens=4)
    bodies = bodies_of(page)
    slider = page.get_by_role("slider", name="sentiment")
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    expect(side(page, "Steered")).to_contain_text("sentiment −0.5")
    wait_for_answers(page)
    assert [body["steering_strength"] for body in bodies] == [-0.5]


def test_each_concept_has_a_strength_of_its_own(page: Page) -> None:
    bodies = bodies_of(page)
    page.route("**/chat/completions", lambda route: route.fulfill(body="data: [DONE]\n\n"))
    page.get_by_role("combobox", name="Add a concept").fill("formal")
    page.keyboard.press("Enter")
    page.get_by_role("slider", name="formality").fill("0.4")
    set_parameter(page, "max_tokens", 2)
    page.get_by_role("button", name="Compare").click()
    wait_for_answers(page)
    [steered] = [body for body in bodies if "steering_concepts" in body]
    assert steered["steering_concepts"] == ["_worker/sentiment", "_worker/formality"]
    assert steered["steering_strength"] == {"_worker/sentiment": -1, "_worker/formality": 0.4}


def test_a_strength_that_the_server_reduces_is_shown(page: Page) -> None:
    ablate(page)  # its strengths go from 0 to 1
    page.get_by_role("slider", name="sentiment").fill("1.5")
    compare(page, max_tokens=3)
    expect(side(page, "Steered")).to_contain_text("The server used sentiment +1 instead.")
    expect(page.locator(".strengths")).to_contain_text("Counts as +1.")


def test_a_strength_beyond_the_limits_of_the_report_is_marked(page: Page) -> None:
    report = {"max_strength": 1.2, "max_down_strength": 0.8}
    concept = {"id": "_worker/sentiment", "state": "ready", "report": report}
    page.route("**/steering_concepts/_worker/sentiment?*", lambda route: route.fulfill(json=concept))
    page.reload()
    expect(page.locator(".strengths")).to_contain_text("Counts as −0.8.")
    page.get_by_role("slider", name="sentiment").fill("2")
    expect(page.locator(".strengths")).to_contain_text("Counts as +1.2.")


def ablate(page: Page) -> None:
    page.get_by_text("How to steer").click()
    page.get_by_label("steering_mode").select_option("ablate")


def test_the_contact_sheet_has_an_answer_for_each_strength(page: Page, server: Server) -> None:
    ablate(page)
    page.get_by_text("Contact sheet").click()
    page.get_by_label("Tokens each").fill("8")
    page.get_by_role("button", name="Make the sheet").click()
    wait_for_answers(page)
    cells = page.get_by_role("list", name="Answers by strength of sentiment").get_by_role("listitem")
    titles = cells.get_by_role("heading").all_text_contents()
    assert titles == ["−2", "−1.5", "−1", "−0.5", "No steering", "+0.5", "+1", "+1.5", "+2"]
    plain = server.chat(PROMPT, max_tokens=8)["choices"][0]["message"]["content"]
    assert cells.locator(".text").all_text_contents()[4] == plain
    assert all(cells.locator(".text").all_text_contents())
    expect(cells.first).to_contain_text("counts as 0")
    expect(cells.last).to_contain_text("counts as +1")


def test_a_sheet_can_have_finer_strengths_of_one_sign(page: Page) -> None:
    page.route("**/chat/completions", lambda route: route.fulfill(body="data: [DONE]\n\n"))
    page.get_by_text("Contact sheet").click()
    page.get_by_role("combobox", name="Strengths").select_option("0 to +2")
    bodies = bodies_of(page)
    page.get_by_role("button", name="Make the sheet").click()
    wait_for_answers(page)
    strengths = sorted(body["steering_strength"] for body in bodies)
    assert strengths == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]


def test_a_card_of_the_sheet_opens_side_by_side(page: Page) -> None:
    set_parameter(page, "max_tokens", 3)
    page.get_by_text("Contact sheet").click()
    page.get_by_label("Tokens each").fill("2")
    page.get_by_role("button", name="Make the sheet").click()
    wait_for_answers(page)
    page.get_by_role("button", name="Compare strength +0.5 side by side").click()
    expect(side(page, "Steered")).to_contain_text("sentiment +0.5")
    wait_for_answers(page)


def test_the_sheet_waits_and_asks_again_if_a_token_allows_fewer_requests(page: Page) -> None:
    refused: list[str] = []

    def refuse_first(route: Any) -> None:
        if len(refused) < 3:
            refused.append(route.request.url)
            error = {"message": "too many requests", "code": "RATE_LIMITED", "param": None}
            route.fulfill(status=429, headers={"Retry-After": "1"}, json={"error": error})
        else:
            route.continue_()

    page.route("**/chat/completions", refuse_first)
    page.get_by_text("Contact sheet").click()
    page.get_by_label("Tokens each").fill("2")
    page.get_by_role("button", name="Make the sheet").click()
    expect(page.locator(".sheet")).to_contain_text("The server has no room now. Asking again in 1 second…")
    wait_for_answers(page)
    assert len(refused) == 3
    assert all(page.locator(".cell .text").all_text_contents())
    expect(page.get_by_role("alert")).to_have_count(0)


def test_tokens_are_coloured_by_probability_and_show_their_alternatives(page: Page, server: Server) -> None:
    compare(page, max_tokens=6)
    page.get_by_label("Colour by").select_option("probability")
    tokens = side(page, "Without steering").locator(".t")
    expected = server.chat(PROMPT, max_tokens=6, logprobs=True, top_logprobs=5)["choices"][0]
    entries = expected["logprobs"]["content"]
    assert tokens.all_text_contents() == [entry["token"] for entry in entries]
    tokens.nth(1).hover()
    shown = page.locator(".inspector tr").filter(has=page.locator("code"))
    assert [row.split()[0].replace("␣", " ") for row in shown.all_inner_texts()] == [
        top["token"] for top in entries[1]["top_logprobs"]
    ]


def test_tokens_are_coloured_by_the_reading_of_a_concept(page: Page, server: Server) -> None:
    """Four steps on each side of the middle between the negative examples, 0, and the positive ones, 1."""
    compare(page, max_tokens=12)
    page.get_by_label("Colour by").select_option("sentiment")
    expected = server.chat(PROMPT, max_tokens=12, steering_readings=["sentiment"])["choices"][0]
    readings = [entry["readings"]["_worker/sentiment"] for entry in expected["steering_readings"]["content"]]
    steps = [max(-4.0, min(4.0, (reading - 0.5) * 4)) for reading in readings]
    classes = side(page, "Without steering").locator(".t").evaluate_all("all => all.map(e => e.className)")
    shown = [int(name.removeprefix("t r")) for name in classes]
    assert shown == pytest.approx(steps, abs=0.501)
    assert len(set(shown)) > 1


def test_tokens_can_be_read_with_the_keyboard(page: Page) -> None:
    compare(page, max_tokens=5)
    page.get_by_label("Colour by").select_option("probability")
    side(page, "Without steering").get_by_role("group").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".t.current")).to_have_attribute("data-token", "1")
    expect(page.get_by_role("status")).to_contain_text("probability")
    expect(page.get_by_role("status")).to_contain_text("Instead: ")
    expect(page.locator(".inspector")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".inspector")).to_have_count(0)


def test_a_value_out_of_range_is_explained_and_not_sent(page: Page) -> None:
    set_parameter(page, "temperature", 5)
    set_parameter(page, "n", 1.5)
    field = page.get_by_label("temperature", exact=True)
    expect(field).to_have_accessible_description(
        re.compile(r"Give a number from 0 to 2\. Until then, 0 is sent\.")
    )
    first = page.get_by_role("alert").first  # of the field n
    expect(first).to_contain_text("Give a whole number from 1 to 16. Until then, none is sent.")
    bodies = bodies_of(page)
    compare(page, max_tokens=1)
    assert [body["temperature"] for body in bodies] == [0, 0]
    field.fill("0.5")
    expect(page.get_by_text("Give a number from 0 to 2.")).to_have_count(0)


def test_answers_name_their_model_if_there_are_several(page: Page) -> None:
    models = [{"id": "one"}]
    page.route("**/models", lambda route: route.fulfill(json={"object": "list", "data": models}))
    page.route("**/steering_concepts?*", lambda route: route.fulfill(json={"data": [], "problems": []}))
    page.route("**/chat/completions", lambda route: route.fulfill(body="data: [DONE]\n\n"))
    page.reload()
    choice = page.get_by_label("Model")
    expect(choice).to_have_value("one")
    models.append({"id": "two"})  # loaded later
    choice.focus()
    choice.select_option("two")
    page.get_by_role("button", name="Compare").click()
    expect(side(page, "Without steering").locator(".chip")).to_have_text("two")


def test_every_parameter_of_the_contract_reaches_the_server(page: Page) -> None:
    bodies = bodies_of(page)
    for title in ("How to steer", "What comes back", "System message"):
        page.get_by_text(title, exact=True).click()
    values = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 7}
    penalties = {"frequency_penalty": 0.2, "presence_penalty": -0.2}
    for name, value in {**values, **penalties, "top_logprobs": 2}.items():
        set_parameter(page, name, value)
    page.get_by_label("stop", exact=True).fill("xyz\n\\n\\n")
    page.get_by_label("logit_bias").fill("#5")
    page.keyboard.press("Enter")
    page.get_by_label("steering_scope").select_option("answer")
    page.get_by_label("steering_mode").select_option("clamp")
    page.get_by_role("combobox", name="Concept of the condition").fill("sentiment")
    page.keyboard.press("Enter")
    page.get_by_label("below", exact=True).fill("9")
    page.get_by_role("textbox", name="System message").fill("Be brief.")
    page.get_by_label("stream", exact=True).uncheck()
    page.get_by_label("nice", exact=True).check()
    with page.expect_response("**/chat/completions?nice=true") as answer:
        page.get_by_role("button", name="Compare").click()
    wait_for_answers(page)
    assert answer.value.status == 200
    expect(side(page, "Steered").locator(".text")).not_to_have_text("")
    assert bodies == []  # all had ?nice=true
    body = json.loads(answer.value.request.post_data or "")
    expected = {
        **values,
        **penalties,
        "top_logprobs": 2,
        "logprobs": True,
        "stop": ["xyz", "\n\n"],
        "logit_bias": {"5": -100},
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}],
        "steering_readings": ["_worker/sentiment"],
    }
    assert {name: body[name] for name in expected} == expected
    assert "stream" not in body
