"""Measures whether the playground stutters: with 1000 concepts, and with an answer of 5000 tokens.

    python -m benchmarks.playground http://127.0.0.1:8000

Needs a running server without access tokens, and Chromium. The page comes from the server. Its requests for
concepts and answers are answered in the browser, with made-up ones, so the model does not matter.
"""

import argparse
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route, sync_playwright

CONCEPTS = 1000
TOKENS = 5000

WATCH = """() => {
    window.frames = [];
    window.tasks = [];
    new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({ type: "longtask" });
    let before = performance.now();
    const next = (now) => { frames.push(now - before); before = now; requestAnimationFrame(next); };
    requestAnimationFrame(next);
}"""

# A stream of tokens with log probabilities and readings, a chunk for each token, 10 chunks every 20 ms.
STREAM = """(count) => {
    const sent = window.fetch;
    const encoder = new TextEncoder();
    const words = ["The", " hotel", " is", " a", " quiet", " house", " by", " the", " sea", "."];
    const chunk = (index) => {
        const token = index % 100 === 99 ? "\\n\\n" : words[index % words.length];
        const bytes = [...encoder.encode(token)];
        const logprob = -(index % 50) / 10;
        const top = words.slice(0, 5).map((word, rank) => ({ token: word, logprob: -rank, bytes }));
        const choice = {
            index: 0,
            delta: { content: token },
            logprobs: { content: [{ token, logprob, bytes, top_logprobs: top }] },
            steering_readings: { content: [{ token, bytes, readings: { "_worker/c0": index % 3 } }] },
            finish_reason: index === count - 1 ? "length" : null,
        };
        return `data: ${JSON.stringify({ choices: [choice], usage: null })}\\n\\n`;
    };
    window.fetch = (url, options) => {
        if (!String(url).includes("chat/completions")) return sent(url, options);
        let index = 0;
        const body = new ReadableStream({
            async pull(controller) {
                for (let each = 0; each < 10 && index < count; each += 1, index += 1) {
                    controller.enqueue(encoder.encode(chunk(index)));
                }
                if (index < count) return new Promise((resolve) => setTimeout(resolve, 20));
                controller.enqueue(encoder.encode("data: [DONE]\\n\\n"));
                controller.close();
            },
        });
        return Promise.resolve(new Response(body, { status: 200 }));
    };
}"""


@dataclass(frozen=True)
class Figures:
    cpu_seconds: float
    """What the page's main thread computed, in CPU time: other programs on the machine do not count."""
    seconds: float
    slowest_frame_ms: float
    """The longest time between two frames."""
    late_frames: int
    """Frames that came more than 50 ms after the one before."""
    longest_task_ms: float
    """0 if no task took 50 ms."""


class Watch:
    """Measures what a page does in a `with` block."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._session = page.context.new_cdp_session(page)
        self._session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.figures: Figures | None = None

    def __enter__(self) -> "Watch":
        self._page.evaluate(WATCH)
        self._before = self._metrics()
        return self

    def __exit__(self, *_: object) -> None:
        after = self._metrics()
        frames, tasks = self._page.evaluate("[frames, tasks]")
        self.figures = Figures(
            cpu_seconds=round(after["TaskDuration"] - self._before["TaskDuration"], 2),
            seconds=round(sum(frames) / 1000, 1),
            slowest_frame_ms=round(max(frames)),
            late_frames=sum(frame > 50 for frame in frames),
            longest_task_ms=round(max(tasks, default=0)),
        )

    def _metrics(self) -> dict[str, float]:
        found = self._session.send("Performance.getMetrics")["metrics"]
        return {metric["name"]: metric["value"] for metric in found}


def concepts(count: int) -> dict[str, Any]:
    """The answer of GET /steering_concepts with this many concepts."""
    card = {
        "object": "steering_concept",
        "created": 0,
        "num_examples": 24,
        "imported": False,
        "shipped": False,
    }
    text = "A description of what the texts have in common, as long as people write it."
    data = [
        {
            **card,
            "id": f"_worker/c{index}",
            "description": f"{index}: {text}",
            "state": "ready",
            "progress": 1.0,
        }
        for index in range(count)
    ]
    return {"object": "list", "data": data, "problems": []}


def open_page(page: Page, url: str) -> None:
    """Opens the page with many concepts and answers of many tokens."""

    def answer(route: Route) -> None:
        is_list = urlsplit(route.request.url).path.endswith("/steering_concepts")
        route.fulfill(
            json=concepts(CONCEPTS) if is_list else {"id": "_worker/c0", "state": "ready", "report": None}
        )

    page.route("**/steering_concepts**", answer)
    page.goto(url)
    page.wait_for_selector(".strengths li")
    page.evaluate(STREAM, TOKENS)


def measure_list(page: Page) -> Figures:
    """Opens the list of concepts, scrolls through it, and filters it letter by letter."""
    with Watch(page) as watch:
        page.evaluate("location.hash = '#concepts'")
        page.wait_for_selector(f".concept-list li:nth-child({CONCEPTS})", state="attached")
        rows = page.locator(".concept-list > ul")
        for position in range(0, 50_000, 2500):
            rows.evaluate("(list, top) => { list.scrollTop = top; }", position)
            page.wait_for_timeout(30)
        page.locator(".concept-list input").press_sequentially("c99", delay=60)
        page.wait_for_timeout(200)
    assert watch.figures
    return watch.figures


def measure_answer(page: Page, colour: str) -> Figures:
    """Chats, and colours the tokens while they arrive. `colour`: a choice of "Colour by"."""
    page.evaluate("location.hash = '#chat'")
    page.locator(".composer textarea").fill("Write a long text.")
    with Watch(page) as watch:
        page.keyboard.press("Enter")
        if colour != "none":
            page.locator(".colour-choice select").select_option(colour)
        page.wait_for_selector(".figures", timeout=300_000)
    assert watch.figures
    page.get_by_role("button", name="New conversation").click()
    return watch.figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="the server's address")
    arguments = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("google-chrome")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        open_page(page, arguments.url)
        print(f"{CONCEPTS} concepts:", json.dumps(asdict(measure_list(page))))
        for colour in ("none", "logprob"):
            print(f"{TOKENS} tokens, colour {colour}:", json.dumps(asdict(measure_answer(page, colour))))
        browser.close()


if __name__ == "__main__":
    main()
