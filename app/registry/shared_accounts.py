"""Charges requests to budgets that several servers share."""

import asyncio
import math
from functools import partial

from app.errors import ApiError, EngineUnavailable, ErrorCode
from app.limits.accounts import Charge, LocalAccounts, account_of, limits_of
from app.limits.budget import CallerLimits
from app.registry.client import RegistryClient
from app.settings import AccessToken, LimitSettings
from inference.interface.registry import Begin, Direction, Done, End, Take

_PATIENCE_SECONDS = 1.0
"""A request goes on without a registry that takes longer."""


class SharedAccounts:
    """Implements app.limits.accounts.Accounts.

    The registry counts all requests that have a limit. While it is not available, each server permits its
    share of each limit.
    """

    def __init__(self, client: RegistryClient, limits: LimitSettings) -> None:
        self._client = client
        self._limits = limits
        self._local = LocalAccounts(limits)

    async def begin(self, caller: AccessToken | None, nice: bool) -> Charge:
        limits, account = limits_of(caller, self._limits), account_of(caller, nice)
        if limits == CallerLimits(None, None):
            return self._local.begin_with(limits, account)
        try:
            return await self._begin_shared(limits, account)
        except ApiError as error:
            if error.code is ErrorCode.RATE_LIMITED:
                raise
            return self._local.begin_with(_share(limits, self._client.gateways), account)

    async def _begin_shared(self, limits: CallerLimits, account: str) -> "SharedCharge":
        def message(number: int) -> Begin:
            return Begin(number, account, limits.max_requests, limits.tokens_per_minute)

        asking = asyncio.ensure_future(self._client.ask(message))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await asyncio.shield(asking)
        except TimeoutError:
            asking.add_done_callback(partial(self._return, account))
            raise EngineUnavailable from None
        except asyncio.CancelledError:
            asking.add_done_callback(partial(self._return, account))
            raise
        return SharedCharge(self._client, account)

    def _return(self, account: str, asking: "asyncio.Task[Done | Direction]") -> None:
        """Ends a request that nobody waits for any more, if the registry has counted it after all."""
        if not asking.cancelled() and asking.exception() is None:
            self._client.tell(End(account, 0))


class SharedCharge:
    """Implements app.limits.accounts.Charge, for a request that the registry has counted."""

    def __init__(self, client: RegistryClient, account: str) -> None:
        self._client = client
        self._account = account
        self._taken = 0
        client.requests[account] += 1

    async def take(self, tokens: int) -> None:
        """If the registry is lost in the meantime, the request may go on."""
        held = self._taken
        self._taken += tokens  # before the answer, so that `end` returns them if this is cancelled
        try:
            await self._client.ask(lambda number: Take(number, self._account, tokens, held))
        except ApiError as error:
            self._taken -= tokens
            if error.code is ErrorCode.RATE_LIMITED:
                raise

    def end(self, used: int) -> None:
        self._client.requests[self._account] -= 1
        self._client.tell(End(self._account, self._taken - used))


def _share(limits: CallerLimits, servers: int) -> CallerLimits:
    """The limits of one of several servers. At least one request and one token."""
    return CallerLimits(
        *(part and math.ceil(part / servers) for part in (limits.max_requests, limits.tokens_per_minute))
    )
