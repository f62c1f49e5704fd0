"""An engine with steering concepts, and the reference: plain transformers with the same steering."""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from inference.interface.concepts import DirectionResult, TrainConcept, TrainingUpdate, VectorsResult
from inference.interface.protocol import StepReport
from inference.interface.requests import GenerationRequest, SteeringSpec
from inference.runner.recovery import StepOutcome
from inference.scheduling.probe import TrainingWork
from inference.scheduling.sequence import Sequence
from inference.steering.directions import Calibration, Direction, unit_vectors
from tests.inference.conftest import (
    COMMON,
    VOCAB_SIZE,
    Driver,
    build_driver,
    make_model,
    plain_attention,
)

NUM_LAYERS = int(COMMON["num_hidden_layers"])
HIDDEN_SIZE = int(COMMON["hidden_size"])
NORMS = (15.0, 20.0, 25.0)
NO_CAP = 100.0
STEERED_BLOCKS = (0, 1)
"""Not the last decoder block, since no keys and values are computed from its output."""


@pytest.fixture
def llama() -> PreTrainedModel:
    return make_model("llama")


def make_direction(
    seed: int, dose: float = 0.3, blocks: tuple[int, ...] = STEERED_BLOCKS, **changes: object
) -> Direction:
    """A random direction. Its row for a block does not depend on the other blocks."""
    rows = np.random.default_rng(seed).standard_normal((NUM_LAYERS, HIDDEN_SIZE)).astype(np.float32)
    return Direction(
        **{
            "blocks": blocks,
            "units": unit_vectors(rows[list(blocks)]),
            "lengths": tuple(dose * NORMS[block] for block in blocks),
            "down_scale": 1.0,
            "max_strength": 2.0,
            "max_down_strength": 2.0,
            "reading_block": blocks[0],
            "reading_range": (-1.0, 2.0),
            **changes,
        }
    )


CONCEPTS = {"kind": make_direction(1), "rude": make_direction(2, 0.4), "terse": make_direction(3, 0.2)}


def steered_driver(
    model: PreTrainedModel,
    cap: float = NO_CAP,
    concepts: Mapping[str, Direction] = CONCEPTS,
    **config: object,
) -> Driver:
    """A driver whose engine knows `concepts`."""
    driver = build_driver(model, **config)
    driver.engine.steerer.calibration = Calibration(NORMS, cap)
    for concept, direction in concepts.items():
        driver.engine.steerer.add(concept, direction)
    return driver


def concepts_at(*blocks: int) -> dict[str, Direction]:
    """CONCEPTS, steered at other blocks."""
    return {
        "kind": make_direction(1, 0.3, blocks),
        "rude": make_direction(2, 0.4, blocks),
        "terse": make_direction(3, 0.2, blocks),
    }


def steered(
    request: GenerationRequest, *concepts: str, strength: float = 1.0, **options: object
) -> GenerationRequest:
    strengths = dict.fromkeys(concepts, strength)
    return msgspec.structs.replace(request, steering=SteeringSpec(strengths, **options))


def count_computed_tokens(driver: Driver) -> list[int]:
    """A list that gets the number of computed tokens of each later step, without those that are discarded."""
    counts: list[int] = []
    apply = driver.engine._apply  # also gets the steps that were launched ahead

    def apply_and_count(scheduled: list[Sequence], outcome: StepOutcome) -> StepReport:
        counts.append(sum(sequence.num_scheduled_tokens for sequence in scheduled))
        return apply(scheduled, outcome)

    driver.engine._apply = apply_and_count
    return counts


def random_tokens(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(length)]


def added_vectors(
    concepts: Iterable[str], strength: float = 1.0, known: Mapping[str, Direction] = CONCEPTS
) -> dict[int, torch.Tensor]:
    """What the concepts add to each decoder block's output, without the cap: [hidden_size] on the CPU."""
    added: dict[int, torch.Tensor] = {}
    for concept in concepts:
        direction = known[concept]
        for block, unit, length in zip(direction.blocks, direction.units, direction.lengths, strict=True):
            vector = strength * length * torch.from_numpy(unit).double()
            added[block] = added[block] + vector if block in added else vector
    return added


def copied(output: Any) -> tuple[Any, torch.Tensor]:
    """A copy of what a decoder block returned, and the hidden states in it: [N, T, hidden_size]."""
    if isinstance(output, tuple):
        first, hidden = copied(output[0])
        return (first, *output[1:]), hidden
    output = output.clone()
    return output, output[0] if output.dim() == 4 else output  # Gemma 3n returns several versions


@contextmanager
def steering_plainly(model: PreTrainedModel, vectors: dict[int, torch.Tensor]) -> Iterator[None]:
    """Adds the vectors to all positions but the first, for one forward pass or one generation."""

    def add(vector: torch.Tensor) -> object:
        is_first_call = True

        def hook(block: nn.Module, args: object, output: object) -> object:
            nonlocal is_first_call
            skipped, is_first_call = int(is_first_call), False
            output, hidden = copied(output)
            hidden[:, skipped:] += vector.to(hidden)
            return output

        return hook

    handles = [model.model.layers[block].register_forward_hook(add(v)) for block, v in vectors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plain_logprobs(
    model: PreTrainedModel, token_ids: list[int], vectors: dict[int, torch.Tensor]
) -> torch.Tensor:
    """[T, vocab_size] on the CPU, from one forward pass of plain transformers."""
    input_ids = torch.tensor([token_ids], device=model.device)
    with plain_attention(model), torch.inference_mode(), steering_plainly(model, vectors):
        return model(input_ids, use_cache=False).logits[0].float().log_softmax(-1).cpu()


def plain_hidden(
    model: PreTrainedModel, token_ids: list[int], vectors: dict[int, torch.Tensor]
) -> torch.Tensor:
    """[num_layers, T, hidden_size] float64 on the CPU: the decoder blocks' output in plain transformers."""
    outputs: list[torch.Tensor] = []

    def record(block: nn.Module, args: object, output: object) -> None:
        outputs.append(copied(output)[1][0].double().cpu())

    with plain_attention(model), torch.inference_mode(), steering_plainly(model, vectors):
        handles = [block.register_forward_hook(record) for block in model.model.layers]
        model(torch.tensor([token_ids], device=model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(outputs)


class Feeder:
    """Replaces the trainer: hands out the given work at once, and keeps what comes back."""

    is_idle = True
    num_tokens_in_flight = 0

    def __init__(self, due: list[TrainingWork]) -> None:
        self._due = due
        self.computed: list[TrainingWork] = []
        self.failed: list[TrainingWork] = []

    def has_work(self, serving: bool) -> bool:
        return bool(self._due)

    def next_work(self, serving: bool, room: int) -> list[TrainingWork]:
        due, self._due = self._due, []
        return due

    def complete(self, work: TrainingWork) -> None:
        self.computed.append(work)

    def fail(self, work: TrainingWork) -> None:
        self.failed.append(work)

    def take_updates(self) -> list[TrainingUpdate]:
        return []

    def take_exports(self) -> list[VectorsResult]:
        return []

    def take_directions(self) -> list[DirectionResult]:
        return []


def feed(driver: Driver, *due: TrainingWork) -> Feeder:
    """Makes the next step start to compute this work."""
    feeder = Feeder(list(due))
    driver.engine.trainer = driver.engine.measuring.trainer = feeder
    return feeder


PROMPT = [2, 7, 8]


def make_texts(seed: int, count: int, tokens: range, lengths: range = range(4, 9)) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.choice(tokens) for _ in range(rng.choice(lengths))] for _ in range(count)]


NEUTRAL = make_texts(0, 4, range(70, VOCAB_SIZE), range(6, 10))


def make_training(
    concept: str = "kind",
    count: int = 8,
    seed: int = 1,
    *,
    background: bool = False,
    lengths: range = range(4, 9),
) -> TrainConcept:
    """A training command. Its positive and negative texts have no token in common."""
    return TrainConcept(
        concept=concept,
        prompt_token_ids=PROMPT,
        pair_prompts=[PROMPT] * count,
        positive=make_texts(seed, count, range(10, 40), lengths),
        negative=make_texts(seed + 1000, count, range(40, 70), lengths),
        neutral=NEUTRAL,
        background=background,
    )


def train(driver: Driver, *trainings: TrainConcept) -> list[TrainingUpdate]:
    """Trains to the end and returns all updates."""
    for training in trainings:
        driver.engine.trainer.add(training)
    updates: list[TrainingUpdate] = []
    for _ in range(2000):
        if driver.engine.is_idle:
            return updates
        updates += driver.step().training
    raise AssertionError("the training does not end")
