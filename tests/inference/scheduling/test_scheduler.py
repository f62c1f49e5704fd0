"""Who runs next, who waits, who yields. No tensors: computing is pretended."""

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from inference.interface.protocol import GenerationRequest
from inference.scheduling.block_manager import BlockManager
from inference.scheduling.scheduler import Scheduler
from inference.scheduling.sequence import Sequence, Status, build_sequences


class Bench:
    """A scheduler with a clock to turn and a model that samples token 7."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_batch_tokens: int = 32,
        max_running: int = 8,
        nice_ageing_seconds: float = 30.0,
    ) -> None:
        self.now = 0.0
        self.blocks = BlockManager(num_blocks, block_size)
        self.scheduler = Scheduler(
            self.blocks,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            nice_ageing_seconds=nice_ageing_seconds,
            clock=lambda: self.now,
        )
        self._numbers = itertools.count()
        self._seeds = random.Random(0)
        self._prompts = random.Random(1)

    def add(self, length: int, max_tokens: int = 100, *, nice: bool = False, n: int = 1) -> list[Sequence]:
        prompt = [self._prompts.randrange(10**6) for _ in range(length)]
        request = GenerationRequest("r", prompt, max_tokens, n=n, nice=nice)
        sequences = build_sequences(request, self.now, self._numbers, self._seeds)
        for sequence in sequences:
            self.scheduler.add(sequence)
        return sequences

    def step(self) -> dict[Sequence, int]:
        """One step; what was scheduled of whom."""
        self.now += 0.01
        scheduled = self.scheduler.schedule()
        amounts = {sequence: sequence.num_scheduled_tokens for sequence in scheduled}
        assert len(amounts) == len(scheduled), "a sequence was scheduled twice"
        assert sum(amounts.values()) <= self.scheduler.max_batch_tokens
        assert len(self.scheduler.running) <= self.scheduler.max_running
        for sequence, amount in amounts.items():
            self._compute(sequence, amount)
        self.blocks.check_integrity(self.scheduler.sequences())
        return amounts

    def _compute(self, sequence: Sequence, amount: int) -> None:
        assert amount >= 1
        room = len(sequence.block_table) * self.blocks.block_size
        assert sequence.num_computed_tokens + amount <= room
        samples = sequence.samples_next
        before = sequence.num_computed_tokens
        sequence.num_computed_tokens += amount
        sequence.num_scheduled_tokens = 0
        self.blocks.register(sequence, before)
        if samples:
            sequence.append(7)
            if sequence.num_output_tokens >= sequence.max_tokens:
                self.scheduler.finish(sequence)


def test_a_long_prompt_does_not_stall_a_running_answer() -> None:
    bench = Bench(max_batch_tokens=8)
    [short] = bench.add(3)
    bench.step()
    [long] = bench.add(40)
    for _ in range(5):
        assert bench.step() == {short: 1, long: 7}


def test_a_short_prompt_need_not_wait_until_a_long_one_is_read() -> None:
    bench = Bench(max_batch_tokens=8)
    [long] = bench.add(40)
    assert bench.step() == {long: 8}
    [short] = bench.add(6)
    assert bench.step() == {long: 4, short: 4}
    assert bench.step() == {long: 6, short: 2}
    assert bench.step() == {short: 1, long: 7}


def test_a_long_prompt_takes_the_whole_step_while_nobody_else_can_start() -> None:
    bench = Bench(max_batch_tokens=8, max_running=1)
    [long] = bench.add(40)
    bench.add(6)
    for _ in range(5):
        assert bench.step() == {long: 8}


def test_first_come_first_served() -> None:
    bench = Bench(max_running=2)
    first, second, third = (bench.add(3, 4)[0] for _ in range(3))
    assert set(bench.step()) == {first, second}
    for _ in range(3):
        bench.step()
    assert set(bench.step()) == {third}


def test_a_nice_sequence_starts_after_all_others() -> None:
    bench = Bench(max_running=1)
    [nice] = bench.add(3, 2, nice=True)
    [later] = bench.add(3, 2)
    assert list(bench.step()) == [later]
    bench.step()
    assert list(bench.step()) == [nice]


def test_a_running_nice_sequence_gives_its_place_away() -> None:
    bench = Bench(max_running=1)
    [nice] = bench.add(3, 50, nice=True)
    bench.step()
    [other] = bench.add(3, 2)
    assert list(bench.step()) == [other]
    assert nice.status is Status.WAITING
    bench.step()
    assert list(bench.step()) == [nice]
    assert nice.num_output_tokens == 2, "what it had is kept"


def test_a_running_nice_sequence_gives_its_blocks_away() -> None:
    bench = Bench(num_blocks=8)
    [nice] = bench.add(20, 10, nice=True)
    bench.step()
    [other] = bench.add(20, 2)
    assert list(bench.step()) == [other]
    assert nice.status is Status.WAITING


def test_nice_sequences_get_what_the_others_leave_of_a_step() -> None:
    bench = Bench(max_batch_tokens=8)
    [nice] = bench.add(2, 50, nice=True)
    bench.step()
    [prompt] = bench.add(12)
    assert bench.step() == {nice: 1, prompt: 7}  # it starts with what is left of the step
    [other] = bench.add(6)
    assert bench.step() == {prompt: 4, nice: 1, other: 3}  # what runs comes before what starts
    assert bench.step() == {prompt: 1, other: 3, nice: 1}


def test_a_nice_sequence_is_not_starved() -> None:
    bench = Bench(max_running=1, nice_ageing_seconds=5.0)
    [nice] = bench.add(3, 1, nice=True)
    started_at = None
    for _ in range(2000):
        bench.add(3, 1)
        if nice in bench.step():
            started_at = bench.now
            break
    assert started_at is not None
    assert 5.0 <= started_at < 15.0


def test_without_blocks_the_last_come_is_preempted_and_resumes() -> None:
    bench = Bench(num_blocks=6, block_size=4, max_running=4)
    [first] = bench.add(8, 12)
    [second] = bench.add(8, 12)
    preempted = False
    for _ in range(60):
        bench.step()
        preempted |= second.status is Status.WAITING
        assert first.status is not Status.WAITING
    assert preempted
    assert (first.num_output_tokens, second.num_output_tokens) == (12, 12)


def test_choices_wait_until_the_first_one_has_read_the_prompt() -> None:
    bench = Bench(max_batch_tokens=8)
    first, second, third = bench.add(20, 3, n=3)
    assert bench.step() == {first: 8}
    assert bench.step() == {first: 8}
    assert bench.step() == {first: 4}
    assert bench.step() == {first: 1, second: 4, third: 3}


def test_when_the_first_choice_is_gone_the_second_reads_the_prompt() -> None:
    bench = Bench(max_batch_tokens=8)
    first, second, third = bench.add(20, 3, n=3)
    bench.step()
    bench.scheduler.finish(first)
    assert bench.step() == {second: 8}  # after the 8 tokens that the first one left
    assert bench.step() == {second: 4}
    assert bench.step() == {second: 1, third: 4}


def test_nice_sequences_stay_where_their_going_would_not_help() -> None:
    bench = Bench(num_blocks=12, block_size=4)
    [old] = bench.add(20, 20)
    bench.step()
    [nice] = bench.add(4, 50, nice=True)
    bench.step()
    bench.add(40)  # has no room while the first one runs
    for _ in range(3):
        assert nice in bench.step()
    assert old.num_output_tokens == 5


def test_nice_sequences_stay_where_a_cached_prefix_leaves_room() -> None:
    bench = Bench(num_blocks=14, block_size=4)
    [old] = bench.add(20, 20)
    [nice] = bench.add(8, 50, nice=True)
    bench.step()
    request = GenerationRequest("s", [*old.token_ids[:20], 1, 2], 5)
    [sharing] = build_sequences(request, bench.now, bench._numbers, bench._seeds)
    bench.scheduler.add(sharing)
    assert set(bench.step()) == {old, nice, sharing}


def test_a_finished_sequence_leaves_nothing_behind() -> None:
    bench = Bench(max_running=1)
    [running] = bench.add(9)
    [waiting] = bench.add(9)
    bench.step()
    bench.scheduler.finish(running)
    bench.scheduler.finish(waiting)
    assert list(bench.scheduler.sequences()) == []
    assert bench.blocks.num_free_blocks == bench.blocks.num_blocks
    assert bench.step() == {}


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 60), st.integers(1, 20), st.booleans(), st.integers(1, 3)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("finish"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.floats(0.0, 40.0)),
    ),
    max_size=40,
)


@given(
    actions=ACTIONS,
    num_blocks=st.integers(20, 40),
    max_batch_tokens=st.integers(1, 40),
    max_running=st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_whatever_comes_every_sequence_ends_and_no_block_is_lost(
    actions: list[tuple], num_blocks: int, max_batch_tokens: int, max_running: int
) -> None:
    bench = Bench(num_blocks=num_blocks, max_batch_tokens=max_batch_tokens, max_running=max_running)
    sequences: list[Sequence] = []
    for name, *arguments in actions:
        if name == "add":
            length, max_tokens, nice, n = arguments
            sequences += bench.add(length, max_tokens, nice=nice, n=n)
        elif name == "step":
            for _ in range(arguments[0]):
                bench.step()
        elif name == "wait":
            bench.now += arguments[0]
        elif arguments[0] < len(sequences):
            bench.scheduler.finish(sequences[arguments[0]])
    tokens = sum(s.num_tokens + s.max_tokens for s in sequences)
    for _ in range(20 * tokens + 20):
        if not any(True for _ in bench.scheduler.sequences()):
            break
        bench.step()
    assert all(sequence.status is Status.FINISHED for sequence in sequences)
    assert bench.blocks.num_free_blocks == num_blocks


def test_it_says_once_when_a_request_left_the_queue() -> None:
    bench = Bench(max_running=1)
    [first] = bench.add(4)
    bench.step()
    assert bench.scheduler.take_starts() == {"r": first.started} == {"r": 0.01}
    [second] = bench.add(4)
    bench.step()
    assert bench.scheduler.take_starts() == {}, "it still waits"
    bench.scheduler._preempt(first)
    bench.scheduler.finish(first)
    bench.step()
    assert bench.scheduler.take_starts() == {"r": second.started} == {"r": 0.03}


def test_what_was_preempted_does_not_leave_the_queue_again() -> None:
    bench = Bench()
    [sequence] = bench.add(4)
    bench.step()
    bench.scheduler.take_starts()
    bench.scheduler._preempt(sequence)
    assert bench.step() != {}
    assert bench.scheduler.take_starts() == {}
