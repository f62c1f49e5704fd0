"""Fixtures: the playground of the session's server in Chromium, driven by playwright.

Without a browser, all tests of this folder are skipped with one reason.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.e2e.conftest import TOKEN, Server, serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TRAINING_SECONDS = 600  # on a busy machine
EXPECTED = re.compile(r"Failed to load resource")  # the browser's line for each status above 399


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("the playground is not tested: there is no Chromium (apt-get install chromium)")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses its sandbox as root
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="package")
def server(
    browser: Browser, quantized_config: dict, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Not without a browser."""
    with serving(quantized_config, tmp_path_factory.mktemp("playground")) as running:
        yield running


@pytest.fixture(scope="package")
def trained(server: Server) -> None:
    """Trains the concept with which the page begins, so that no test waits for it."""
    server.chat("Hi", TRAINING_SECONDS, max_tokens=1, steering_concepts=["sentiment"])


@pytest.fixture
def new_page(browser: Browser, server: Server, trained: None) -> Iterator[Callable[..., Page]]:
    """Makes pages with the playground, in contexts with the given options. They have the access token.

    A test fails if a page has logged an error: the Content-Security-Policy reports so what it blocks.
    """
    errors: list[str] = []
    contexts = []

    def make(view: str = "", has_token: bool = True, **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        if has_token:
            context.add_init_script(f"sessionStorage.setItem('tiller-access-token', '{TOKEN}')")
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.extend(_errors_in(message)))
        page.goto(f"{server.url}/{view}")
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []


def _errors_in(message: ConsoleMessage) -> list[str]:
    is_fault = message.type in ("error", "warning") and not EXPECTED.match(message.text)
    return [message.text] if is_fault else []


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    return new_page()


@pytest.fixture(scope="package")
def modules(browser: Browser, server: Server) -> Iterator[Page]:
    """A page for tests that only call the playground's modules."""
    page = browser.new_page()
    page.goto(f"{server.url}/playground/icon.svg")
    yield page
    page.close()
