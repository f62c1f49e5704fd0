"""Admission control: refuses requests that exceed an engine's capacity or the caller's limits.

All callers share the capacity. Each model has an engine of its own, and only the body of a request says which
one it needs. Until the body is read, there must be room in any of them. Each caller has its own limits:
concurrent requests, and tokens per minute. Runs before the engine computes anything for a request. Keeps its
state in memory, so a restart resets it. Knows no HTTP and no prompts.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from app.errors import EngineUnavailable, QueueFull, RateLimited
from app.settings import AccessToken, LimitSettings
from app.workers.engine import Engine

_TYPICAL_ANSWER = 256
"""Tokens to reserve for a choice without max_tokens. `AdmittedRequest.end` corrects the number later."""
_LONGEST_ANSWER = 10**9
"""A larger max_tokens counts as this number here. Later, the check of the context length refuses it."""


class AdmissionController:
    def __init__(
        self,
        engines: Callable[[], Sequence[Engine]],
        limits: LimitSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`engines`: those of all loaded models."""
        self._engines = engines
        self._limits = limits
        self._clock = clock
        self._accounts: dict[tuple[str, bool], _Account] = {}
        self._arrived = 0
        """Number of requests whose engine is not known yet. Each reserves one choice."""
        self._reserved: Counter[Engine] = Counter()
        """Number of choices reserved in each engine. The engine does not count these choices yet."""

    def reserve(self) -> "Reservation":
        """Reserves room for one choice of a new request, in any engine. The caller must release it.

        Raises UNAVAILABLE or QUEUE_FULL.
        """
        self.check_any()
        self._arrived += 1
        return Reservation(self)

    def admit(self, caller: AccessToken | None, nice: bool, reservation: "Reservation") -> "AdmittedRequest":
        """Counts the request against the caller's limit for concurrent requests, before its body is read.

        The code that calls this must call `end` on the result. All callers without an access token share one
        account. A caller's `nice` requests count separately, with the same limits. Raises RATE_LIMITED.
        """
        account = self._account(caller, nice)
        account.check_requests()
        return AdmittedRequest(reservation, account)

    @contextmanager
    def track_request(self, caller: AccessToken | None) -> Iterator[None]:
        """Counts a request that needs no engine capacity, while the context is open. Raises RATE_LIMITED."""
        account = self._account(caller, nice=False)
        account.check_requests()
        account.requests += 1
        try:
            yield
        finally:
            account.requests -= 1

    def check_any(self) -> None:
        """Raises UNAVAILABLE if all engines are down, QUEUE_FULL if none has room for one more choice."""
        available = [engine for engine in self._engines() if engine.available]
        if not available:
            raise EngineUnavailable
        if self._arrived + 1 > sum(self._room(engine) for engine in available):
            raise QueueFull

    def assign(self, engine: Engine, choices: int) -> None:
        """Reserves room for the choices of a request. Raises UNAVAILABLE or QUEUE_FULL."""
        if not engine.available:
            raise EngineUnavailable
        if choices > self._room(engine):
            raise QueueFull
        self._reserved[engine] += choices

    def release(self, engine: Engine | None, choices: int) -> None:
        """Releases choices that `reserve` (for no engine) or `assign` has reserved."""
        if engine is None:
            self._arrived -= choices
        else:
            self._reserved[engine] -= choices

    def _room(self, engine: Engine) -> int:
        """For how many more choices the engine has room."""
        return engine.free_capacity - self._reserved[engine]

    def _account(self, caller: AccessToken | None, nice: bool) -> "_Account":
        key = (caller.sha256 if caller else "", nice)
        account = self._accounts.setdefault(key, _Account())
        requests = caller.max_requests if caller else None
        tokens = caller.tokens_per_minute if caller else None
        account.max_requests = requests or self._limits.max_requests or math.inf
        account.limit_tokens(tokens or self._limits.tokens_per_minute, self._clock)
        return account


class Reservation:
    """Room for a request's choices, from the request's arrival until the engine counts them."""

    def __init__(self, admission: AdmissionController) -> None:
        """The caller has reserved room for one choice."""
        self._admission = admission
        self._engine: Engine | None = None
        self._choices = 1

    def assign(self, engine: Engine, choices: int) -> None:
        """Moves the reservation to an engine, for so many choices. Raises UNAVAILABLE or QUEUE_FULL."""
        self.release()
        self._admission.assign(engine, choices)
        self._engine, self._choices = engine, choices

    def release(self) -> None:
        """Releases the room. A second call does nothing."""
        self._admission.release(self._engine, self._choices)
        self._choices = 0


class AdmittedRequest:
    """What one request holds until its answer ends: a reservation, a request count and tokens."""

    def __init__(self, reservation: Reservation, account: "_Account") -> None:
        self._reservation = reservation
        self._account = account
        self._bucket = account.bucket
        self._tokens = 0
        account.requests += 1

    def reserve(self, engine: Engine, choices: int, max_tokens: int | None) -> None:
        """Reserves room for the choices in the engine, and tokens for their answers.

        Raises UNAVAILABLE, QUEUE_FULL or RATE_LIMITED.
        """
        self._reservation.assign(engine, choices)
        wanted = _TYPICAL_ANSWER if max_tokens is None else min(max_tokens, _LONGEST_ANSWER)
        self._take_tokens(choices * wanted)

    def reserve_prompt(self, tokens: int) -> None:
        """Reserves the tokens of the prompt. Raises RATE_LIMITED."""
        self._take_tokens(tokens)

    def hand_over(self) -> None:
        """Releases the reservation, because the engine counts the choices from now on."""
        self._reservation.release()

    def end(self, tokens: int = 0) -> None:
        """Releases what the request holds. `tokens`: how many its prompt and answers really used."""
        self.hand_over()
        self._account.requests -= 1
        if self._bucket:
            self._bucket.put_back(self._tokens - tokens)

    def _take_tokens(self, count: int) -> None:
        if self._bucket and (seconds := self._bucket.take(count, self._tokens)):
            rule = f"this caller has used up its {self._bucket.capacity} tokens per minute"
            raise RateLimited(f"{rule}; try again in {math.ceil(seconds)} seconds", seconds)
        self._tokens += count


class TokenBucket:
    """The tokens that a caller may use now. The bucket refills steadily, up to one minute's tokens."""

    def __init__(self, capacity: int, clock: Callable[[], float]) -> None:
        self.capacity = capacity
        self._clock = clock
        self._level: float = capacity
        self._filled = clock()

    def take(self, count: int, held: int = 0) -> float:
        """Takes `count` tokens and returns 0, or takes none and returns the seconds until they are available.

        `held`: tokens that this request has taken before. A request that needs more than one minute's tokens
        must wait for a full bucket, and leaves it with a negative level.
        """
        self._fill()
        missing = min(held + count, self.capacity) - held - self._level
        if missing > 0:
            return missing * 60 / self.capacity
        self._level -= count
        return 0.0

    def put_back(self, count: int) -> None:
        """Returns unused tokens. A negative count charges for tokens that were used but not taken."""
        self._fill()
        self._level = min(self._level + count, self.capacity)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._filled) * self.capacity / 60, self.capacity)
        self._filled = now


class _Account:
    """One caller's limits, and how much of them it uses now."""

    def __init__(self) -> None:
        self.requests = 0
        self.max_requests: float = math.inf
        self.bucket: TokenBucket | None = None

    def check_requests(self) -> None:
        """Raises RATE_LIMITED if the caller has as many requests in progress as it may have."""
        if self.requests >= self.max_requests:
            rule = f"this caller has {self.requests} requests in progress, which is its limit"
            raise RateLimited(rule, 1)

    def limit_tokens(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        """Starts a new bucket if the limit has changed. `per_minute` is None if there is no limit."""
        if (self.bucket.capacity if self.bucket else None) != per_minute:
            self.bucket = TokenBucket(per_minute, clock) if per_minute else None
