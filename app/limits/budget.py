"""One caller's limits: concurrent requests, and tokens per minute. Knows no HTTP and no sockets."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import RateLimited

Clock = Callable[[], float]
"""Seconds, never set back."""


@dataclass(frozen=True)
class CallerLimits:
    """None: no limit."""

    max_requests: int | None
    tokens_per_minute: int | None


class TokenBucket:
    """The tokens that a caller may use now. The bucket refills steadily, up to one minute's tokens."""

    def __init__(self, capacity: int, clock: Clock) -> None:
        self.capacity = capacity
        self._clock = clock
        self._level: float = capacity
        self._filled = clock()

    @property
    def level(self) -> float:
        """The tokens that are available now. Negative after a request that needed more than a minute's."""
        self._fill()
        return self._level

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

    def put_back(self, count: float) -> None:
        """Returns unused tokens. A negative count charges for tokens that were used but not taken."""
        self._fill()
        self._level = min(self._level + count, self.capacity)

    def _fill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._filled) * self.capacity / 60, self.capacity)
        self._filled = now


class Budget:
    """One caller's limits, and how much of them it uses now."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.requests = 0
        self.bucket: TokenBucket | None = None
        """None: there is no limit for tokens."""
        self._clock = clock

    def begin(self, limits: CallerLimits) -> None:
        """Counts a request. Raises RATE_LIMITED if the caller has as many in progress as it may have.

        A changed limit applies from now on.
        """
        self.set_tokens_per_minute(limits.tokens_per_minute)
        if limits.max_requests is not None and self.requests >= limits.max_requests:
            rule = f"this caller has {self.requests} requests in progress, which is its limit"
            raise RateLimited(rule, 1)
        self.requests += 1

    def take(self, count: int, held: int) -> None:
        """Takes tokens for a request that has taken `held` before. Raises RATE_LIMITED, and takes none."""
        if self.bucket and (seconds := self.bucket.take(count, held)):
            rule = f"this caller has used up its {self.bucket.capacity} tokens per minute"
            raise RateLimited(f"{rule}; try again in {math.ceil(seconds)} seconds", seconds)

    def end(self, unused: int) -> None:
        """Ends a request. `unused`: tokens that it has taken, less those that it has used."""
        self.requests -= 1
        if self.bucket:
            self.bucket.put_back(unused)

    def set_tokens_per_minute(self, limit: int | None) -> None:
        """Starts a new bucket if the limit has changed."""
        if (self.bucket.capacity if self.bucket else None) != limit:
            self.bucket = TokenBucket(limit, self._clock) if limit else None
