"""Many concepts and long answers: what they cost the browser, in CPU time, as other programs run too."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from benchmarks.playground import measure_answer, measure_list, open_page


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    page = new_page()
    open_page(page, page.url)
    return page


def test_a_thousand_concepts_are_listed_scrolled_and_filtered_quickly(page: Page) -> None:
    assert measure_list(page).cpu_seconds < 4


def test_a_coloured_answer_of_five_thousand_tokens_costs_two_milliseconds_per_token_at_most(
    page: Page,
) -> None:
    assert measure_answer(page, "logprob").cpu_seconds < 10
