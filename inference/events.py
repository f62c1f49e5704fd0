"""Turns sampled tokens into events. Knows when an answer ends, and which events wait for readings."""

import msgspec

from inference.interface.requests import FinishReason, TokenEvent
from inference.runner.model_runner import SampledToken
from inference.scheduling.sequence import Sequence


class TokenEvents:
    def __init__(self) -> None:
        self._unread: dict[Sequence, TokenEvent] = {}
        """The newest event of each sequence with readers. It waits for the readings of its token."""

    def add(self, token: SampledToken) -> tuple[list[TokenEvent], bool]:
        """Adds the token to its sequence. Returns the events to send, and whether the sequence has ended.

        If the sequence has readers, an event waits until its token is computed and read. So the last token
        that max_tokens allows is computed as well. What is sampled after it is dropped.
        """
        if not token.sequence.readers:
            event = _append(token)
            return [event], event.finish_reason is not None
        events = self._read(token.sequence)
        if events and events[-1].finish_reason is not None:
            return events, True
        event = _append(token)
        if event.finish_reason is FinishReason.STOP:
            return [*events, event], True
        self._unread[token.sequence] = event
        return events, False

    def forget(self, sequence: Sequence) -> None:
        """Drops the event that waits, because the sequence has ended."""
        self._unread.pop(sequence, None)

    def _read(self, sequence: Sequence) -> list[TokenEvent]:
        """The event that has waited, with the readings of its token, which this step has computed."""
        unread = self._unread.pop(sequence, None)
        if unread is None:
            return []
        readings = [reader.value(sequence.num_computed_tokens - 1) for reader in sequence.readers]
        return [msgspec.structs.replace(unread, readings=readings)]


def finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    """Why the sequence ends with its newest token; None if it goes on."""
    if token_id in sequence.stop_token_ids:
        return FinishReason.STOP
    if sequence.num_output_tokens >= sequence.max_tokens:
        return FinishReason.LENGTH
    return None


def _append(token: SampledToken) -> TokenEvent:
    sequence = token.sequence
    sequence.append(token.token_id)
    reason = finish_reason(sequence, token.token_id)
    return TokenEvent(sequence.request_id, sequence.index, token.token_id, reason, token.logprobs)
