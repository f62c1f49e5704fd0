"""Penalties come from tokens on the device, and equal the formula for any order of steps."""

import itertools
import random
from collections.abc import Iterator

import pytest
import torch

from inference.compute.sampler import NOT_A_TOKEN, Sampler
from inference.compute.sampling import penalties as penalties_module
from inference.compute.sampling.output_history import OutputHistory
from inference.interface.requests import GenerationRequest, SamplingParams
from inference.scheduling.sequence import Sequence, Status, build_sequences

SIZE = 50
DEVICE = torch.get_default_device()
PENALTIES = [(0.5, 0.25), (2.0, 2.0), (-1.0, 0.0), (0.0, -0.5), (0.3, 0.0)]


@pytest.fixture(autouse=True)
def tensors_on_the_cpu() -> Iterator[None]:
    """The tests' own tensors are on the CPU, the sampler's on DEVICE."""
    with torch.device("cpu"):
        yield


def make_sequence(number: int = 0, **sampling: object) -> Sequence:
    """Greedy, with penalties by default."""
    given = {"temperature": 0.0, "frequency_penalty": 0.5, "presence_penalty": 0.25, **sampling}
    request = GenerationRequest("r", [3, 3], max_tokens=1000, sampling=SamplingParams(**given))
    [sequence] = build_sequences(request, 0.0, itertools.count(number), random.Random(number))
    return sequence


def logits(*rows: object) -> torch.Tensor:
    """One row of logits for each of `rows`, the same for the same `rows`."""
    return torch.randn(len(rows), SIZE, generator=torch.Generator().manual_seed(len(rows)))


def expected(sequence: Sequence, row: torch.Tensor) -> int:
    """The formula of the OpenAI API, with counts from the host's tokens."""
    counts = torch.bincount(torch.tensor(sequence.output_token_ids, dtype=torch.int64), minlength=SIZE)
    sampling = sequence.sampling
    penalty = sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    return int((row - penalty).argmax())


class Steps:
    """Runs steps as the engine does."""

    def __init__(self, max_rows: int = 64) -> None:
        self.sampler = Sampler(SIZE, DEVICE, max_rows=max_rows)
        self.restored = 0
        """Tokens that were sent to the device."""

    def launch(self, sequences: list[Sequence], rows: torch.Tensor, ahead: bool = False) -> torch.Tensor:
        restore = OutputHistory.restore

        def counted(history: OutputHistory, parts: dict[str, torch.Tensor]) -> None:
            self.restored += len(parts["restored_tokens"])
            restore(history, parts)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OutputHistory, "restore", counted)
            batch = self.sampler.prepare(sequences, ahead)
        return self.sampler.sample(rows.to(DEVICE, copy=True), batch).tokens

    def step(self, *sequences: Sequence) -> None:
        rows = logits(*sequences)
        wanted = [expected(sequence, row) for sequence, row in zip(sequences, rows, strict=True)]
        tokens = self.launch(list(sequences), rows).tolist()
        assert tokens == wanted
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append(token)


def test_the_applied_numbers_equal_the_formula() -> None:
    sequences = [
        make_sequence(i, frequency_penalty=f, presence_penalty=p) for i, (f, p) in enumerate(PENALTIES)
    ]
    outputs = [[7], [], [0, 0, 49, 0], [5] * 300, [2, 1, 2]]
    for sequence, output in zip(sequences, outputs, strict=True):
        for token in output:
            sequence.append(token)
    rows = logits(*sequences)
    ours = rows.to(DEVICE, copy=True)
    Steps().sampler.prepare(sequences).penalties.apply(ours)
    for sequence, output, row, numbers in zip(sequences, outputs, rows, ours.cpu(), strict=True):
        counts = torch.bincount(torch.tensor(output, dtype=torch.int64), minlength=SIZE)
        sampling = sequence.sampling
        formula = row - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
        assert torch.allclose(numbers, formula, rtol=1e-5, atol=1e-5)
        assert torch.equal(numbers[counts == 0], row[counts == 0])


def test_outputs_that_are_applied_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [make_sequence(i) for i in range(5)]
    for i, sequence in enumerate(sequences):
        for token in range(3 * i):
            sequence.append(token % 4)
    together = logits(*sequences).to(DEVICE)
    apart = together.clone()
    Steps().sampler.prepare(sequences).penalties.apply(together)
    monkeypatch.setattr(penalties_module, "_MAX_ENTRIES", 13)
    Steps().sampler.prepare(sequences).penalties.apply(apart)
    assert torch.equal(together, apart)


def test_a_decoding_sequence_sends_no_tokens_to_the_device() -> None:
    steps, sequence = Steps(), make_sequence()
    for _ in range(300):  # longer than the first capacity
        steps.step(sequence)
    assert steps.restored == 0
    assert len(set(sequence.output_token_ids)) > 5


def test_steps_that_are_launched_ahead_count_tokens_that_the_host_has_not_read() -> None:
    ahead, beside = make_sequence(), make_sequence(1, frequency_penalty=0.0, presence_penalty=0.0)
    reference, steps, plain = make_sequence(), Steps(), Steps()
    rows = logits(ahead, beside)
    pending = steps.launch([ahead, beside], rows)
    for _ in range(20):
        following = steps.launch([ahead, beside], rows, ahead=True)
        ahead.append(pending[0].item())
        beside.append(pending[1].item())
        pending = following
        reference.append(plain.launch([reference, make_sequence(1)], rows)[0].item())
    assert ahead.output_token_ids == reference.output_token_ids
    assert steps.restored == 0


def test_a_repeated_step_does_not_count_its_first_attempt() -> None:
    steps, sequence = Steps(), make_sequence()
    for _ in range(5):
        steps.step(sequence)
        steps.launch([sequence], logits(sequence))  # its tokens are never read
        assert steps.launch([sequence], logits(sequence)).tolist() == [
            expected(sequence, logits(sequence)[0])
        ]


def test_a_step_that_failed_after_a_launch_ahead_is_repeated() -> None:
    steps, sequence = Steps(), make_sequence()
    steps.step(sequence)
    first = steps.launch([sequence], logits(sequence))
    steps.launch([sequence], logits(sequence), ahead=True)  # fails when it is read
    sequence.append(first.item())
    steps.step(sequence)
    steps.step(sequence)


def test_a_launch_ahead_without_the_step_before_is_refused() -> None:
    steps, sequence = Steps(), make_sequence()
    steps.step(sequence)
    with pytest.raises(RuntimeError, match="does not have the output tokens"):
        steps.launch([sequence], logits(sequence), ahead=True)
    steps.step(sequence)


def test_rows_of_sequences_outside_the_batch_are_reused() -> None:
    steps, sequences = Steps(max_rows=8), [make_sequence(i) for i in range(12)]
    for batch in (sequences[:8], sequences[4:], sequences[:3], sequences):
        for _ in range(3):
            steps.step(*batch)
    assert steps.restored > 0


def test_rows_of_finished_sequences_are_reused_first() -> None:
    steps = Steps(max_rows=8)
    stays = make_sequence()
    for i in range(50):
        others = [make_sequence(i * 10 + j) for j in range(5)]
        steps.step(stays, *others)
        steps.step(stays, *others)
        for other in others:
            other.status = Status.FINISHED
    assert steps.restored == 0


def test_a_row_without_a_token_changes_no_other_row() -> None:
    steps, sequences = Steps(), [make_sequence(i) for i in range(3)]
    steps.step(*sequences)
    rows = logits(*sequences)
    rows[1] = torch.nan
    tokens = steps.launch(sequences, rows)
    following = steps.launch(sequences, logits(*sequences), ahead=True)
    assert tokens[1] == NOT_A_TOKEN
    for i in (0, 2):
        sequences[i].append(tokens[i].item())
        assert following[i].item() == expected(sequences[i], logits(*sequences)[i])


def test_the_table_is_never_larger_than_announced() -> None:
    history = OutputHistory(DEVICE, max_rows=4)
    sequences = [make_sequence(i) for i in range(4)]
    longest = 700
    for length in range(longest):
        history.prepare(sequences[: 1 + length % 4], ahead=False)
        for sequence in sequences:
            sequence.append(1)
        assert history.num_bytes <= OutputHistory.max_bytes(4, longest)
    assert history.num_bytes > 4 * longest
