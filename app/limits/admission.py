"""Admission control: refuses requests that exceed an engine's capacity or the caller's limits.

All callers share the capacity. Each model has an engine of its own, and only the body of a request says which
one it needs. Until the body is read, there must be room in any of them. Each caller has its own limits. Runs
before the engine computes anything for a request. Knows no HTTP and no prompts.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from app.errors import EngineUnavailable, InvalidRequest, QueueFull
from app.limits.accounts import Accounts, Charge
from app.settings import AccessToken
from app.workers.engine import Engine

_TYPICAL_ANSWER = 256
"""Tokens to reserve for a choice without max_tokens. `AdmittedRequest.end` corrects the number later."""
_LONGEST_ANSWER = 10**9
"""A larger max_tokens counts as this number here. Later, the check of the context length refuses it."""


class AdmissionController:
    def __init__(self, engines: Callable[[], Sequence[Engine]], accounts: Accounts) -> None:
        """`engines`: those of all loaded models."""
        self._engines = engines
        self._accounts = accounts
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

    async def admit(
        self, caller: AccessToken | None, nice: bool, reservation: "Reservation"
    ) -> "AdmittedRequest":
        """Counts the request against the caller's limit for concurrent requests, before its body is read.

        The code that calls this must call `end` on the result. Raises RATE_LIMITED.
        """
        return AdmittedRequest(reservation, await self._accounts.begin(caller, nice))

    @asynccontextmanager
    async def track_request(self, caller: AccessToken | None) -> AsyncIterator[None]:
        """Counts a request that needs no engine capacity, while the context is open. Raises RATE_LIMITED."""
        charge = await self._accounts.begin(caller, nice=False)
        try:
            yield
        finally:
            charge.end(0)

    def check_any(self) -> None:
        """Raises UNAVAILABLE if all engines are down, QUEUE_FULL if none has room for one more choice."""
        available = [engine for engine in self._engines() if engine.available]
        if not available:
            raise EngineUnavailable
        if self._arrived + 1 > sum(self._room(engine) for engine in available):
            raise QueueFull

    def assign(self, engine: Engine, choices: int) -> None:
        """Reserves room for the choices of a request. Raises INVALID_REQUEST, UNAVAILABLE or QUEUE_FULL."""
        if not engine.available:
            raise EngineUnavailable
        if choices > engine.capacity:
            raise InvalidRequest(f"n must be at most {engine.capacity} for this model", "n")
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


class Reservation:
    """Room for a request's choices, from the request's arrival until the engine counts them."""

    def __init__(self, admission: AdmissionController) -> None:
        """The caller has reserved room for one choice."""
        self._admission = admission
        self._engine: Engine | None = None
        self._choices = 1

    def assign(self, engine: Engine, choices: int) -> None:
        """Moves the reservation to an engine, for so many choices.

        Raises INVALID_REQUEST, UNAVAILABLE or QUEUE_FULL.
        """
        self.release()
        self._admission.assign(engine, choices)
        self._engine, self._choices = engine, choices

    def release(self) -> None:
        """Releases the room. A second call does nothing."""
        self._admission.release(self._engine, self._choices)
        self._choices = 0


class AdmittedRequest:
    """What one request holds until its answer ends: a reservation, a request count and tokens."""

    def __init__(self, reservation: Reservation, charge: Charge) -> None:
        self._reservation = reservation
        self._charge = charge

    async def reserve(self, engine: Engine, choices: int, max_tokens: int | None) -> None:
        """Reserves room for the choices in the engine, and tokens for their answers.

        Raises INVALID_REQUEST, UNAVAILABLE, QUEUE_FULL or RATE_LIMITED.
        """
        self._reservation.assign(engine, choices)
        wanted = _TYPICAL_ANSWER if max_tokens is None else min(max_tokens, _LONGEST_ANSWER)
        await self._charge.take(choices * wanted)

    async def reserve_prompt(self, tokens: int) -> None:
        """Reserves the tokens of the prompt. Raises RATE_LIMITED."""
        await self._charge.take(tokens)

    def hand_over(self) -> None:
        """Releases the reservation, because the engine counts the choices from now on."""
        self._reservation.release()

    def end(self, tokens: int = 0) -> None:
        """Releases what the request holds. `tokens`: how many its prompt and answers really used."""
        self.hand_over()
        self._charge.end(tokens)
