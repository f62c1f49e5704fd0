"""Which sequences the next step computes, and how many tokens of each. Knows no tensors.

There is no prefill or decode phase: a sequence has tokens that are not computed yet, one of them
while it generates, many while its prompt is read, and each step computes some of them under a
budget. Generating sequences come first, then pieces of prompts, so that a long prompt never
stalls the others' tokens.

Everything is ordered by one number, the sequence's rank: its arrival, put off by the ageing time
if it is `nice`. So a nice sequence yields to all that arrive within that time, and no longer.
"""

import heapq
import time
from collections.abc import Callable, Iterator

from inference.block_manager import BlockManager
from inference.sequence import Sequence, Status


class Scheduler:
    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batch_tokens: int,
        max_running: int,
        nice_ageing_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.blocks = blocks
        self.max_batch_tokens = max_batch_tokens
        self.max_running = max_running
        self.nice_ageing_seconds = nice_ageing_seconds
        self.clock = clock
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._waiting: list[tuple[float, int, Sequence]] = []

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def sequences(self) -> Iterator[Sequence]:
        """All that wait or run."""
        yield from self.running
        yield from (sequence for _, _, sequence in self._waiting)

    def add(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        heapq.heappush(self._waiting, (self._rank(sequence), sequence.number, sequence))

    def finish(self, sequence: Sequence) -> None:
        """Lets go of a sequence, whether it runs or waits."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.blocks.free(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
        sequence.status = Status.FINISHED

    def schedule(self) -> list[Sequence]:
        """The next step's sequences, each with its num_scheduled_tokens (>= 1) and blocks for them.

        The token budget goes to generating sequences, then to prompts that are being read, then
        to waiting sequences; within each, `nice` ones that have not aged come last.
        """
        budget = self.max_batch_tokens
        scheduled: list[Sequence] = []
        self._make_room()
        num_preemptions = self.num_preemptions
        for sequence in sorted(self.running, key=self._urgency):
            if budget == 0:
                break
            if sequence.status is Status.RUNNING and self._grant(sequence, budget):
                budget -= sequence.num_scheduled_tokens
                scheduled.append(sequence)
        if self.num_preemptions > num_preemptions:
            # Blocks lack, so nothing new is started; and one that lost its blocks to a sequence
            # that was scheduled after it is not computed.
            return [sequence for sequence in scheduled if sequence.status is Status.RUNNING]
        while budget and (started := self._start_next(budget)):
            budget -= started.num_scheduled_tokens
            scheduled.append(started)
        return scheduled

    def _rank(self, sequence: Sequence) -> float:
        return sequence.arrival + (self.nice_ageing_seconds if sequence.nice else 0.0)

    def _yields(self, sequence: Sequence) -> bool:
        return sequence.nice and self._rank(sequence) > self.clock()

    def _urgency(self, sequence: Sequence) -> tuple[bool, bool, float, int]:
        return (
            self._yields(sequence),
            not sequence.is_decoding,
            self._rank(sequence),
            sequence.number,
        )

    def _grant(self, sequence: Sequence, budget: int) -> bool:
        """Schedules what the budget allows of a running sequence.

        While blocks lack, those that rank last are preempted; False if it is this one itself.
        """
        num_tokens = min(sequence.num_uncomputed_tokens, budget)
        while not self.blocks.allocate(sequence, sequence.num_computed_tokens + num_tokens):
            victim = self._last_running()
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.num_scheduled_tokens = num_tokens
        return True

    def _start_next(self, budget: int) -> Sequence | None:
        """Moves the first waiting sequence into the batch, if there is room for it."""
        entry = self._pop_startable()
        if entry is None:
            return None
        sequence = entry[2]
        self.blocks.match_prefix(sequence)
        if not self.blocks.allocate(sequence, sequence.num_tokens):
            self.blocks.free(sequence)
            heapq.heappush(self._waiting, entry)
            return None
        sequence.status = Status.RUNNING
        sequence.num_scheduled_tokens = min(sequence.num_uncomputed_tokens, budget)
        self.running.append(sequence)
        return sequence

    def _pop_startable(self) -> tuple[float, int, Sequence] | None:
        """The first waiting entry that need not await its leader's prompt."""
        if len(self.running) >= self.max_running:
            return None
        passed_over = []
        found = None
        while self._waiting and found is None:
            entry = heapq.heappop(self._waiting)
            if entry[2].awaits_leader:
                passed_over.append(entry)
            else:
                found = entry
        for entry in passed_over:
            heapq.heappush(self._waiting, entry)
        return found

    def _make_room(self) -> None:
        """Sends a yielding sequence back to wait where it keeps a more urgent one from starting."""
        while self._waiting and self.running:
            first, last = self._waiting[0][2], self._last_running()
            if self._yields(first) or first.awaits_leader:
                return
            if not self._yields(last) or self._fits(first):
                return
            self._preempt(last)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence could start now. Errs towards no where its prefix is cached."""
        missing = self.blocks.num_missing_blocks(sequence, sequence.num_tokens)
        return len(self.running) < self.max_running and missing <= self.blocks.num_free_blocks

    def _last_running(self) -> Sequence:
        return max(self.running, key=lambda sequence: (self._rank(sequence), sequence.number))

    def _preempt(self, sequence: Sequence) -> None:
        """Takes a running sequence's blocks. It will compute its tokens again, and sample on."""
        self.num_preemptions += 1
        self.running.remove(sequence)
        self.blocks.free(sequence)
        sequence.num_scheduled_tokens = 0
        self.add(sequence)
