"""What the tests of transcripts share: a text, ways to end it, and steps of an engine."""

import pytest

from app.text.transcript import AnswerHeader, Progress, Transcript
from inference.interface.requests import FinishReason, TokenEvent

HEADING = AnswerHeader("chatcmpl-1", 1763800000, "tiny", "fp_1")
TEXT = "Hello 你好, wörld 😀 the end"
CONTROL = 0
"""<|endoftext|>, which does not end a turn."""

by_finish = pytest.mark.parametrize("finish", FinishReason)
by_stop = pytest.mark.parametrize("stop", [(), ("wör",), ("😀 the", "好"), ("nowhere",), ("end",), ("H",)])
"""Stop sequences for TEXT."""


def in_steps(events: list[TokenEvent], per_step: int = 1) -> list[list[TokenEvent]]:
    return [events[start : start + per_step] for start in range(0, len(events), per_step)]


def feed(answer: Transcript, steps: list[list[TokenEvent]]) -> list[Progress]:
    return [progress for events in steps for progress in answer.feed(events)]
