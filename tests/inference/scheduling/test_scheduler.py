"""Tests which sequences run, wait and yield. Without a model: a stand-in marks tokens as computed."""

import itertools
import random
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.interface.requests import GenerationRequest
from inference.scheduling.block_manager import BlockManager
from inference.scheduling.probe import Answer, Probe
from inference.scheduling.scheduler import Scheduler
from inference.scheduling.sequence import (
    Sequence,
    Status,
    build_answer_sequence,
    build_probe_sequence,
    build_sequences,
)


class Harness:
    """A scheduler with a clock that the test sets, and a stand-in for the model that samples token 7.

    Each call of the clock moves it on by the next of `ticks`, in seconds. After the last one it stands still.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_batch_tokens: int = 32,
        max_running: int = 8,
        nice_ageing_seconds: float = 30.0,
        ticks: Iterable[float] = (),
    ) -> None:
        self.now = 0.0
        self.ticks = iter(ticks)
        self.block_manager = BlockManager(num_blocks, block_size)
        self.scheduler = Scheduler(
            self.block_manager,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            nice_ageing_seconds=nice_ageing_seconds,
            clock=self._clock,
        )
        self._numbers = itertools.count()
        self._seeds = random.Random(0)
        self._prompts = random.Random(1)

    def _clock(self) -> float:
        self.now += next(self.ticks, 0.0)
        return self.now

    def add(self, length: int, max_tokens: int = 100, *, nice: bool = False, n: int = 1) -> list[Sequence]:
        prompt = [self._prompts.randrange(10**6) for _ in range(length)]
        request = GenerationRequest("r", prompt, max_tokens, n=n, nice=nice)
        sequences = build_sequences(request, self.now, self._numbers, self._seeds)
        for sequence in sequences:
            self.scheduler.add(sequence)
        return sequences

    def add_probe(self, prompt: int, content: int) -> Sequence:
        token_ids = [self._prompts.randrange(10**6) for _ in range(prompt + content)]
        probe = Probe(token_ids[:prompt], token_ids[prompt:])
        sequence = build_probe_sequence(probe, self.now, next(self._numbers))
        self.scheduler.add(sequence)
        return sequence

    def add_answer(self, prompt: int, max_tokens: int) -> Sequence:
        answer = Answer([self._prompts.randrange(10**6) for _ in range(prompt)], max_tokens)
        sequence = build_answer_sequence(answer, self.now, next(self._numbers))
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> dict[Sequence, int]:
        """Runs one step. Returns the number of scheduled tokens of each sequence."""
        self.now += 0.01
        scheduled = self.scheduler.schedule()
        amounts = {sequence: sequence.num_scheduled_tokens for sequence in scheduled}
        assert len(amounts) == len(scheduled), "a sequence was scheduled twice"
        assert sum(amounts.values()) <= self.scheduler.max_batch_tokens
        assert len(self.scheduler.running) <= self.scheduler.max_running
        for sequence, amount in amounts.items():
            self._compute(sequence, amount)
        self.block_manager.check_integrity(self.scheduler.sequences())
        return amounts

    def _compute(self, sequence: Sequence, amount: int) -> None:
        assert amount >= 1
        capacity = len(sequence.block_table) * self.block_manager.block_size
        assert sequence.num_computed_tokens + amount <= capacity
        samples = sequence.samples_next
        before = sequence.num_computed_tokens
        sequence.num_computed_tokens += amount
        sequence.num_scheduled_tokens = 0
        self.block_manager.register(sequence, before)
        if samples:
            sequence.append(7)
        if sequence.probe is None:
            ends = sequence.num_output_tokens >= sequence.max_tokens
        else:
            ends = sequence.num_uncomputed_tokens == 0
        if ends:
            self.scheduler.finish(sequence)


def test_a_long_prefill_does_not_delay_decodes() -> None:
    harness = Harness(max_batch_tokens=8)
    [short] = harness.add(3)
    harness.step()
    [long] = harness.add(40)
    for _ in range(5):
        assert harness.step() == {short: 1, long: 7}


def test_a_short_prefill_does_not_wait_for_the_end_of_a_long_one() -> None:
    harness = Harness(max_batch_tokens=8)
    [long] = harness.add(40)
    assert harness.step() == {long: 8}
    [short] = harness.add(6)
    assert harness.step() == {long: 4, short: 4}
    assert harness.step() == {long: 6, short: 2}
    assert harness.step() == {short: 1, long: 7}


def test_a_long_prefill_gets_the_whole_budget_if_no_other_sequence_can_start() -> None:
    harness = Harness(max_batch_tokens=8, max_running=1)
    [long] = harness.add(40)
    harness.add(6)
    for _ in range(5):
        assert harness.step() == {long: 8}


def test_first_come_first_served() -> None:
    harness = Harness(max_running=2)
    first, second, third = (harness.add(3, 4)[0] for _ in range(3))
    assert set(harness.step()) == {first, second}
    for _ in range(3):
        harness.step()
    assert set(harness.step()) == {third}


def test_a_nice_sequence_starts_after_all_others() -> None:
    harness = Harness(max_running=1)
    [nice] = harness.add(3, 2, nice=True)
    [later] = harness.add(3, 2)
    assert list(harness.step()) == [later]
    harness.step()
    assert list(harness.step()) == [nice]


def test_a_running_nice_sequence_is_preempted_for_its_slot() -> None:
    harness = Harness(max_running=1)
    [nice] = harness.add(3, 50, nice=True)
    harness.step()
    [other] = harness.add(3, 2)
    assert list(harness.step()) == [other]
    assert nice.status is Status.WAITING
    harness.step()
    assert list(harness.step()) == [nice]
    assert nice.num_output_tokens == 2, "it keeps the token sampled before its preemption"


def test_a_running_nice_sequence_is_preempted_for_its_blocks() -> None:
    harness = Harness(num_blocks=8)
    [nice] = harness.add(20, 10, nice=True)
    harness.step()
    [other] = harness.add(20, 2)
    assert list(harness.step()) == [other]
    assert nice.status is Status.WAITING


def test_nice_sequences_get_the_rest_of_the_token_budget() -> None:
    harness = Harness(max_batch_tokens=8)
    [nice] = harness.add(2, 50, nice=True)
    harness.step()
    [prompt] = harness.add(12)
    assert harness.step() == {nice: 1, prompt: 7}  # the new sequence starts with the rest of the budget
    [other] = harness.add(6)
    assert harness.step() == {prompt: 4, nice: 1, other: 3}  # running sequences come before new ones
    assert harness.step() == {prompt: 1, other: 3, nice: 1}


@pytest.mark.parametrize("calls", range(40))
def test_a_nice_sequence_that_ages_during_a_step_does_not_exceed_the_token_budget(calls: int) -> None:
    harness = Harness(max_batch_tokens=32, num_blocks=400)
    harness.add(4)
    harness.step()
    harness.add(40, nice=True)
    harness.add(60, nice=True)
    harness.add(20, nice=True)
    harness.step()
    harness.ticks = iter([*[0.0] * calls, 60.0])
    for _ in range(10):
        harness.step()


def test_a_step_reads_the_clock_once() -> None:
    harness = Harness(max_running=3)
    harness.add(20, nice=True)
    harness.step()
    harness.add(20, nice=True)
    harness.add(20)
    before = harness.now
    harness.ticks = itertools.repeat(1.0)
    harness.scheduler.schedule()
    assert harness.now == before + 1


def test_a_step_beyond_the_token_budget_is_an_error_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised before a launch, where it would count as the fault of one of the sequences."""
    harness = Harness(max_batch_tokens=32)
    harness.add(100)
    harness.step()
    grant = harness.scheduler._grant
    monkeypatch.setattr(harness.scheduler, "_grant", lambda sequence, budget: grant(sequence, budget + 1))
    with pytest.raises(RuntimeError, match=r"gave \[33\] tokens to a step of 32"):
        harness.step()


def test_a_preempted_decode_does_not_leave_its_tokens_to_others() -> None:
    """The preempted sequence has many uncomputed tokens again, but the step computes none of them."""
    harness = Harness(num_blocks=60, block_size=4, max_batch_tokens=8)
    [first] = harness.add(4, 60)
    harness.step()
    [prefill] = harness.add(200)
    [decode] = harness.add(20, 60)
    while harness.scheduler.num_preemptions == 0:
        amounts = harness.step()
    assert decode.status is Status.WAITING
    assert amounts == {first: 1, prefill: 7}


def test_a_nice_sequence_is_not_starved() -> None:
    harness = Harness(max_running=1, nice_ageing_seconds=5.0)
    [nice] = harness.add(3, 1, nice=True)
    started_at = None
    for _ in range(2000):
        harness.add(3, 1)
        if nice in harness.step():
            started_at = harness.now
            break
    assert started_at is not None
    assert 5.0 <= started_at < 15.0


def test_if_blocks_run_out_the_newest_sequence_is_preempted_and_resumes() -> None:
    harness = Harness(num_blocks=6, block_size=4, max_running=4)
    [first] = harness.add(8, 12)
    [second] = harness.add(8, 12)
    preempted = False
    for _ in range(60):
        harness.step()
        preempted |= second.status is Status.WAITING
        assert first.status is not Status.WAITING
    assert preempted
    assert (first.num_output_tokens, second.num_output_tokens) == (12, 12)


def test_choices_wait_until_the_first_one_has_computed_the_prompt() -> None:
    harness = Harness(max_batch_tokens=8)
    first, second, third = harness.add(20, 3, n=3)
    assert harness.step() == {first: 8}
    assert harness.step() == {first: 8}
    assert harness.step() == {first: 4}
    assert harness.step() == {first: 1, second: 4, third: 3}


def test_if_the_first_choice_ends_early_the_second_computes_the_prompt() -> None:
    harness = Harness(max_batch_tokens=8)
    first, second, third = harness.add(20, 3, n=3)
    harness.step()
    harness.scheduler.finish(first)
    assert harness.step() == {second: 8}  # the first one's 8 tokens are cached
    assert harness.step() == {second: 4}
    assert harness.step() == {second: 1, third: 4}


def test_nice_sequences_are_not_preempted_if_that_would_not_free_enough_blocks() -> None:
    harness = Harness(num_blocks=12, block_size=4)
    [old] = harness.add(20, 20)
    harness.step()
    [nice] = harness.add(4, 50, nice=True)
    harness.step()
    harness.add(40)  # does not fit while the first one runs
    for _ in range(3):
        assert nice in harness.step()
    assert old.num_output_tokens == 5


def test_nice_sequences_are_not_preempted_if_a_cached_prefix_saves_enough_blocks() -> None:
    harness = Harness(num_blocks=14, block_size=4)
    [old] = harness.add(20, 20)
    [nice] = harness.add(8, 50, nice=True)
    harness.step()
    request = GenerationRequest("s", [*old.token_ids[:20], 1, 2], 5)
    [sharing] = build_sequences(request, harness.now, harness._numbers, harness._seeds)
    harness.scheduler.add(sharing)
    assert set(harness.step()) == {old, nice, sharing}


def test_a_finished_sequence_holds_no_blocks() -> None:
    harness = Harness(max_running=1)
    [running] = harness.add(9)
    [waiting] = harness.add(9)
    harness.step()
    harness.scheduler.finish(running)
    harness.scheduler.finish(waiting)
    assert list(harness.scheduler.sequences()) == []
    assert harness.block_manager.num_free_blocks == harness.block_manager.num_blocks
    assert harness.step() == {}


LENGTHS = st.one_of(st.integers(1, 8), st.integers(1, 60))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), LENGTHS, st.integers(1, 20), st.booleans(), st.integers(1, 3)),
        st.tuples(st.just("add"), LENGTHS, st.integers(1, 20), st.booleans(), st.just(1)),
        st.tuples(st.just("probe"), LENGTHS, st.integers(1, 20)),
        st.tuples(st.just("answer"), LENGTHS, st.integers(1, 20)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("finish"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.floats(0.0, 40.0)),
    ),
    min_size=10,
    max_size=60,
)


def random_ticks(seed: int) -> Iterator[float]:
    """Steps of a clock that mostly stands still, and sometimes jumps by some seconds."""
    choice = random.Random(seed)
    while True:
        yield choice.expovariate(0.1) if choice.random() < 0.1 else 0.0


@given(
    actions=ACTIONS,
    ticks=st.integers(0, 2**32).map(random_ticks),
    block_size=st.integers(1, 5),
    spare_blocks=st.integers(0, 20),
    max_batch_tokens=st.integers(1, 40),
    max_running=st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_every_sequence_ends_and_no_block_is_lost(
    actions: list[tuple], ticks: Iterator[float], block_size: int, spare_blocks: int, **limits: int
) -> None:
    num_blocks = -(-80 // block_size) + spare_blocks  # 80: the most tokens of a sequence
    harness = Harness(num_blocks=num_blocks, block_size=block_size, ticks=ticks, **limits)
    sequences: list[Sequence] = []
    for name, *arguments in actions:
        if name == "add":
            length, max_tokens, nice, n = arguments
            sequences += harness.add(length, max_tokens, nice=nice, n=n)
        elif name == "probe":
            sequences.append(harness.add_probe(*arguments))
        elif name == "answer":
            sequences.append(harness.add_answer(*arguments))
        elif name == "step":
            for _ in range(arguments[0]):
                harness.step()
        elif name == "wait":
            harness.now += arguments[0]
        elif arguments[0] < len(sequences):
            harness.scheduler.finish(sequences[arguments[0]])
    tokens = sum(s.num_tokens + s.max_tokens for s in sequences)
    for _ in range(20 * tokens + 20):
        if not any(True for _ in harness.scheduler.sequences()):
            break
        harness.step()
    assert all(sequence.status is Status.FINISHED for sequence in sequences)
    assert harness.block_manager.num_free_blocks == num_blocks


def queue_seconds(sequence: Sequence) -> float:
    assert sequence.started is not None
    return sequence.started - sequence.arrival


def test_it_reports_once_how_long_a_request_was_in_the_queue() -> None:
    harness = Harness(max_running=1)
    [first] = harness.add(4)
    harness.step()
    assert harness.scheduler.take_starts() == {"r": queue_seconds(first)}
    [second] = harness.add(4)
    harness.step()
    assert harness.scheduler.take_starts() == {}, "it still waits"
    harness.scheduler._preempt(first)
    harness.scheduler.finish(first)
    harness.step()
    assert harness.scheduler.take_starts() == {"r": queue_seconds(second)}
    assert queue_seconds(second) == pytest.approx(0.02), "two steps"


def test_a_start_after_a_preemption_is_not_reported() -> None:
    harness = Harness()
    [sequence] = harness.add(4)
    harness.step()
    harness.scheduler.take_starts()
    harness.scheduler._preempt(sequence)
    assert harness.step() != {}
    assert harness.scheduler.take_starts() == {}


def test_measurements_start_after_requests_and_their_starts_are_not_reported() -> None:
    harness = Harness(max_running=1)
    probe, answer = harness.add_probe(4, 16), harness.add_answer(12, 4)
    [request] = harness.add(5, 4)
    assert harness.step() == {request: 5}
    while not answer.status is probe.status is Status.FINISHED:
        harness.step()
    assert harness.scheduler.take_starts() == {"r": queue_seconds(request)}
