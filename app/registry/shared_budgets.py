"""The budgets of callers over all gateways, in the registry. Knows no sockets."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from app.limits.budget import Budget, CallerLimits
from app.registry.members import Member
from inference.interface.registry import Charge

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
        self._charges: dict[Member, dict[int, Charge]] = {}
        """Of each gateway's requests in progress, by their number."""
        self._changed = False
        self._load()

    def join(self, gateway: Member, charges: Mapping[int, Charge]) -> None:
        """Counts a gateway's requests in progress anew."""
        self.leave(gateway)
        self._charges[gateway] = dict(charges)
        for charge in charges.values():
            self._budget(charge.account).requests += 1

    def leave(self, gateway: Member) -> None:
        """Ends the requests of a gateway that is gone. What they have taken counts as used."""
        for charge in self._charges.pop(gateway, {}).values():
            self._budget(charge.account).requests -= 1

    def begin(self, gateway: Member, number: int, account: str, limits: CallerLimits) -> None:
        """Counts a request. `number`: the gateway's name for it. Raises RATE_LIMITED."""
        self._budget(account).begin(limits)
        self._charges[gateway][number] = Charge(account)
        self._changed = True

    def take(self, gateway: Member, number: int, tokens: int) -> None:
        """Takes tokens for a request. Raises RATE_LIMITED."""
        charge = self._charges[gateway].get(number)
        if charge is not None:
            self._budget(charge.account).take(tokens, charge.taken)
            charge.taken += tokens
            self._changed = True

    def end(self, gateway: Member, number: int, used: int) -> None:
        """Ends a request. Has no effect if it is not known."""
        charge = self._charges[gateway].pop(number, None)
        if charge is not None:
            self._budget(charge.account).end(charge.taken - used)
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
            self._write(msgspec.json.encode(levels))
        except OSError as error:
            _log.error("%s cannot be written: %s", self._file, error.strerror)

    def _write(self, content: bytes) -> None:
        """Replaces the file. Does not wait for the disk: a loss of power may fill the budgets."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._file.with_suffix(".new")
        scratch.write_bytes(content)
        scratch.replace(self._file)

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
