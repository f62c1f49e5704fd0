"""Makes the pictures of the playground in docs/playground.

    python docs/screenshots.py http://127.0.0.1:8000

Needs a running server with the embedded model and without access tokens, and Chromium. Makes a concept called
pirate, and deletes it at the end.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "playground"
PIRATE = ROOT / "benchmarks" / "steering" / "concepts" / "pirate.yaml"
SHEET_HEIGHT = 880
WAIT_MS = 900_000
"""Concepts are trained on the way."""


def main() -> None:
    [url] = sys.argv[1:]
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright, pirate(url):
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        steer(page)
        chat(page)
        concepts(page)
        dark = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="dark")
        dark.set_default_timeout(WAIT_MS)
        dark.goto(url)
        sheet(dark, "contact-sheet-dark")
        phone = browser.new_page(viewport={"width": 390, "height": 844}, device_scale_factor=2)
        phone.set_default_timeout(WAIT_MS)
        phone.goto(url)
        press(phone, "Compare")
        save(phone, "phone", height=1240)
        browser.close()


@contextmanager
def pirate(url: str) -> Iterator[None]:
    """The concept pirate exists on the server."""
    concept = yaml.safe_load(PIRATE.read_text("utf-8"))
    httpx.post(f"{url}/steering_concepts", json=concept, timeout=WAIT_MS / 1000).raise_for_status()
    yield
    httpx.delete(f"{url}/steering_concepts/{concept['name']}").raise_for_status()


def steer(page: Page) -> None:
    press(page, "Compare")
    save(page, "side-by-side")
    page.get_by_label("Colour by").select_option("probability")
    page.locator(".side").last.locator(".t").nth(6).hover()
    save(page, "token-probabilities")
    page.mouse.move(0, 0)
    page.get_by_role("button", name="Copy as code").click()
    page.get_by_text("Python, openai", exact=True).click()
    save(page, "copy-as-code")
    page.keyboard.press("Escape")
    page.get_by_label("Colour by").select_option("nothing")
    sheet(page, "contact-sheet")
    page.get_by_label("Colour by").select_option("sentiment")
    save(page, "contact-sheet-readings", SHEET_HEIGHT)
    page.get_by_label("Colour by").select_option("nothing")


def sheet(page: Page, name: str) -> None:
    page.get_by_text("Contact sheet").click()
    page.get_by_label("Prompt").fill("How was your day?")
    page.get_by_label("Tokens each").fill("32")
    press(page, "Make the sheet")
    save(page, name, SHEET_HEIGHT)


def chat(page: Page) -> None:
    """Answers above temperature 0 differ each time: look at the picture, and make it again if they ramble."""
    page.get_by_role("link", name="Chat", exact=True).click()
    page.get_by_role("combobox", name="Add a concept").fill("formality")
    page.keyboard.press("Enter")
    page.get_by_role("slider", name="formality").fill("-0.7")
    page.get_by_text("Length and sampling").click()
    for name, value in (("max_tokens", "48"), ("temperature", "0.3"), ("frequency_penalty", "0.3")):
        page.get_by_label(name, exact=True).fill(value)
    for text in ("How does the internet work?", "And what is gravity?"):
        page.get_by_role("textbox", name="Your message").fill(text)
        press(page, "Send")
    page.get_by_role("button", name="Regenerate").last.click()
    finish(page)
    page.evaluate("scrollTo(0, 0)")
    save(page, "chat")


def concepts(page: Page) -> None:
    page.get_by_role("link", name="Concepts").click()
    page.get_by_role("link", name="pirate").click()
    page.locator(".chart canvas").last.wait_for()
    save(page, "report", height=1000)
    page.get_by_role("link", name="New concept").click()
    page.get_by_text("Paste or open pairs").click()
    page.get_by_label("Pairs as text").fill(PIRATE.read_text("utf-8"))
    page.get_by_role("button", name="Add these pairs").click()
    page.locator(".editor").get_by_text("24 pairs added.").wait_for()
    page.get_by_label("Name", exact=True).fill("my-pirate")
    page.get_by_text("Paste or open pairs").click()
    save(page, "new-concept")


def press(page: Page, button: str) -> None:
    page.get_by_role("button", name=button).click()
    finish(page)


def finish(page: Page) -> None:
    """Waits until nothing is generated any more."""
    page.wait_for_timeout(200)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=WAIT_MS)


def save(page: Page, name: str, height: int = 800) -> None:
    """A picture of the top of the page. Most are as high as a screen."""
    width = page.evaluate("innerWidth")
    page.set_viewport_size({"width": width, "height": height})
    page.wait_for_timeout(300)  # until charts have their new size
    page.screenshot(path=FOLDER / f"{name}.png", animations="disabled")


if __name__ == "__main__":
    main()
