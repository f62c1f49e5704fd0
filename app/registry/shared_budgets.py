"""The budgets of callers over all gateways, in the registry. Knows no sockets."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from app.limits.budget import Budget, CallerLimits
from app.registry.members import Member
from inference.interface.files import write_atomically

_log = logging.getLogger(__name__)


class _Level(msgspec.Struct):
    """A token bucket in the file."""

    capacity: int
    level: float
    saved: float
    """Seconds since 1970."""


class SharedBudgets:
    """Keeps the levels of the token buckets in a file, so that a restart fills none of them."""

    def __init__(
        self,
        file: Path,
        clock: Callable[[], float] = time.monotonic,
        calendar: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: seconds, never set back. `calendar`: seconds since 1970."""
        self._file = file
        self._clock = clock
        self._calendar = calendar
        self._budgets: dict[str, Budget] = {}
        self._requests: dict[Member, Counter[str]] = {}
        """Gateway -> account -> number of requests in progress."""
        self._changed = False
        self._load()

    def join(self, gateway: Member, requests: dict[str, int]) -> None:
        """Counts a gateway's requests in progress anew."""
        self.leave(gateway)
        counts = self._requests[gateway] = Counter(requests)
        for account, count in counts.items():
            self._budget(account).requests += count

    def leave(self, gateway: Member) -> None:
        """Ends the requests of a gateway that is gone. What they have taken counts as used."""
        for account, count in self._requests.pop(gateway, Counter()).items():
            self._budget(account).requests -= count

    def begin(self, gateway: Member, account: str, limits: CallerLimits) -> None:
        """Counts a request. Raises RATE_LIMITED."""
        self._budget(account).begin(limits)
        self._requests[gateway][account] += 1
        self._changed = True

    def take(self, account: str, tokens: int, held: int) -> None:
        """Takes tokens for a request. Raises RATE_LIMITED."""
        self._budget(account).take(tokens, held)
        self._changed = True

    def end(self, gateway: Member, account: str, unused: int) -> None:
        """Ends a request."""
        if self._requests[gateway][account] > 0:
            self._requests[gateway][account] -= 1
            self._budget(account).end(unused)
            self._changed = True

    def save(self) -> None:
        """Writes the levels, if they have changed."""
        if not self._changed:
            return
        self._changed = False
        now = self._calendar()
        levels = {
            account: _Level(budget.bucket.capacity, budget.bucket.level, now)
            for account, budget in self._budgets.items()
            if budget.bucket
        }
        try:
            write_atomically(self._file, msgspec.json.encode(levels))
        except OSError as error:
            _log.error("%s cannot be written: %s", self._file, error.strerror)

    def _budget(self, account: str) -> Budget:
        return self._budgets.setdefault(account, Budget(self._clock))

    def _load(self) -> None:
        try:
            levels = msgspec.json.decode(self._file.read_bytes(), type=dict[str, _Level])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            _log.error("%s cannot be read, so all callers have their full budgets: %s", self._file, error)
            return
        for account, saved in levels.items():
            budget = self._budget(account)
            budget.set_tokens_per_minute(saved.capacity)
            if budget.bucket:
                refilled = max(0.0, self._calendar() - saved.saved) * saved.capacity / 60
                budget.bucket.put_back(saved.level + refilled - saved.capacity)
