"""Each view for people who use a keyboard, a screen reader, a phone, or a dark scheme."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.playground.helpers import serious_faults, wait_for_answers

VIEWS = ("#steer", "#chat", "#concepts", "#concepts/sentiment", "#new-concept", "#import-vectors")
PHONE = {"width": 390, "height": 844}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(new_page: Callable[..., Page], scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    for view in VIEWS:
        open_whole(page, view)
        assert (view, serious_faults(page)) == (view, [])


def open_whole(page: Page, view: str) -> None:
    """Shows the view with all its parts open."""
    page.goto(f"{page.url.partition('#')[0]}{view}")
    expect(page.locator("main")).to_contain_text("oncept")
    page.locator("details").evaluate_all("all => all.forEach((details) => { details.open = true; })")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_answers_and_dialogs(new_page: Callable[..., Page], scheme: str) -> None:
    page = new_page(color_scheme=scheme)
    page.get_by_text("Contact sheet").click()
    page.get_by_label("Tokens each").fill("12")
    page.get_by_role("button", name="Make the sheet").click()
    wait_for_answers(page)
    for colour in ("probability", "sentiment"):
        page.get_by_label("Colour by").select_option(colour)
        assert serious_faults(page) == []
    page.get_by_role("button", name="Copy as code").click()
    assert serious_faults(page) == []


def test_axe_finds_a_fault_that_is_there(page: Page) -> None:
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert [fault.partition(":")[0] for fault in serious_faults(page)] == ["button-name"]


def test_a_phone_needs_no_scrolling_to_the_side(new_page: Callable[..., Page]) -> None:
    page = new_page(viewport=PHONE, has_touch=True)
    for view in VIEWS:
        open_whole(page, view)
        assert (view, page.evaluate("document.documentElement.scrollWidth")) == (view, PHONE["width"])


def test_a_comparison_needs_only_the_keyboard(page: Page) -> None:
    expect(page.get_by_role("slider", name="sentiment")).to_be_visible()
    prompt = page.get_by_label("Prompt")
    for _ in range(12):  # the links of the bar, the model, the choice of the view
        if prompt.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("Hi!")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="Without steering").locator(".text")).not_to_have_text("")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Stop
    wait_for_answers(page)


def test_a_concept_is_found_with_the_keyboard(page: Page) -> None:
    field = page.get_by_role("combobox", name="Add a concept")
    field.focus()
    page.keyboard.press("ArrowDown")
    expect(field).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowDown")
    active = page.locator(f"[id='{field.get_attribute('aria-activedescendant')}']")
    expect(active).to_have_attribute("aria-selected", "true")
    name = active.locator("strong").text_content() or ""
    page.keyboard.press("Enter")
    expect(page.get_by_role("slider", name=name)).to_be_visible()
    field.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(field).to_have_attribute("aria-expanded", "false")
