"""Charges requests to their callers' budgets. Knows no engine and no HTTP."""

import time
from typing import Protocol

from app.limits.budget import Budget, CallerLimits, Clock
from app.settings import AccessToken, LimitSettings


class Charge(Protocol):
    """What one request holds of its caller's budget."""

    async def take(self, tokens: int) -> None:
        """Takes tokens. Raises RATE_LIMITED, and takes none."""

    def end(self, used: int) -> None:
        """Returns the tokens that were taken but not used. Call it once."""


class Accounts(Protocol):
    async def begin(self, caller: AccessToken | None, nice: bool) -> Charge:
        """Counts a request in progress. The code that calls this must call `end` on the result.

        All callers without an access token share one budget. A caller's `nice` requests have a budget of
        their own, with the same limits. Raises RATE_LIMITED.
        """


class LocalAccounts:
    """Implements Accounts in memory, so a restart resets them."""

    def __init__(self, limits: LimitSettings, clock: Clock = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._budgets: dict[str, Budget] = {}

    async def begin(self, caller: AccessToken | None, nice: bool) -> "LocalCharge":
        return self.begin_with(limits_of(caller, self._limits), account_of(caller, nice))

    def begin_with(self, limits: CallerLimits, account: str) -> "LocalCharge":
        """The same for given limits. `account`: the name of the budget."""
        budget = self._budgets.setdefault(account, Budget(self._clock))
        budget.begin(limits)
        return LocalCharge(budget)


class LocalCharge:
    """Implements Charge."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0

    async def take(self, tokens: int) -> None:
        self._budget.take(tokens, self._taken)
        self._taken += tokens

    def end(self, used: int) -> None:
        self._budget.end(self._taken - used)


def account_of(caller: AccessToken | None, nice: bool) -> str:
    """The name of the budget that a request is charged to."""
    return f"{caller.sha256 if caller else ''}{'/nice' if nice else ''}"


def limits_of(caller: AccessToken | None, limits: LimitSettings) -> CallerLimits:
    """The access token's own limits, or the general ones."""
    return CallerLimits(
        (caller and caller.max_requests) or limits.max_requests,
        (caller and caller.tokens_per_minute) or limits.tokens_per_minute,
    )
