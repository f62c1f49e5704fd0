"""Decides which sequences the next step computes, and how many tokens of each. Knows no tensors.

There is no separate prefill or decode phase. A sequence has uncomputed tokens: many during its
prefill, one during its decode. Each step computes some of them, within a token budget. Decodes
come first, then chunks of prompts, so that a long prefill never delays the others' tokens.

One number orders all sequences, the rank: the arrival, plus the ageing time for a `nice` sequence.
So a nice sequence yields to all sequences that arrive within the ageing time, but to no later ones.
"""

import heapq
import time
from collections.abc import Callable, Iterator

from inference.scheduling.block_manager import BlockManager
from inference.scheduling.sequence import Sequence, Status


class Scheduler:
    def __init__(
        self,
        block_manager: BlockManager,
        *,
        max_batch_tokens: int,
        max_running: int,
        nice_ageing_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.block_manager = block_manager
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.nice_ageing_seconds = nice_ageing_seconds
        self.clock = clock
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._waiting: list[tuple[float, int, Sequence]] = []
        self._followers: list[Sequence] = []
        """Waiting sequences that do not start before their leader has computed the prompt."""
        self._starts: dict[str, float] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._followers)

    def sequences(self) -> Iterator[Sequence]:
        """All running and waiting sequences."""
        yield from self.running
        yield from (sequence for _, _, sequence in self._waiting)
        yield from self._followers

    def take_starts(self) -> dict[str, float]:
        """The requests with choices that started since the last call: request id -> seconds in the queue.

        Leaves out preempted sequences that started again.
        """
        starts, self._starts = self._starts, {}
        return starts

    def add(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        if sequence.awaits_leader:
            self._followers.append(sequence)
        else:
            heapq.heappush(self._waiting, (self._rank(sequence), sequence.number, sequence))

    def finish(self, sequence: Sequence) -> None:
        """Removes a running or waiting sequence, and frees its blocks."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.block_manager.free(sequence)
        elif sequence in self._followers:
            self._followers.remove(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
        sequence.status = Status.FINISHED
        self._replace_leader(sequence)

    def schedule(self) -> list[Sequence]:
        """The next step's sequences. Each has num_scheduled_tokens >= 1, and blocks for these tokens.

        Running sequences get the token budget before waiting ones. Among running sequences, decodes come
        before prefills, and `nice` sequences that have not aged come last. Raises RuntimeError if the
        numbers of tokens do not fit the budget, which is a bug of the scheduler.
        """
        now = self.clock()  # One time for the whole step: a sequence that ages during it would count twice.
        self._release_followers()
        self._make_room(now)
        scheduled, ran_out_of_blocks = self._continue_running(now)
        if ran_out_of_blocks:
            # A decode that was scheduled early may have been preempted later, for the blocks of a
            # prefill that has an earlier rank.
            scheduled = [sequence for sequence in scheduled if sequence.status is Status.RUNNING]
        else:
            scheduled += self._start_waiting(scheduled, now)
        self._check_budget(scheduled)
        return scheduled

    def extend(self, sequences: list[Sequence]) -> bool:
        """Allocates blocks for one more token of each sequence, while a step computes their newest tokens.

        Returns False if the next step may need other sequences: if one of these reaches its max_tokens,
        if others wait or run, or if there are not enough blocks. Blocks that it has already allocated stay
        with the sequences.
        """
        if self._waiting or self._followers or len(sequences) != len(self.running):
            return False
        return all(
            sequence.status is Status.RUNNING
            and sequence.num_output_tokens + 1 < sequence.max_tokens
            and self.block_manager.allocate(sequence, sequence.num_tokens + 1)
            for sequence in sequences
        )

    def _check_budget(self, scheduled: list[Sequence]) -> None:
        amounts = [sequence.num_scheduled_tokens for sequence in scheduled]
        if min(amounts, default=1) < 1 or sum(amounts) > self.max_batch_tokens:
            raise RuntimeError(f"the scheduler gave {amounts} tokens to a step of {self.max_batch_tokens}")

    def _continue_running(self, now: float) -> tuple[list[Sequence], bool]:
        """Divides the token budget among running sequences. Also returns whether the blocks ran out."""
        budget = self.max_batch_tokens
        scheduled: list[Sequence] = []
        ran_out_of_blocks = False
        ordered = sorted(self.running, key=lambda sequence: self._urgency(sequence, now))
        # Counted once, because a preemption makes all tokens of its victim uncomputed.
        needs = [self._need(sequence, now) for sequence in ordered]
        needed_behind = sum(needs)
        if self._waiting and self._fits(self._waiting[0][2]):
            needed_behind += self._need(self._waiting[0][2], now)
        for sequence, need in zip(ordered, needs, strict=True):
            needed_behind -= need
            if budget == 0 or sequence.status is not Status.RUNNING:
                continue
            # A long prefill leaves up to half of the budget to the sequences behind it.
            share = max(-(-budget // 2), budget - needed_behind)
            ran_out_of_blocks |= not self._grant(sequence, share)
            if sequence.status is Status.RUNNING:
                budget -= sequence.num_scheduled_tokens
                scheduled.append(sequence)
        return scheduled, ran_out_of_blocks

    def _need(self, sequence: Sequence, now: float) -> int:
        """The number of tokens that sequences before this one leave to it, if the budget allows."""
        return 0 if self._yields(sequence, now) else sequence.num_uncomputed_tokens

    def _rank(self, sequence: Sequence) -> float:
        return sequence.arrival + (self.nice_ageing_seconds if sequence.nice else 0.0)

    def _yields(self, sequence: Sequence, now: float) -> bool:
        """Whether the sequence is `nice` and has not aged yet."""
        return sequence.nice and self._rank(sequence) > now

    def _urgency(self, sequence: Sequence, now: float) -> tuple[bool, bool, float, int]:
        """The sort key of running sequences, the most urgent first."""
        return (
            self._yields(sequence, now),
            not sequence.is_decoding,
            self._rank(sequence),
            sequence.number,
        )

    def _grant(self, sequence: Sequence, budget: int) -> bool:
        """Schedules up to `budget` tokens of a running sequence. Returns False if the blocks ran out.

        In that case preempts the sequences that rank last, until there are enough blocks. If `sequence`
        itself ranks last, it is preempted and not scheduled.
        """
        num_tokens = min(sequence.num_uncomputed_tokens, budget)
        enough_blocks = True
        while not self.block_manager.allocate(sequence, sequence.num_computed_tokens + num_tokens):
            enough_blocks = False
            victim = self._last_running()
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.num_scheduled_tokens = num_tokens
        return enough_blocks

    def _start_waiting(self, scheduled: list[Sequence], now: float) -> list[Sequence]:
        """Starts waiting sequences with the budget that the `scheduled` ones have left."""
        budget = self.max_batch_tokens - sum(sequence.num_scheduled_tokens for sequence in scheduled)
        starting: list[Sequence] = []
        while budget and (started := self._start_next(budget, now)):
            budget -= started.num_scheduled_tokens
            starting.append(started)
        return starting

    def _start_next(self, budget: int, now: float) -> Sequence | None:
        """Starts the first waiting sequence, if it fits. Schedules up to `budget` of its tokens."""
        if not self._waiting or not self._fits(self._waiting[0][2]):
            return None
        sequence = heapq.heappop(self._waiting)[2]
        self.block_manager.match_prefix(sequence)
        self.block_manager.allocate(sequence, sequence.num_tokens)
        sequence.status = Status.RUNNING
        if sequence.started is None and sequence.belongs_to_request:
            sequence.started = now
            self._starts.setdefault(sequence.request_id, now - sequence.arrival)
        sequence.num_scheduled_tokens = min(sequence.num_uncomputed_tokens, budget)
        self.running.append(sequence)
        return sequence

    def _fits(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence can start, with one free block left for each running sequence."""
        needed = self.block_manager.num_blocks_to_start(sequence) + len(self.running)
        return len(self.running) < self.max_running and needed <= self.block_manager.num_free_blocks

    def _make_room(self, now: float) -> None:
        """Preempts sequences that yield, if that lets the first waiting sequence start."""
        if not self._waiting or self._yields(first := self._waiting[0][2], now) or self._fits(first):
            return
        yielding = [sequence for sequence in self.running if self._yields(sequence, now)]
        victims = sorted(yielding, key=self._rank)
        held = sum(len(victim.block_table) for victim in victims)
        if self.block_manager.num_blocks_to_start(first) > self.block_manager.num_free_blocks + held:
            return
        while victims and not self._fits(first):
            self._preempt(victims.pop())

    def _last_running(self) -> Sequence:
        return max(self.running, key=lambda sequence: (self._rank(sequence), sequence.number))

    def _preempt(self, sequence: Sequence) -> None:
        """Frees the blocks of a running sequence and makes it wait. It keeps its sampled tokens."""
        self.num_preemptions += 1
        self.running.remove(sequence)
        self.block_manager.free(sequence)
        sequence.num_scheduled_tokens = 0
        self.add(sequence)

    def _release_followers(self) -> None:
        """Queues the followers whose leader has computed the prompt."""
        followers, self._followers = self._followers, []
        for sequence in followers:
            if not sequence.awaits_leader:
                sequence.leader = None
            self.add(sequence)

    def _replace_leader(self, leader: Sequence) -> None:
        """If a leader ends before it has computed the prompt, makes its first follower the new leader."""
        followers = [sequence for sequence in self._followers if sequence.leader is leader]
        if followers and leader.num_output_tokens == 0:
            first, *others = followers
            first.leader = None
            for sequence in others:
                sequence.leader = first
