"""The workshop: making, watching, reading, exporting and deleting concepts."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Page, Route, expect

from tests.e2e.conftest import Server
from tests.e2e.playground.conftest import TRAINING_SECONDS

ROOT = Path(__file__).parents[3]
PAIRS = [
    {
        "positive": f"Ahoy matey, the {thing} be a fine treasure, arr!",
        "negative": f"The {thing} is very nice.",
    }
    for thing in ("ship", "sea", "parrot", "island")
]


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """A name for a concept, which is deleted at the end."""
    name = f"pirate-{uuid.uuid4().hex[:8]}"
    yield name
    server.delete(f"/steering_concepts/{name}")


@pytest.fixture
def page(new_page: Callable[..., Page]) -> Page:
    return new_page("#new-concept", accept_downloads=True)


def paste(page: Page, text: str) -> None:
    if not page.get_by_label("Pairs as text").is_visible():
        page.get_by_text("Paste or open pairs").click()
    page.get_by_label("Pairs as text").fill(text)
    page.get_by_role("button", name="Add these pairs").click()


def test_a_pasted_concept_is_trained_reported_used_exported_and_deleted(
    page: Page, server: Server, name: str
) -> None:
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Description").fill("Talks like a pirate.")
    paste(page, "\n".join(json.dumps(pair) for pair in PAIRS))
    expect(page.locator(".editor")).to_contain_text("4 pairs")
    page.get_by_role("button", name="Create and train").click()

    expect(page.get_by_role("progressbar", name="Progress")).to_be_visible()
    expect(page.locator(".verdict")).to_be_visible(timeout=TRAINING_SECONDS * 1000)
    report = server.get(f"/steering_concepts/{name}").json()["report"]
    expect(page.locator(".verdict")).to_contain_text(report["summary"])
    effect = page.get_by_role("img", name="Effect by strength: −1:")
    expect(effect.locator("canvas")).to_be_visible()
    expect(page.get_by_role("img", name="Perplexity ratio by strength")).to_be_visible()
    expect(page.locator(".concept")).to_contain_text("Agreement")
    expect(page.locator(".samples").first).to_contain_text(report["samples"][0]["text"][:20])

    with page.expect_download() as download:
        page.get_by_role("button", name="Export as YAML").click()
    exported = yaml.safe_load(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == f"{name}.yaml"
    assert exported == {"name": name, "description": "Talks like a pirate.", "examples": PAIRS}

    with page.expect_download() as download:
        page.get_by_role("button", name="Download vectors").click()
    assert b"tiller-vectors" in Path(download.value.path()).read_bytes()[:5000]

    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_role("slider", name=name)).to_be_visible()

    page.goto(f"{server.url}/#concepts/{name}")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("navigation", name="Concepts")).not_to_contain_text(name)
    assert server.get(f"/steering_concepts/{name}").status_code == 404


def test_exported_vectors_can_be_imported_again(page: Page, server: Server, name: str) -> None:
    vectors = server.get("/steering_concepts/sentiment/vectors", timeout=TRAINING_SECONDS).content
    page.goto(f"{server.url}/#import-vectors")
    file: Any = {"name": "x.safetensors", "mimeType": "application/octet-stream", "buffer": vectors}
    page.get_by_label("File").set_input_files(file)
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_role("article", name=name)).to_contain_text("Not judged")


def test_a_file_without_vectors_is_refused_in_words(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/#import-vectors")
    file: Any = {"name": "x.gguf", "mimeType": "application/octet-stream", "buffer": b"nothing"}
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The server refused the request")


def test_a_taken_name_is_a_readable_error_and_keeps_the_pairs(page: Page) -> None:
    page.get_by_label("Name", exact=True).fill("sentiment")
    paste(page, json.dumps(PAIRS))
    page.get_by_role("button", name="Create and train").click()
    expect(page.get_by_role("alert")).to_contain_text("already exists")
    expect(page.get_by_label("Positive text of pair 4")).to_have_value(PAIRS[3]["positive"])


def test_pairs_are_written_in_the_table(page: Page) -> None:
    create = page.get_by_role("button", name="Create and train")
    expect(create).to_be_disabled()
    page.get_by_label("Name", exact=True).fill("pirate")
    page.get_by_role("button", name="Remove pair 3").click()
    page.get_by_label("Positive text of pair 2").fill("Arr!")
    expect(page.locator(".editor")).to_contain_text("One pair has only one text.")
    page.get_by_label("Negative text of pair 2").fill("Yes.")
    page.get_by_role("button", name="With prompts").click()
    page.get_by_label("Prompt text of pair 2").fill("Do you agree?")
    sent = []

    def refuse(route: Route) -> None:
        if route.request.method != "POST":
            return route.continue_()
        sent.append(json.loads(route.request.post_data or ""))
        error = {"message": "too few examples", "code": "INVALID_REQUEST", "param": "examples"}
        return route.fulfill(status=400, json={"error": error})

    page.route("**/steering_concepts", refuse)
    create.click()
    expect(page.get_by_role("alert")).to_contain_text("Too few examples.")
    pair = {"positive": "Arr!", "negative": "Yes.", "prompt": "Do you agree?"}
    assert sent == [{"name": "pirate", "description": "", "examples": [pair]}]


def write_pair(page: Page, number: int, positive: str, negative: str) -> None:
    page.get_by_label(f"Positive text of pair {number}", exact=True).fill(positive)
    page.get_by_label(f"Negative text of pair {number}", exact=True).fill(negative)


def test_tab_in_the_last_cell_begins_the_next_pair(page: Page) -> None:
    write_pair(page, 3, "Arr!", "Yes.")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Positive text of pair 4", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Remove pair 4")).to_be_focused()
    page.get_by_role("button", name="Add a pair").click()
    expect(page.get_by_label("Positive text of pair 5", exact=True)).to_be_focused()


def test_cells_of_a_spreadsheet_can_be_pasted_into_the_table(page: Page) -> None:
    write_pair(page, 1, "Arr!", "Yes.")
    page.get_by_label("Positive text of pair 2", exact=True).focus()
    page.evaluate(
        """(text) => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", text);
            const event = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
            document.activeElement.dispatchEvent(event);
        }""",
        "Ahoy!\tHello!\n",
    )
    expect(page.locator(".editor")).to_contain_text("1 pair added.")
    expect(page.get_by_label("Positive text of pair 2", exact=True)).to_have_value("Ahoy!")
    expect(page.get_by_label("Negative text of pair 2", exact=True)).to_have_value("Hello!")


def test_written_pairs_are_not_lost(page: Page, server: Server) -> None:
    first = page.get_by_label("Positive text of pair 1", exact=True)
    write_pair(page, 1, "Arr!", "Yes.")
    page.reload()
    expect(first).to_have_value("Arr!")
    page.get_by_role("button", name="Clear").click()
    expect(first).to_have_value("")
    page.get_by_role("button", name="Bring the last draft back").click()
    expect(first).to_have_value("Arr!")
    page.goto(f"{server.url}/#concepts/sentiment")
    page.get_by_role("button", name="Edit a copy").click()
    expect(first).not_to_have_value("Arr!")
    page.get_by_role("button", name="Bring the last draft back").click()
    expect(first).to_have_value("Arr!")


def test_a_bad_name_is_marked_and_explained(page: Page) -> None:
    name = page.get_by_label("Name", exact=True)
    expect(page.locator(".editor")).to_contain_text("Give it a name.")
    name.fill("my pirate")
    expect(page.locator(".editor")).to_contain_text("The name may have letters, digits, - and _ only.")
    expect(name).to_have_attribute("aria-invalid", "true")


def hold_creation(page: Page) -> list[Route]:
    """Creations that the page asks for from now on. They have no answer until the test gives one."""
    held: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method == "POST":
            held.append(route)
        else:
            route.continue_()

    page.route("**/steering_concepts", hold)
    return held


@pytest.mark.parametrize("status", [201, 400])
def test_a_training_that_ends_takes_nobody_away_from_another_view(page: Page, status: int) -> None:
    held = hold_creation(page)
    page.get_by_label("Name", exact=True).fill("pirate")
    write_pair(page, 1, "Arr!", "Yes.")
    page.get_by_role("button", name="Create and train").click()
    expect(page.get_by_role("button", name="Sending…")).to_be_visible()
    page.get_by_role("link", name="Chat", exact=True).click()
    error = {"message": "too few examples", "code": "INVALID_REQUEST", "param": None}
    held[0].fulfill(status=status, json={"id": "_worker/pirate", "report": None, "error": error})
    said = "pirate is trained" if status == 201 else "pirate could not be created: too few examples"
    expect(page.get_by_role("status")).to_contain_text(said)
    assert page.url.endswith("#chat")
    page.goto(f"{page.url.partition('#')[0]}#new-concept")
    kept = "" if status == 201 else "Arr!"
    expect(page.get_by_label("Positive text of pair 1", exact=True)).to_have_value(kept)


def test_the_report_leads_to_the_strongest_fluent_strength(page: Page, server: Server) -> None:
    report = server.get("/steering_concepts/sentiment").json()["report"]
    page.goto(f"{server.url}/#concepts/sentiment")
    strongest = f"+{report['max_strength']:g}"
    expect(page.locator(".limits")).to_contain_text(f"to {strongest}. Stronger ones count as these.")
    page.get_by_role("button", name=f"Try {strongest}", exact=True).click()
    expect(page.get_by_role("slider")).to_have_count(1)
    expect(page.get_by_role("slider", name="sentiment")).to_have_value(f"{report['max_strength']:g}")


def test_a_concept_that_is_tried_steers_alone(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/#concepts/formality")
    page.get_by_role("button", name="Try it").click()
    expect(page.get_by_role("slider")).to_have_count(1)
    expect(page.get_by_role("slider", name="formality")).to_have_value("1")


def test_a_concept_can_be_opened_by_its_address_without_failing_requests(page: Page, server: Server) -> None:
    failed: list[str] = []
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.goto(f"{server.url}/#concepts/sentiment")
    page.reload()
    expect(page.locator(".verdict")).to_be_visible()
    assert failed == []


def test_a_shipped_concept_cannot_be_deleted(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/#concepts/sentiment")
    expect(page.get_by_role("heading", name="sentiment")).to_be_visible()
    expect(page.get_by_role("button", name="Delete")).to_have_count(0)


def test_a_copy_of_a_concept_begins_with_its_pairs(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/#concepts/sentiment")
    page.get_by_role("button", name="Edit a copy").click()
    shipped = yaml.safe_load((ROOT / "configs/concepts/sentiment.yaml").read_text())
    second = page.get_by_label("Positive text of pair 2", exact=True)
    expect(second).to_have_value(shipped["examples"][1]["positive"])
    expect(page.get_by_label("Description")).to_have_value(shipped["description"])
    expect(page.get_by_label("Name", exact=True)).to_have_value("")


def test_the_list_is_filtered_by_name_and_description(page: Page) -> None:
    names = page.locator(".concept-list .row-name")
    expect(names).not_to_have_count(0)
    page.get_by_label("Filter concepts").fill("casual chat")
    expect(names).to_have_count(1)
    expect(names).to_contain_text("formality")


def test_hundreds_of_pairs_are_shown_in_pages(page: Page) -> None:
    table = "\n".join(["positive,negative", *(f"yes {n},no {n}" for n in range(400))])
    paste(page, table)
    expect(page.locator(".pages")).to_contain_text("1–25 of 400")
    page.get_by_role("button", name="Next pairs").click()
    expect(page.get_by_label("Positive text of pair 26")).to_have_value("yes 25")
