"""Charges requests to budgets that several servers share."""

import asyncio
import math
from functools import partial

from app.errors import ApiError, EngineUnavailable, ErrorCode
from app.limits import accounts
from app.limits.accounts import LocalAccounts, account_of, limits_of
from app.limits.budget import CallerLimits
from app.registry.client import RegistryClient
from app.settings import AccessToken, LimitSettings
from inference.interface.registry import Begin, Charge, Direction, Done, End, Take

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

    async def begin(self, caller: AccessToken | None, nice: bool) -> accounts.Charge:
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
        """Raises RATE_LIMITED, or UNAVAILABLE if the registry does not answer in time."""
        number = self._client.new_id()
        message = Begin(number, account, limits.max_requests, limits.tokens_per_minute)
        asking = asyncio.ensure_future(self._client.ask(message))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await asyncio.shield(asking)
        except TimeoutError:
            asking.add_done_callback(partial(self._return, number))
            raise EngineUnavailable from None
        except asyncio.CancelledError:
            asking.add_done_callback(partial(self._return, number))
            raise
        return SharedCharge(self._client, number, account)

    def _return(self, number: int, asking: "asyncio.Task[Done | Direction]") -> None:
        """Ends a request that nobody waits for any more, if the registry has counted it after all."""
        if not asking.cancelled() and asking.exception() is None:
            self._client.tell(End(number, 0))


class SharedCharge:
    """Implements app.limits.accounts.Charge, for a request that the registry has counted."""

    def __init__(self, client: RegistryClient, number: int, account: str) -> None:
        """`number`: the request id of its Begin."""
        self._client = client
        self._number = number
        self._charge = client.charges[number] = Charge(account)

    async def take(self, tokens: int) -> None:
        """If the registry does not answer in time, the request goes on. The registry counts right later."""
        message = Take(self._client.new_id(), self._number, tokens)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._client.ask(message)
        except ApiError as error:
            if error.code is ErrorCode.RATE_LIMITED:
                raise
        except TimeoutError:
            pass
        self._charge.taken += tokens

    def end(self, used: int) -> None:
        del self._client.charges[self._number]
        self._client.tell(End(self._number, used))


def _share(limits: CallerLimits, servers: int) -> CallerLimits:
    """The limits of one of several servers. At least one request and one token."""
    return CallerLimits(
        *(part and math.ceil(part / servers) for part in (limits.max_requests, limits.tokens_per_minute))
    )
