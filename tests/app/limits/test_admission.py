"""Admission control: engine capacity, concurrent requests and tokens per minute, reserved and released."""

from dataclasses import dataclass
from typing import Any

import pytest

from app.errors import ApiError, EngineUnavailable, InvalidRequest, QueueFull, RateLimited
from app.limits.accounts import LocalAccounts
from app.limits.admission import AdmissionController, AdmittedRequest
from app.limits.budget import TokenBucket
from app.settings import AccessToken, LimitSettings


@dataclass(eq=False)
class Engine:
    free_capacity: int = 10
    available: bool = True
    capacity: int = 10


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine() -> Engine:
    return Engine()


def build(engine: Engine, clock: Clock, **limits: Any) -> AdmissionController:
    return AdmissionController(lambda: [engine], LocalAccounts(LimitSettings(**limits), clock))  # type: ignore[list-item]


async def admit(admission: AdmissionController, caller: AccessToken | None, nice: bool) -> AdmittedRequest:
    reservation = admission.reserve()
    try:
        return await admission.admit(caller, nice, reservation)
    except ApiError:
        reservation.release()
        raise


def token(name: str = "a", **limits: Any) -> AccessToken:
    return AccessToken(name=name, sha256=name * 64, **limits)


def seconds_until(error: pytest.ExceptionInfo[ApiError]) -> int | None:
    return error.value.retry_after


async def test_capacity_is_reserved_only_once(engine: Engine, clock: Clock) -> None:
    admission = build(engine, clock)
    first, second = await admit(admission, None, False), await admit(admission, None, False)
    await first.reserve(engine, 7, 1)
    with pytest.raises(QueueFull):
        await second.reserve(engine, 4, 1)
    await second.reserve(engine, 3, 1)
    with pytest.raises(QueueFull):
        await admit(admission, None, False)
    first.end()
    await (await admit(admission, None, False)).reserve(engine, 7, 1)


async def test_choices_that_never_fit_are_refused_and_take_nothing(engine: Engine, clock: Clock) -> None:
    admission = build(engine, clock)
    with pytest.raises(InvalidRequest, match="n must be at most 10 for this model"):
        await (await admit(admission, None, False)).reserve(engine, 11, 1)
    await (await admit(admission, None, False)).reserve(engine, 10, 1)


async def test_an_engine_that_is_down_takes_precedence_over_a_full_queue(
    engine: Engine, clock: Clock
) -> None:
    engine.free_capacity, engine.available = 0, False
    with pytest.raises(EngineUnavailable):
        build(engine, clock).reserve()


async def test_choices_handed_over_to_the_engine_are_not_counted_twice(engine: Engine, clock: Clock) -> None:
    admission = build(engine, clock)
    admitted = await admit(admission, None, False)
    await admitted.reserve(engine, 10, 1)
    admitted.hand_over()
    admission.assign(engine, 10)  # type: ignore[arg-type]
    admission.release(engine, 10)  # type: ignore[arg-type]
    engine.free_capacity = 0
    admitted.end()
    with pytest.raises(QueueFull):
        admission.check_any()
    engine.free_capacity = 10
    admission.assign(engine, 10)  # type: ignore[arg-type]


async def test_requests_are_counted_per_access_token_and_nice_ones_separately(
    engine: Engine, clock: Clock
) -> None:
    admission = build(engine, clock, max_requests=2)
    admitted = [await admit(admission, token("a"), False) for _ in range(2)]
    for caller, nice in ((token("a"), True), (token("b"), False), (None, False)):
        assert [await admit(admission, caller, nice) for _ in range(2)]
        with pytest.raises(RateLimited) as error:
            await admit(admission, caller, nice)
        assert seconds_until(error) == 1
    admitted[0].end()
    await admit(admission, token("a"), False)
    with pytest.raises(RateLimited):
        await admit(admission, token("a"), False)


async def test_an_access_tokens_own_limits_override_the_general_ones(engine: Engine, clock: Clock) -> None:
    admission = build(engine, clock, max_requests=1, tokens_per_minute=1)
    admitted = await admit(admission, token(max_requests=2, tokens_per_minute=1000), False)
    await admitted.reserve(engine, 1, 900)
    await admit(admission, token(max_requests=2, tokens_per_minute=1000), False)
    with pytest.raises(RateLimited):
        await admit(admission, token(max_requests=2, tokens_per_minute=1000), False)


async def enter(
    admission: AdmissionController,
    engine: Engine,
    caller: AccessToken,
    prompt: int,
    answer: int | None,
    n: int = 1,
) -> AdmittedRequest:
    admitted = await admit(admission, caller, False)
    try:
        await admitted.reserve(engine, n, answer)  # type: ignore[arg-type]
        await admitted.reserve_prompt(prompt)
    except BaseException:
        admitted.end()
        raise
    return admitted


async def test_tokens_are_reserved_corrected_and_refilled(engine: Engine, clock: Clock) -> None:
    admission, caller = build(engine, clock), token(tokens_per_minute=600)
    first = await enter(admission, engine, caller, prompt=100, answer=200, n=2)
    with pytest.raises(RateLimited) as error:
        await enter(admission, engine, caller, prompt=60, answer=100)
    assert seconds_until(error) == 6
    first.end(tokens=140)
    second = await enter(admission, engine, caller, prompt=360, answer=100)
    second.end(tokens=460)
    with pytest.raises(RateLimited) as error:
        await enter(admission, engine, caller, prompt=5, answer=45)
    assert seconds_until(error) == 5
    clock.now += 5
    await enter(admission, engine, caller, prompt=5, answer=45)


async def test_a_refused_request_costs_nothing(engine: Engine, clock: Clock) -> None:
    admission, caller = build(engine, clock), token(tokens_per_minute=600)
    for _ in range(5):
        first = await enter(admission, engine, caller, prompt=1, answer=300)
        with pytest.raises(RateLimited):
            await enter(admission, engine, caller, prompt=299, answer=1)
        first.end()
    await enter(admission, engine, caller, prompt=300, answer=300)


async def test_a_refusal_says_when_the_tokens_are_available(engine: Engine, clock: Clock) -> None:
    admission, caller = build(engine, clock), token(tokens_per_minute=60)
    (await enter(admission, engine, caller, prompt=10, answer=50)).end(tokens=60)
    for wanted in (1, 7, 60):
        with pytest.raises(RateLimited) as error:
            await enter(admission, engine, caller, prompt=0, answer=wanted)
        assert seconds_until(error) == wanted


async def test_without_max_tokens_a_typical_answer_is_reserved(engine: Engine, clock: Clock) -> None:
    admission, caller = build(engine, clock), token(tokens_per_minute=1000)
    await enter(admission, engine, caller, prompt=0, answer=None, n=3)
    with pytest.raises(RateLimited):
        await enter(admission, engine, caller, prompt=0, answer=None)
    await enter(admission, engine, caller, prompt=100, answer=100)


async def test_a_request_above_one_minutes_tokens_leaves_the_bucket_in_debt(
    engine: Engine, clock: Clock
) -> None:
    admission, caller = build(engine, clock), token(tokens_per_minute=60)
    (await enter(admission, engine, caller, prompt=90, answer=30)).end(tokens=120)
    with pytest.raises(RateLimited) as error:
        await enter(admission, engine, caller, prompt=0, answer=1)
    assert seconds_until(error) == 61
    clock.now += 61
    await enter(admission, engine, caller, prompt=0, answer=1)


async def test_a_changed_limit_applies_to_the_next_request(engine: Engine, clock: Clock) -> None:
    admission = build(engine, clock)
    old = await enter(admission, engine, token(tokens_per_minute=10), prompt=5, answer=5)
    new = await enter(admission, engine, token(tokens_per_minute=100), prompt=40, answer=50)
    old.end(tokens=10)
    new.end(tokens=90)
    with pytest.raises(RateLimited):
        await enter(admission, engine, token(tokens_per_minute=100), prompt=1, answer=1)
    await enter(admission, engine, token(), prompt=1000, answer=1000)


async def test_a_bucket_never_holds_more_than_a_minutes_tokens(clock: Clock) -> None:
    bucket = TokenBucket(60, clock)
    clock.now += 3600
    assert bucket.take(60) == 0
    assert bucket.take(1) == 1
    bucket.put_back(1000)
    assert bucket.take(60) == 0
    assert bucket.take(1) == 1


async def test_each_engine_has_its_own_room(clock: Clock) -> None:
    small, large = Engine(1), Engine(10)
    admission = AdmissionController(lambda: [small, large], LocalAccounts(LimitSettings(), clock))  # type: ignore[list-item]
    requests = [await admit(admission, None, False) for _ in range(11)]
    with pytest.raises(QueueFull):
        admission.reserve()
    await requests[0].reserve(small, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(QueueFull):
        await requests[1].reserve(small, 1, 1)  # type: ignore[arg-type]
    for request in requests[2:]:
        await request.reserve(large, 1, 1)  # type: ignore[arg-type]
    admission.reserve()


async def test_an_engine_that_is_down_does_not_concern_the_other(clock: Clock) -> None:
    down, up = Engine(10, available=False), Engine(2)
    admission = AdmissionController(lambda: [down, up], LocalAccounts(LimitSettings(), clock))  # type: ignore[list-item]
    requests = [await admit(admission, None, False) for _ in range(2)]
    with pytest.raises(QueueFull):
        admission.reserve()
    with pytest.raises(EngineUnavailable):
        await requests[0].reserve(down, 1, 1)  # type: ignore[arg-type]
    await requests[1].reserve(up, 2, 1)  # type: ignore[arg-type]
