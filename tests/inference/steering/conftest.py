"""An engine with steering concepts, and the reference: plain transformers with the same steering."""

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from inference.interface.protocol import (
    GenerationRequest,
    SteeringSpec,
    StepReport,
    TrainConcept,
    TrainingUpdate,
)
from inference.runner.recovery import StepOutcome
from inference.scheduling.probe import Probe
from inference.scheduling.sequence import Sequence
from inference.steering.directions import Calibration, Direction
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


def make_direction(seed: int, dose: float = 0.3) -> Direction:
    difference = np.random.default_rng(seed).standard_normal((NUM_LAYERS, HIDDEN_SIZE))
    return Direction(difference.astype(np.float32), dose)


CONCEPTS = {"kind": make_direction(1), "rude": make_direction(2, 0.4), "terse": make_direction(3, 0.2)}


def steered_driver(model: PreTrainedModel, cap: float = NO_CAP, **config: object) -> Driver:
    """A driver whose engine knows CONCEPTS."""
    driver = build_driver(model, **{"steering_blocks": STEERED_BLOCKS, **config})
    driver.engine.steerer.calibration = Calibration(NORMS, cap)
    for concept, direction in CONCEPTS.items():
        driver.engine.steerer.add(concept, direction)
    return driver


def steered(request: GenerationRequest, *concepts: str, strength: float = 1.0) -> GenerationRequest:
    return msgspec.structs.replace(request, steering=SteeringSpec(concepts, strength))


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
    blocks: Iterable[int], concepts: Iterable[str], strength: float = 1.0
) -> dict[int, torch.Tensor]:
    """What the concepts add to each decoder block's output, without the cap: [hidden_size] on the CPU."""
    nothing = torch.zeros((), device="cpu")
    return {
        block: strength * sum((_added(CONCEPTS[concept], block) for concept in concepts), nothing)
        for block in blocks
    }


def _added(direction: Direction, block: int) -> torch.Tensor:
    row = torch.from_numpy(direction.difference[block]).double()
    return direction.dose * NORMS[block] * row / row.norm()


@contextmanager
def steering_plainly(model: PreTrainedModel, vectors: dict[int, torch.Tensor]) -> Iterator[None]:
    """Adds the vectors to all positions but the first, for one forward pass or one generation."""

    def add(vector: torch.Tensor) -> object:
        is_first_call = True

        def hook(block: nn.Module, args: object, output: object) -> object:
            nonlocal is_first_call
            hidden = output[0] if isinstance(output, tuple) else output
            skipped, is_first_call = int(is_first_call), False
            hidden = hidden.clone()
            hidden[:, skipped:] += vector.to(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

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
        outputs.append((output[0] if isinstance(output, tuple) else output)[0].double().cpu())

    with plain_attention(model), torch.inference_mode(), steering_plainly(model, vectors):
        handles = [block.register_forward_hook(record) for block in model.model.layers]
        model(torch.tensor([token_ids], device=model.device), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(outputs)


class Feeder:
    """Replaces the trainer: hands out the given probes at once, and keeps the computed ones."""

    is_idle = True

    def __init__(self, probes: list[Probe]) -> None:
        self._due = probes
        self.computed: list[Probe] = []

    def next_probes(self, serving: bool) -> list[Probe]:
        probes, self._due = self._due, []
        return probes

    def complete_probe(self, probe: Probe) -> None:
        self.computed.append(probe)

    def take_updates(self) -> list[TrainingUpdate]:
        return []


def feed(driver: Driver, *probes: Probe) -> Feeder:
    """Makes the next step start to compute the probes."""
    feeder = Feeder(list(probes))
    driver.engine.trainer = feeder
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
