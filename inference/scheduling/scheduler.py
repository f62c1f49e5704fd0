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

from inference.scheduling.block_manager import BlockManager
from inference.scheduling.sequence import Sequence, Status


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
        self._following: list[Sequence] = []
        """They wait, and are not started before their leader has computed the prompt."""
        self._starts: dict[str, float] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._following)

    def sequences(self) -> Iterator[Sequence]:
        """All that wait or run."""
        yield from self.running
        yield from (sequence for _, _, sequence in self._waiting)
        yield from self._following

    def take_starts(self) -> dict[str, float]:
        """When choices of requests left the queue since the last time, by the request's id.

        One that was preempted has left it before.
        """
        starts, self._starts = self._starts, {}
        return starts

    def add(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        if sequence.awaits_leader:
            self._following.append(sequence)
        else:
            heapq.heappush(self._waiting, (self._rank(sequence), sequence.number, sequence))

    def finish(self, sequence: Sequence) -> None:
        """Lets go of a sequence, whether it runs or waits."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.blocks.free(sequence)
        elif sequence in self._following:
            self._following.remove(sequence)
        elif sequence.status is Status.WAITING:
            self._waiting = [entry for entry in self._waiting if entry[2] is not sequence]
            heapq.heapify(self._waiting)
        sequence.status = Status.FINISHED
        self._replace_leader(sequence)

    def schedule(self) -> list[Sequence]:
        """The next step's sequences, each with its num_scheduled_tokens (>= 1) and blocks for them.

        The token budget goes to running sequences and then to waiting ones. Among the running, those
        that generate come before prompts that are being read, and `nice` ones that have not aged last.
        """
        self._release_followers()
        self._make_room()
        scheduled, blocks_lack = self._continue_running()
        if blocks_lack:
            # A generating sequence of low rank, scheduled early, may have lost its blocks to a
            # prompt of higher rank that was scheduled after it.
            return [sequence for sequence in scheduled if sequence.status is Status.RUNNING]
        budget = self.max_batch_tokens - sum(sequence.num_scheduled_tokens for sequence in scheduled)
        while budget and (started := self._start_next(budget)):
            budget -= started.num_scheduled_tokens
            scheduled.append(started)
        return scheduled

    def extend(self, sequences: list[Sequence]) -> bool:
        """Gives each of them, which compute their newest token now, blocks for one more.

        False if the next step may have to be another: one of them will have ended, others wait, or blocks
        lack. What was given then stays with the sequences.
        """
        if self._waiting or self._following or len(sequences) != len(self.running):
            return False
        return all(
            sequence.status is Status.RUNNING
            and sequence.num_output_tokens + 1 < sequence.max_tokens
            and self.blocks.allocate(sequence, sequence.num_tokens + 1)
            for sequence in sequences
        )

    def _continue_running(self) -> tuple[list[Sequence], bool]:
        """Shares the budget out among running sequences; also says whether blocks lacked."""
        budget = self.max_batch_tokens
        scheduled: list[Sequence] = []
        blocks_lack = False
        ordered = sorted(self.running, key=self._urgency)
        behind = sum(map(self._need, ordered))
        if self._waiting and self._fits(self._waiting[0][2]):
            behind += self._need(self._waiting[0][2])
        for sequence in ordered:
            behind -= self._need(sequence)
            if budget == 0 or sequence.status is not Status.RUNNING:
                continue
            # A long prompt leaves up to half of the budget to those behind it.
            share = max(-(-budget // 2), budget - behind)
            blocks_lack |= not self._grant(sequence, share)
            if sequence.status is Status.RUNNING:
                budget -= sequence.num_scheduled_tokens
                scheduled.append(sequence)
        return scheduled, blocks_lack

    def _need(self, sequence: Sequence) -> int:
        """The tokens for which those before a sequence leave room."""
        return 0 if self._yields(sequence) else sequence.num_uncomputed_tokens

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
        """Schedules what the budget allows of a running sequence; False if blocks lacked.

        Then those that rank last were preempted to get them, this one itself if it ranks last.
        """
        num_tokens = min(sequence.num_uncomputed_tokens, budget)
        enough = True
        while not self.blocks.allocate(sequence, sequence.num_computed_tokens + num_tokens):
            enough = False
            victim = self._last_running()
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.num_scheduled_tokens = num_tokens
        return enough

    def _start_next(self, budget: int) -> Sequence | None:
        """Moves the first waiting sequence into the batch, if there is room for it."""
        if not self._waiting or not self._fits(self._waiting[0][2]):
            return None
        sequence = heapq.heappop(self._waiting)[2]
        self.blocks.match_prefix(sequence)
        self.blocks.allocate(sequence, sequence.num_tokens)
        sequence.status = Status.RUNNING
        if sequence.started is None and sequence.probe is None:
            sequence.started = self.clock()
            self._starts.setdefault(sequence.request_id, sequence.started)
        sequence.num_scheduled_tokens = min(sequence.num_uncomputed_tokens, budget)
        self.running.append(sequence)
        return sequence

    def _fits(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence can start and leave every running one a block to grow into."""
        needed = self.blocks.num_blocks_to_start(sequence) + len(self.running)
        return len(self.running) < self.max_running and needed <= self.blocks.num_free_blocks

    def _make_room(self) -> None:
        """Sends yielding sequences back to wait, if that lets a more urgent one start."""
        if not self._waiting or self._yields(first := self._waiting[0][2]) or self._fits(first):
            return
        victims = sorted(filter(self._yields, self.running), key=self._rank)
        held = sum(len(victim.block_table) for victim in victims)
        if self.blocks.num_blocks_to_start(first) > self.blocks.num_free_blocks + held:
            return
        while victims and not self._fits(first):
            self._preempt(victims.pop())

    def _last_running(self) -> Sequence:
        return max(self.running, key=lambda sequence: (self._rank(sequence), sequence.number))

    def _preempt(self, sequence: Sequence) -> None:
        """Takes a running sequence's blocks. It will compute its tokens again, and sample on."""
        self.num_preemptions += 1
        self.running.remove(sequence)
        self.blocks.free(sequence)
        sequence.num_scheduled_tokens = 0
        self.add(sequence)

    def _release_followers(self) -> None:
        followers, self._following = self._following, []
        for sequence in followers:
            if not sequence.awaits_leader:
                sequence.leader = None
            self.add(sequence)

    def _replace_leader(self, leader: Sequence) -> None:
        """Where a leader ended before it computed the prompt, the first that follows it leads."""
        followers = [sequence for sequence in self._following if sequence.leader is leader]
        if followers and leader.num_output_tokens == 0:
            first, *others = followers
            first.leader = None
            for sequence in others:
                sequence.leader = first
