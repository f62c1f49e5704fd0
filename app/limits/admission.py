"""Who gets how much of the engine: a place in its queue, requests at the same time, tokens per minute.

Decided before anything is computed for a request. Knows no HTTP and no prompts. All of it is kept in memory:
a server that starts again begins anew.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import EngineUnavailable, QueueFull, RateLimited
from app.settings import AccessToken, LimitSettings
from app.workers.engine import Engine

_TYPICAL_ANSWER = 256
"""Tokens that are reserved for a choice without max_tokens. What it really takes is settled in the end."""
_LONGEST_ANSWER = 10**9
"""Whoever asks for more is refused soon after, by the model's context."""


class AdmissionController:
    def __init__(
        self, engine: Engine, limits: LimitSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._clock = clock
        self._accounts: dict[tuple[str, bool], _Account] = {}
        self._coming = 0
        """Choices that have been promised a reservation, of requests that the engine has not seen yet."""

    def reserve(self) -> "Reservation":
        """For a request that comes in. Whoever gets one must free it. Raises UNAVAILABLE or QUEUE_FULL."""
        self.check_room(1)
        return Reservation(self)

    def admit(self, caller: AccessToken | None, nice: bool, reservation: "Reservation") -> "AdmittedRequest":
        """Called before the request's body is read. The caller must call `end` on what this returns.

        All callers without a token are one. What a caller sends as `nice` has limits of its own, as high.
        Raises RATE_LIMITED.
        """
        account = self._account(caller, nice)
        account.check_requests()
        return AdmittedRequest(reservation, account)

    @contextmanager
    def counting(self, caller: AccessToken | None) -> Iterator[None]:
        """Within, a request that takes no place is one of the caller's. Raises RATE_LIMITED."""
        account = self._account(caller, nice=False)
        account.check_requests()
        account.requests += 1
        try:
            yield
        finally:
            account.requests -= 1

    def check_room(self, choices: int) -> None:
        """Raises UNAVAILABLE or QUEUE_FULL."""
        if not self._engine.available:
            raise EngineUnavailable
        if self._coming + choices > self._engine.room:
            raise QueueFull

    def expect(self, choices: int) -> None:
        self._coming += choices

    def _account(self, caller: AccessToken | None, nice: bool) -> "_Account":
        key = (caller.sha256 if caller else "", nice)
        account = self._accounts.setdefault(key, _Account())
        requests = caller.max_requests if caller else None
        tokens = caller.tokens_per_minute if caller else None
        account.max_requests = requests or self._limits.max_requests or math.inf
        account.limit_tokens(tokens or self._limits.tokens_per_minute, self._clock)
        return account


class Reservation:
    """Room for a request's choices, from its arrival until the engine counts them itself."""

    def __init__(self, admission: AdmissionController) -> None:
        """For one choice, for which there must be room."""
        self._admission = admission
        self._choices = 1
        admission.expect(1)

    def resize(self, choices: int) -> None:
        """Room for so many in all. Raises UNAVAILABLE or QUEUE_FULL."""
        more = choices - self._choices
        self._admission.check_room(more)
        self._admission.expect(more)
        self._choices = choices

    def release(self) -> None:
        """Harmless the second time."""
        self._admission.expect(-self._choices)
        self._choices = 0


class AdmittedRequest:
    """One request, from its arrival to the end of its answer: what it holds."""

    def __init__(self, reservation: Reservation, account: "_Account") -> None:
        self._reservation = reservation
        self._account = account
        self._bucket = account.bucket
        self._tokens = 0
        account.requests += 1

    def reserve(self, choices: int, max_tokens: int | None) -> None:
        """Room for the choices and tokens for their answers. Raises QUEUE_FULL or RATE_LIMITED."""
        self._reservation.resize(choices)
        wanted = _TYPICAL_ANSWER if max_tokens is None else min(max_tokens, _LONGEST_ANSWER)
        self._take_tokens(choices * wanted)

    def reserve_prompt(self, tokens: int) -> None:
        """Raises RATE_LIMITED."""
        self._take_tokens(tokens)

    def hand_over(self) -> None:
        """From here on the engine counts the choices itself."""
        self._reservation.release()

    def end(self, tokens: int = 0) -> None:
        """`tokens`: what its prompt and its answers really took."""
        self.hand_over()
        self._account.requests -= 1
        if self._bucket:
            self._bucket.put_back(self._tokens - tokens)

    def _take_tokens(self, count: int) -> None:
        if self._bucket and (seconds := self._bucket.take(count, self._tokens)):
            rule = f"the {self._bucket.capacity} tokens per minute of this access token are used up"
            raise RateLimited(f"{rule}; try again in {math.ceil(seconds)} seconds", seconds)
        self._tokens += count


class TokenBucket:
    """Holds what may be used now: at most what comes in a minute."""

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self._clock = clock
        self._level: float = capacity
        self._filled = clock()

    def take(self, count: int, held: int = 0) -> float:
        """Takes `count` tokens, or none: then it says in how many seconds they will be there.

        `held` is what this taker has already. Who needs more than a minute brings waits for a full bucket,
        and leaves it in debt.
        """
        self._fill()
        lacking = min(held + count, self.capacity) - held - self._level
        if lacking > 0:
            return lacking * 60 / self.capacity
        self._level -= count
        return 0.0

    def put_back(self, count: int) -> None:
        """Negative: more was used than was taken."""
        self._fill()
        self._level = min(self._level + count, self.capacity)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._filled) * self.capacity / 60, self.capacity)
        self._filled = now


class _Account:
    """What one caller uses of its limits."""

    def __init__(self) -> None:
        self.requests = 0
        self.max_requests: float = math.inf
        self.bucket: TokenBucket | None = None

    def check_requests(self) -> None:
        """Raises RATE_LIMITED."""
        if self.requests >= self.max_requests:
            rule = f"{self.requests} requests with this access token are being answered, which is its limit"
            raise RateLimited(rule, 1)

    def limit_tokens(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        if (self.bucket.capacity if self.bucket else None) != per_minute:
            self.bucket = TokenBucket(per_minute, clock) if per_minute else None
