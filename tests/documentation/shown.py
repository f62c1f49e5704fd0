"""Compares what a page shows with what the server answers. `…` in a page stands for anything."""

import json
import re
from collections.abc import Iterator
from typing import Any


def parse(text: str) -> Any:
    """JSON in which `…` replaces fields or entries, or a part of a string."""
    return json.loads(re.sub(r",?…(?=[\]}])|(?<=[{\[])…,?", "", text))


def events(text: str) -> list[Any]:
    """The JSON of the events of a stream, without `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [parse(line) for line in lines]


def looks_like(shown: Any, answered: Any) -> bool:
    """Whether the answer has the fields that are shown, with values of the same types."""
    match shown, answered:
        case dict(), dict():
            return all(name in answered and looks_like(shown[name], answered[name]) for name in shown)
        case list(), list():
            return len(answered) >= len(shown) and all(map(looks_like, shown, answered))
        case (bool() | None, _) | (_, bool() | None):
            return type(shown) is type(answered)
        case int() | float(), int() | float():
            return True
    return type(shown) is type(answered)


def is_part_of(shown: Any, answered: Any) -> bool:
    return any(looks_like(shown, node) for node in nodes(answered))


def nodes(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from nodes(child)


def appears_in(shown: str, output: str) -> bool:
    """Whether the command has printed each of these lines."""
    lines = [".*".join(map(re.escape, line.strip().split("…"))) for line in shown.splitlines()]
    printed = [line.strip() for line in output.splitlines()]
    return all(any(re.fullmatch(line, other) for other in printed) for line in lines)
