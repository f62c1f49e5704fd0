"""The references: PyPI's steering-vectors for directions, and plain transformers for reports."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import BatchEncoding, PreTrainedModel

from inference.interface.protocol import ConceptReport, TrainConcept, TrainingState
from inference.steering import training
from inference.steering.direction_files import DirectionFiles, unit_vectors
from tests.inference.conftest import Driver, build_driver, generate, make_model, plain_attention
from tests.inference.steering.conftest import (
    HIDDEN_SIZE,
    NEUTRAL,
    NUM_LAYERS,
    PROMPT,
    make_training,
    plain_hidden,
    plain_logprobs,
    random_tokens,
    train,
)

LAYERS = {"decoder_block": "model.layers.{num}"}


def train_and_load(
    model: PreTrainedModel, command: TrainConcept, directory: Path, **config: object
) -> tuple[np.ndarray, float, ConceptReport, Driver]:
    """The direction, the dose and the report."""
    driver = build_driver(model, DirectionFiles(directory), **config)
    assert train(driver, command)[-1].state is TrainingState.READY
    trained = DirectionFiles(directory).load(command.concept)
    assert trained is not None
    return trained[0].difference, trained[0].dose, trained[1], driver


def check_directions(ours: np.ndarray, theirs: dict[int, torch.Tensor]) -> None:
    assert ours.shape == (NUM_LAYERS, HIDDEN_SIZE)
    assert sorted(theirs) == list(range(NUM_LAYERS))
    for layer, vector in theirs.items():
        expected = vector.cpu().numpy()
        np.testing.assert_allclose(ours[layer], expected, rtol=0, atol=1e-4 * vector.norm().item())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe"])
def test_a_direction_is_the_difference_of_means_of_steering_vectors(
    architecture: str, tmp_path: Path
) -> None:
    steering_vectors = pytest.importorskip("steering_vectors")  # a GPU host may lack it
    model, command = make_model(architecture), make_training(count=8)
    difference, _, _, _ = train_and_load(model, command, tmp_path, max_batch_tokens=40)

    def mean_activations(texts: list[list[int]]) -> list[torch.Tensor]:
        """[texts, hidden_size] for each layer: means over the texts' own tokens."""
        recording = steering_vectors.record_activations(model, layer_config=LAYERS)
        with plain_attention(model), torch.no_grad(), recording as seen:
            for text in texts:
                model(torch.tensor([PROMPT + text]))
        return [
            torch.stack([activation[0, len(PROMPT) :].mean(0) for activation in seen[layer]])
            for layer in range(NUM_LAYERS)
        ]

    both = zip(mean_activations(command.positive), mean_activations(command.negative), strict=True)
    expected = {
        layer: steering_vectors.mean_aggregator()(positive, negative)
        for layer, (positive, negative) in enumerate(both)
    }
    check_directions(difference, expected)


class Tokenizer:
    """Reads a text of token ids, separated by spaces."""

    pad_token_id = 0

    def __call__(self, texts: list[str], **options: object) -> BatchEncoding:
        ids = torch.tensor([[int(word) for word in text.split()] for text in texts])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_a_direction_of_single_tokens_is_the_result_of_train_steering_vector(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    steering_vectors = pytest.importorskip("steering_vectors")
    positive, negative = ([[token] for token in random_tokens(seed, 7)] for seed in (1, 2))
    command = TrainConcept("kind", PROMPT, positive, negative, NEUTRAL)
    difference, _, _, _ = train_and_load(llama, command, tmp_path)

    def text(content: list[int]) -> str:
        return " ".join(map(str, PROMPT + content))

    samples = [(text(p), text(n)) for p, n in zip(positive, negative, strict=True)]
    with plain_attention(llama):
        expected = steering_vectors.train_steering_vector(
            llama, Tokenizer(), samples, layer_config=LAYERS, read_token_index=-1
        )
    check_directions(difference, expected.layer_activations)


def mean_logprob(
    model: PreTrainedModel, text: list[int], vectors: np.ndarray, blocks: tuple[int, ...]
) -> float:
    """Nats per token of the text, from plain transformers with the vectors added."""
    added = dict(zip(blocks, torch.from_numpy(vectors), strict=True))
    rows = plain_logprobs(model, PROMPT + text, added)[len(PROMPT) - 1 : -1]
    return rows.gather(1, torch.tensor(text, device="cpu")[:, None]).mean().item()


@pytest.mark.parametrize("blocks", [(1,), (0, 2)])
def test_a_report_is_what_plain_transformers_measure(
    llama: PreTrainedModel, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    """Pairs are measured with the direction from the other folds, neutral texts with the direction of all."""
    command = make_training(count=10)
    _, dose, report, driver = train_and_load(llama, command, tmp_path, steering_blocks=blocks)
    calibration = driver.engine.steerer.calibration
    assert calibration is not None
    norms = np.mean(
        [plain_hidden(llama, PROMPT + t, {})[:, len(PROMPT) :].norm(dim=2).mean(1).numpy() for t in NEUTRAL],
        0,
    )
    np.testing.assert_allclose(calibration.norms, norms, rtol=1e-5)

    hidden = [
        [plain_hidden(llama, PROMPT + text, {})[:, len(PROMPT) :].mean(1).numpy() for text in side]
        for side in (command.positive, command.negative)
    ]
    differences = np.subtract(*hidden)  # [pairs, layers, hidden_size]
    nothing = np.zeros((len(blocks), HIDDEN_SIZE), np.float32)
    whole = unit_vectors(differences.mean(0).astype(np.float32), blocks, norms)
    _, held_out = training._split(10)
    assert report.num_held_out == len(held_out) == 5

    def log_odds(pair: int, vectors: np.ndarray) -> float:
        positive, negative = command.positive[pair], command.negative[pair]
        return mean_logprob(llama, positive, vectors, blocks) - mean_logprob(llama, negative, vectors, blocks)

    for effect in report.effects:
        shifts = []
        for pair in held_out:
            others = [other for other in range(10) if other % 4 != pair % 4]
            unit = unit_vectors(differences[others].mean(0).astype(np.float32), blocks, norms)
            vectors = np.float32(effect.strength * dose) * unit
            shifts.append(log_odds(pair, vectors) - log_odds(pair, nothing))
        assert effect.shift == pytest.approx(np.mean(shifts), abs=1e-4)
        steered = np.float32(effect.strength * dose) * whole
        costs = [
            mean_logprob(llama, t, nothing, blocks) - mean_logprob(llama, t, steered, blocks) for t in NEUTRAL
        ]
        assert effect.perplexity_ratio == pytest.approx(math.exp(np.mean(costs)), rel=1e-4)

    unit = differences[:, blocks[0]]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert report.agreement == pytest.approx((cosines.sum() - 10) / 90, abs=1e-4)
    assert [effect.strength for effect in report.effects] == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert (report.num_examples, report.block, report.dose) == (10, blocks[0], dose)
    assert 0 < dose <= calibration.cap
    assert report.specificity is not None


@pytest.mark.parametrize("blocks", [(1,), (0, 2)])
def test_the_cap_is_the_dose_of_a_random_direction_that_makes_text_too_unlikely(
    llama: PreTrainedModel, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    written = [[token, *generate(llama, [*PROMPT, token], 9)] for token in random_tokens(0, 6)]
    command = msgspec.structs.replace(make_training(count=2), neutral=written)
    _, _, _, driver = train_and_load(llama, command, tmp_path, steering_blocks=blocks)
    calibration = driver.engine.steerer.calibration
    assert calibration is not None
    assert 0 < calibration.cap < training._CAP_DOSES[-1]
    [direction] = training._random_directions(1, (NUM_LAYERS, HIDDEN_SIZE), 0)
    unit = unit_vectors(direction, blocks, calibration.norms)

    def logprob(dose: float) -> float:
        vectors = np.float32(dose) * unit
        return float(np.mean([mean_logprob(llama, text, vectors, blocks) for text in written]))

    costs = [logprob(0.0) - min(logprob(dose), logprob(-dose)) for dose in training._CAP_DOSES]
    doses, level = (0.0, *training._CAP_DOSES), math.log(training._CAP_PERPLEXITY_RATIO)
    costs = [0.0, *costs]
    after = next(i for i, cost in enumerate(costs) if cost >= level)
    share = (level - costs[after - 1]) / (costs[after] - costs[after - 1])
    expected = doses[after - 1] + share * (doses[after] - doses[after - 1])
    assert calibration.cap == pytest.approx(expected, rel=1e-3)
