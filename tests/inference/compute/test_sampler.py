"""Sampled tokens follow the distributions that the parameters define."""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from inference.compute.sampler import NOT_A_TOKEN, Sampler
from inference.interface.requests import GenerationRequest, SamplingParams, TokenLogprobs
from inference.scheduling.sequence import Sequence, build_sequences
from tests.inference.compute.sampling.conftest import Kernels, load_kernels

LOGITS = torch.tensor([1.0, 3.0, 0.5, 2.0, 2.9, -4.0, 0.0, 1.5], device="cpu")
SIZE = len(LOGITS)


_kernels: Kernels = load_kernels("torch")


_BACKENDS = ["torch", "cpu", "cuda"] if torch.get_default_device().type == "cuda" else ["torch", "cpu"]


@pytest.fixture(autouse=True, params=_BACKENDS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs every test with the operations of each back end. The tests' own tensors are on the CPU.

    Triton's interpreter is too slow for so many rows, so the kernels for CUDA run here only on a GPU.
    """
    kernels = load_kernels(request.param)
    monkeypatch.setattr("tests.inference.compute.test_sampler._kernels", kernels)
    with torch.device("cpu"):
        yield


def make_sequences(count: int, seed: int = 0, **sampling: object) -> list[Sequence]:
    """The choices of one request, each with random numbers of its own."""
    request = GenerationRequest("r", [0], max_tokens=100, n=count, sampling=SamplingParams(**sampling))
    return build_sequences(request, 0.0, itertools.count(), random.Random(seed))


def make_sequence(output: list[int] | None = None, seed: int = 0, **sampling: object) -> Sequence:
    [sequence] = make_sequences(1, seed, **sampling)
    for token_id in output or []:
        sequence.append(token_id)
    return sequence


class SampleResult(NamedTuple):
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


def sample(sequences: list[Sequence], logits: torch.Tensor = LOGITS) -> SampleResult:
    drawer = Sampler(logits.shape[-1], _kernels.device, _kernels.operations)
    rows = logits.repeat(len(sequences), 1) if logits.dim() == 1 else logits.clone()
    return SampleResult(*drawer.sample(rows.to(_kernels.device), drawer.prepare(sequences)).read())


def distribution(draws: int = 8000, logits: torch.Tensor = LOGITS, **sampling: object) -> torch.Tensor:
    """How often each token was sampled."""
    sequences = make_sequences(draws, **sampling)
    return torch.bincount(torch.tensor(sample(sequences, logits).token_ids), minlength=logits.shape[-1])


def expect(counts: torch.Tensor, probabilities: torch.Tensor) -> None:
    """Chi-square test of the counts against the probabilities. Tokens of probability 0 must not occur."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible].double() / probabilities.double().sum() * counts.sum()
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible].double(), expected).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    expect(distribution(temperature=temperature), (LOGITS / temperature).softmax(-1))


def test_the_chi_square_can_fail() -> None:
    with pytest.raises(AssertionError):
        expect(distribution(temperature=1.0), (LOGITS / 1.2).softmax(-1))


@pytest.mark.parametrize("top_k", [1, 2, 5, 8, 10**9])
def test_top_k_keeps_the_k_most_likely(top_k: int) -> None:
    probabilities = LOGITS.softmax(-1)
    probabilities[LOGITS.argsort(descending=True)[top_k:]] = 0
    expect(distribution(top_k=top_k), probabilities)


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float) -> None:
    probabilities = LOGITS.softmax(-1)
    order = probabilities.argsort(descending=True)
    kept = next(k for k in range(1, SIZE + 1) if probabilities[order[:k]].sum() >= top_p - 1e-6)
    probabilities[order[kept:]] = 0
    expect(distribution(top_p=top_p), probabilities)


def test_top_p_applies_to_what_top_k_left() -> None:
    # The two most likely tokens have 0.52 and 0.48 of their sum: the first one alone reaches 0.5.
    assert distribution(draws=200, top_k=2, top_p=0.5)[1] == 200


def test_top_p_applies_after_temperature() -> None:
    cold = distribution(draws=2000, temperature=0.1, top_p=0.9)
    assert (cold > 0).sum() == 2


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_k": 1}, {"temperature": 1e-9}]
)
def test_greedy_takes_the_lowest_id_of_equal_logits(sampling: dict[str, float]) -> None:
    logits = torch.tensor([0.0, 5.0, 1.0, 5.0, 5.0])
    assert sample([make_sequence(**sampling)], logits).token_ids == [1]


def test_frequency_penalty_counts_and_presence_penalty_does_not() -> None:
    output = [1, 1, 1, 4]
    probabilities = (LOGITS - torch.tensor([0, 3 * 0.7 + 0.4, 0, 0, 0.7 + 0.4, 0, 0, 0])).softmax(-1)
    sequences = [
        make_sequence(output, seed=i, frequency_penalty=0.7, presence_penalty=0.4) for i in range(8000)
    ]
    expect(torch.bincount(torch.tensor(sample(sequences).token_ids), minlength=SIZE), probabilities)


def test_the_prompt_is_not_penalised() -> None:
    sequence = make_sequence([], temperature=0.0, frequency_penalty=2.0)
    sequence.token_ids = [1, 1, 1]
    sequence.num_prompt_tokens = 3
    assert sample([sequence]).token_ids == [1]


def test_counts_follow_the_output_as_it_grows() -> None:
    sequence = make_sequence([1], temperature=0.0, frequency_penalty=1.0)
    chosen = []
    for _ in range(6):
        token = sample([sequence]).token_ids[0]
        sequence.append(token)
        chosen.append(token)
    expected, counts = [], torch.zeros(SIZE)
    counts[1] = 1
    for _ in range(6):
        token = int((LOGITS - counts).argmax())
        counts[token] += 1
        expected.append(token)
    assert chosen == expected


def test_logit_bias_is_added() -> None:
    biased = LOGITS.clone()
    biased[0] += 2.5
    biased[4] -= 1.0
    expect(distribution(logit_bias={0: 2.5, 4: -1.0}), biased.softmax(-1))


@pytest.mark.parametrize("bias", [-100.0, -1e300])
def test_a_bias_of_minus_100_bans(bias: float) -> None:
    logits = torch.tensor([500.0, 0.0, 1.0])
    assert distribution(draws=500, logits=logits, logit_bias={0: bias})[0] == 0


@pytest.mark.parametrize("bias", [100.0, 1e300])
def test_a_bias_of_100_excludes_all_other_tokens(bias: float) -> None:
    logits = torch.tensor([500.0, -500.0, 1.0, 0.0])
    assert distribution(draws=500, logits=logits, logit_bias={1: bias})[1] == 500


def test_several_selected_tokens_compete_with_each_other() -> None:
    selected = LOGITS.clone()
    selected[[0, 1, 2, 4, 5, 7]] = float("-inf")
    expect(distribution(logit_bias={3: 100.0, 6: 100.0}), selected.softmax(-1))
    expect(distribution(logit_bias={3: 1e6, 6: 1e6}), selected.softmax(-1))
    selected[3] += 2
    expect(distribution(logit_bias={3: 102.0, 6: 100.0}), selected.softmax(-1))
    assert distribution(draws=500, logit_bias={3: 100.0, 6: 1e300})[6] == 500


def test_each_row_has_its_own_parameters() -> None:
    sequences = [
        make_sequence(temperature=0.0),
        make_sequence(temperature=0.0, logit_bias={5: 100.0}),
        make_sequence([1, 1, 1], temperature=0.0, frequency_penalty=2.0),
        make_sequence(temperature=0.0, logit_bias={1: -100.0, 4: -100.0}),
        make_sequence(top_k=1, top_logprobs=0),
    ]
    sampled = sample(sequences)
    assert sampled.token_ids == [1, 5, 4, 3, 1]
    assert [entry is not None for entry in sampled.logprobs] == [False] * 4 + [True]


@pytest.mark.parametrize(
    "neighbour", [{"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.4}, {"top_logprobs": 20}]
)
def test_a_row_draws_the_same_whatever_its_neighbours(neighbour: dict[str, object]) -> None:
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(0)) * 3
    alone = [sample([make_sequence(seed=i, top_p=0.9)], logits).token_ids[0] for i in range(40)]
    both = logits.repeat(2, 1)
    beside = [
        sample([make_sequence(seed=i, top_p=0.9), make_sequence(seed=99, **neighbour)], both).token_ids[0]
        for i in range(40)
    ]
    assert alone == beside


def test_logprobs_ignore_penalties_bias_and_temperature() -> None:
    sequence = make_sequence(
        [1], temperature=0.0, frequency_penalty=2.0, logit_bias={4: -100.0}, top_logprobs=3
    )
    sampled = sample([sequence])
    reference = LOGITS.log_softmax(-1)
    [entry] = sampled.logprobs
    assert entry is not None
    assert sampled.token_ids == [3]
    assert entry.logprob == pytest.approx(reference[3].item())
    assert [token for token, _ in entry.top] == [1, 4, 3]
    assert [value for _, value in entry.top] == pytest.approx(reference[[1, 4, 3]].tolist())


def test_a_row_with_logits_that_are_not_finite_does_not_change_other_rows() -> None:
    rows = LOGITS.repeat(4, 1)
    rows[0] = float("nan")
    rows[2, 3] = float("inf")
    sequences = [
        make_sequence(top_p=0.5),
        make_sequence(top_k=1),
        make_sequence(),
        make_sequence(temperature=0.0),
    ]
    assert sample(sequences, rows).token_ids == [NOT_A_TOKEN, 1, NOT_A_TOKEN, 1]


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 2.0])
def test_extreme_logits_do_not_overflow(temperature: float) -> None:
    logits = torch.tensor([3e38, -3e38, 0.0])
    assert sample([make_sequence(temperature=temperature)], logits).token_ids == [0]


def test_the_smallest_top_p_keeps_the_most_likely() -> None:
    assert distribution(draws=50, top_p=5e-324, top_k=3)[1] == 50


def test_equal_top_logprobs_are_ordered_by_id() -> None:
    logits = torch.zeros(5000)
    logits[[4000, 70, 900, 2]] = torch.tensor([1.0, 1.0, 1.0, 2.0])
    [entry] = sample([make_sequence(temperature=0.0, top_logprobs=3)], logits).logprobs
    assert entry is not None
    assert [token for token, _ in entry.top] == [2, 70, 900]


def test_more_top_logprobs_than_tokens_gives_all_tokens() -> None:
    [entry] = sample([make_sequence(top_logprobs=20)]).logprobs
    assert entry is not None
    assert len(entry.top) == SIZE


EXTREMES = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 5e-324, 1e-5, 1e-3, 2.0]),
        "top_p": st.sampled_from([0.0, 5e-324, 0.5, 1 - 2**-53, 1.0]),
        "top_k": st.sampled_from([1, 2, SIZE, 2**31, 2**63 - 1]),
        "frequency_penalty": st.sampled_from([-2.0, 2.0, 5e-324]),
        "presence_penalty": st.sampled_from([-2.0, 2.0]),
        "logit_bias": st.dictionaries(
            st.integers(0, SIZE - 1),
            st.sampled_from([-1e308, -100.0, -99.999, -0.0, 5e-324, 99.999, 100.0, 1e308]),
            max_size=SIZE,
        ),
        "top_logprobs": st.sampled_from([0, 20]),
    },
)
ROWS = st.lists(
    st.sampled_from([0.0, -0.0, 1e-45, 1.0, -1.0, 1e30, 3e38, -3e38]), min_size=SIZE, max_size=SIZE
)


@given(
    cases=st.lists(st.tuples(EXTREMES, ROWS, st.sampled_from([0, 1, 1000])), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_extreme_parameters_break_neither_their_row_nor_others(
    cases: list[tuple[dict[str, Any], list[float], int]], seed: int
) -> None:
    def make_sequences() -> list[Sequence]:
        return [
            make_sequence([1] * num_output, seed + i, **extremes)
            for i, (extremes, _, num_output) in enumerate(cases)
        ]

    rows = torch.tensor([row for _, row, _ in cases])
    together = sample([*make_sequences(), make_sequence(seed=seed)], torch.cat([rows, LOGITS[None]]))
    assert together.token_ids[-1] == sample([make_sequence(seed=seed)]).token_ids[0]
    for i, sequence in enumerate(make_sequences()):
        token_id, bias = together.token_ids[i], cases[i][0].get("logit_bias", {})
        assert sample([sequence], rows[i]).token_ids == [token_id]
        selected = {id for id, value in bias.items() if value >= 100}
        banned = {id for id, value in bias.items() if value <= -100}
        if token_id == NOT_A_TOKEN:
            assert len(banned) == SIZE
        else:
            assert token_id not in banned
            assert token_id in (selected or range(SIZE))
        if together.logprobs[i] is not None:
            assert not any(math.isnan(value) or value > 0 for _, value in together.logprobs[i].top)
