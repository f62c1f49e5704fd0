"""What an answer reports about one generated token: log probabilities and steering readings. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from app.schemas.completions import TokenLogprob, TokenReadings, TopLogprob
from app.text.tokenizer import Tokenizer
from inference.interface.requests import TokenEvent

# JSON has no infinity, so the API sends this for a log probability that is not finite.
_LOGPROB_FLOOR = -9999.0


class TokenEntry(NamedTuple):
    """The report about one token. A part is None if the request does not ask for it."""

    logprob: TokenLogprob | None
    readings: TokenReadings | None
    can_have_text: bool


class TokenEntries:
    """Makes the entries of one request's tokens."""

    def __init__(
        self, tokenizer: Tokenizer, digests: Iterable[str], reading_digests: Mapping[str, str]
    ) -> None:
        """`digests`: what the engine reads, in the order of TokenEvent.readings. `reading_digests`: id of
        each concept that the request wants to be read -> its digest.
        """
        self._tokenizer = tokenizer
        positions = {digest: position for position, digest in enumerate(digests)}
        self._positions = {concept: positions[digest] for concept, digest in reading_digests.items()}

    def make(self, event: TokenEvent) -> TokenEntry | None:
        """None if the request asks for no entries."""
        if event.logprobs is None and event.readings is None:
            return None
        token = self._tokenizer.text_of(event.token_id)
        raw = list(token.raw)
        logprob = readings = None
        if event.logprobs is not None:
            top = [self._top(token_id, value) for token_id, value in event.logprobs.top]
            logprob = TokenLogprob(token.name, _finite(event.logprobs.logprob), raw, top)
        if event.readings is not None:
            readings = TokenReadings(token.name, raw, self._by_id(event.readings))
        return TokenEntry(logprob, readings, bool(raw) and not token.is_control)

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        token = self._tokenizer.text_of(token_id)
        return TopLogprob(token.name, _finite(logprob), list(token.raw))

    def _by_id(self, readings: list[float]) -> dict[str, float | None]:
        values = [value if math.isfinite(value) else None for value in readings]
        return {concept: values[position] for concept, position in self._positions.items()}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOGPROB_FLOOR
