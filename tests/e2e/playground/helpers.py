"""What several tests do on a page."""

import json

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request, expect

ANSWER_MS = 120_000

expect.set_options(timeout=30_000)


def wait_for_answers(page: Page) -> None:
    """Waits until nothing is generated any more, after a click that has started it."""
    expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=ANSWER_MS)


def serious_faults(page: Page) -> list[str]:
    """What axe-core finds on the page, if it is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['target']}"
        for fault in found
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical")
    ]


def set_parameter(page: Page, name: str, value: object) -> None:
    field = page.get_by_label(name, exact=True)
    if not field.is_visible():
        page.get_by_text("Length and sampling").click()
    field.fill(str(value))


def bodies_of(page: Page) -> list[dict]:
    """The bodies of all chat requests that the page sends from now on."""
    found: list[dict] = []

    def keep(request: Request) -> None:
        if request.url.endswith("/chat/completions"):
            found.append(json.loads(request.post_data or ""))

    page.on("request", keep)
    return found
