"""The references: PyPI's steering-vectors for directions, and plain transformers for reports."""

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from transformers import BatchEncoding, PreTrainedModel

from inference.interface.concepts import ConceptReport, TrainConcept, TrainingState
from inference.steering import calibration, effects
from inference.steering.answers import MOVED, repetition
from inference.steering.direction_files import DirectionFiles
from inference.steering.directions import Direction, unit_vectors
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
    steering_plainly,
    train,
)
from tests.inference.steering.operations import expected_readings

LAYERS = {"decoder_block": "model.layers.{num}"}
ALL_BLOCKS = tuple(range(NUM_LAYERS))


def train_and_load(
    model: PreTrainedModel, command: TrainConcept, directory: Path, **config: object
) -> tuple[Direction, ConceptReport, Driver]:
    driver = build_driver(model, DirectionFiles(directory), **config)
    assert train(driver, command)[-1].state is TrainingState.READY
    trained = DirectionFiles(directory).load(command.concept)
    assert trained is not None
    return *trained, driver


def check_directions(ours: Direction, theirs: dict[int, torch.Tensor]) -> None:
    assert ours.blocks == ALL_BLOCKS == tuple(sorted(theirs))
    for layer, vector in theirs.items():
        expected = torch.nn.functional.normalize(vector.cpu(), dim=0).numpy()
        np.testing.assert_allclose(ours.units[layer], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3_moe"])
def test_a_direction_is_the_difference_of_means_of_steering_vectors(
    architecture: str, tmp_path: Path
) -> None:
    steering_vectors = pytest.importorskip("steering_vectors")  # a GPU host may lack it
    model, command = make_model(architecture), make_training(count=8)
    config = {"max_batch_tokens": 40, "steering_blocks": ALL_BLOCKS}
    direction, _, _ = train_and_load(model, command, tmp_path, **config)

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

    positives, negatives = mean_activations(command.positive), mean_activations(command.negative)
    expected = {
        layer: steering_vectors.mean_aggregator()(positive, negative)
        for layer, (positive, negative) in enumerate(zip(positives, negatives, strict=True))
    }
    check_directions(direction, expected)
    block = direction.reading_block
    unit = torch.from_numpy(direction.reading_unit[0])
    means = [float((side[block].cpu() @ unit).mean()) for side in (negatives, positives)]
    assert direction.reading_range == pytest.approx(means, abs=1e-3)


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
    command = TrainConcept("kind", PROMPT, [PROMPT] * 7, positive, negative, NEUTRAL)
    direction, _, _ = train_and_load(llama, command, tmp_path, steering_blocks=ALL_BLOCKS)

    def text(content: list[int]) -> str:
        return " ".join(map(str, PROMPT + content))

    samples = [(text(p), text(n)) for p, n in zip(positive, negative, strict=True)]
    with plain_attention(llama):
        expected = steering_vectors.train_steering_vector(
            llama, Tokenizer(), samples, layer_config=LAYERS, read_token_index=-1
        )
    check_directions(direction, expected.layer_activations)


def mean_logprob(
    model: PreTrainedModel, text: list[int], vectors: dict[int, torch.Tensor], prompt: list[int] = PROMPT
) -> float:
    """Nats per token of the text, from plain transformers with the vectors added."""
    rows = plain_logprobs(model, prompt + text, vectors)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(text, device="cpu")[:, None]).mean().item()


def mean_hidden(model: PreTrainedModel, text: list[int]) -> np.ndarray:
    """[num_layers, hidden_size]: means over the text's own tokens."""
    return plain_hidden(model, PROMPT + text, {})[:, len(PROMPT) :].mean(1).numpy()


def differences(model: PreTrainedModel, command: TrainConcept) -> np.ndarray:
    """[pairs, layers, hidden_size]"""
    pairs = zip(command.positive, command.negative, strict=True)
    return np.array(
        [mean_hidden(model, positive) - mean_hidden(model, negative) for positive, negative in pairs]
    )


def log_odds(
    model: PreTrainedModel, command: TrainConcept, pair: int, vectors: dict[int, torch.Tensor]
) -> float:
    positive, negative = command.positive[pair], command.negative[pair]
    return mean_logprob(model, positive, vectors) - mean_logprob(model, negative, vectors)


def vectors_along(direction: Direction, units: np.ndarray, strength: float) -> dict[int, torch.Tensor]:
    """What the strength adds along `units` [len(blocks), hidden_size], with the direction's lengths."""
    added = torch.from_numpy(direction.components(strength) * units.astype(np.float32))
    return dict(zip(direction.blocks, added, strict=True))


@pytest.mark.parametrize("blocks", [(1,), (0, 2)])
def test_the_effects_are_what_plain_transformers_measure(
    llama: PreTrainedModel, blocks: tuple[int, ...], tmp_path: Path
) -> None:
    """Pairs are measured with the direction from the other folds, neutral texts with the direction of all."""
    command = make_training(count=10)
    direction, report, driver = train_and_load(llama, command, tmp_path, steering_blocks=blocks)
    found = driver.engine.steerer.calibration
    assert found is not None
    norms = np.mean(
        [plain_hidden(llama, PROMPT + t, {})[:, len(PROMPT) :].norm(dim=2).mean(1).numpy() for t in NEUTRAL],
        0,
    )
    np.testing.assert_allclose(found.norms, norms, rtol=1e-5)
    apart = differences(llama, command)[:, list(blocks)]
    assert report.num_held_out == 10

    def measure(pair: int, units: np.ndarray, strength: float) -> float:
        vectors = vectors_along(direction, units, strength)
        return log_odds(llama, command, pair, vectors) - log_odds(llama, command, pair, {})

    held_out = [
        unit_vectors(apart[[other for other in range(10) if other % 4 != pair % 4]].mean(0))
        for pair in range(10)
    ]
    changes = np.array(
        [[measure(pair, held_out[pair], effect.strength) for pair in range(10)] for effect in report.effects]
    )
    errors = changes.std(1, ddof=1) / math.sqrt(10)
    for effect, shifts, error in zip(report.effects, changes, errors, strict=True):
        assert effect.shift == pytest.approx(shifts.mean(), abs=1e-4)
        assert effect.shift_error == pytest.approx(error, abs=1e-4)
        steered = vectors_along(direction, unit_vectors(apart.mean(0)), effect.strength)
        costs = [mean_logprob(llama, t, {}) - mean_logprob(llama, t, steered) for t in NEUTRAL]
        assert effect.perplexity_ratio == pytest.approx(math.exp(np.mean(costs)), rel=1e-4)
    assert [effect.strength for effect in report.effects] == [-1.0, -0.5, 0.0, 0.5, 1.0]

    unit = apart[:, blocks.index(direction.reading_block)]
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert report.agreement == pytest.approx((cosines.sum() - 10) / 90, abs=1e-4)
    doses = np.array(direction.lengths) / norms[list(blocks)]
    assert report.dose == pytest.approx(doses.max(), rel=1e-4)
    assert report.down_dose == pytest.approx(direction.down_scale * doses.max(), rel=1e-4)
    assert (report.num_examples, report.blocks) == (10, list(blocks))

    generator = np.random.default_rng(0)
    shape = (effects._NUM_RANDOM_DIRECTIONS, len(blocks), HIDDEN_SIZE)
    typical = []
    for number, rows in enumerate(generator.standard_normal(shape).astype(np.float32)):
        units = unit_vectors(rows)
        pairs = [(2 * number + i) % 10 for i in range(2)]
        ups, downs = ([measure(pair, units, sign) for pair in pairs] for sign in (1.0, -1.0))
        typical.append(abs(np.mean(ups) - np.mean(downs)))
    assert report.specificity == pytest.approx((changes[-1] - changes[0]).mean() / np.mean(typical), rel=1e-3)


def test_the_answers_are_what_plain_transformers_generate_and_read(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    questions = [random_tokens(50 + i, 6 + i) for i in range(5)]
    stops = (7, 8, 9)
    command = msgspec.structs.replace(make_training(count=10), questions=questions, stop_token_ids=stops)
    direction, report, _ = train_and_load(llama, command, tmp_path, steering_blocks=(0, 1))
    answers: dict[float, list[list[int]]] = {}
    readings: dict[float, list[float]] = {}
    for strength in (-1.0, 0.0, 1.0):
        whole = [generate_along(llama, direction, strength, question) for question in questions]
        ends = [next((i for i, token in enumerate(tokens) if token in stops), 40) for tokens in whole]
        answers[strength] = [tokens[:end] for tokens, end in zip(whole, ends, strict=True)]
        assert all(answers[strength]), "an empty answer has no reading"
        readings[strength] = [
            float(np.mean(read(llama, direction, *both)))
            for both in zip(questions, answers[strength], strict=True)
        ]
    assert any(len(tokens) < 40 for given in answers.values() for tokens in given)
    assert [effect.strength for effect in report.answers] == [-1.0, 0.0, 1.0]
    for effect in report.answers:
        given, strength = answers[effect.strength], effect.strength
        scores = [mean_logprob(llama, t, {}, q) for q, t in zip(questions, given, strict=True)]
        assert effect.perplexity == pytest.approx(math.exp(-np.mean(scores)), rel=1e-3)
        assert effect.repetition == pytest.approx(np.mean([repetition(tokens) for tokens in given]))
        steps = strength * (np.array(readings[strength]) - np.array(readings[0.0]))
        assert effect.moved == (float((steps >= MOVED).mean()) if strength else 0.0)
    samples = [(sample.strength, sample.question, sample.token_ids) for sample in report.samples]
    assert samples == [(strength, i, answers[strength][i]) for strength in answers for i in range(2)]


def generate_along(
    model: PreTrainedModel, direction: Direction, strength: float, question: list[int]
) -> list[int]:
    with steering_plainly(model, vectors_along(direction, direction.units, strength)):
        return generate(model, question, 40)


def read(model: PreTrainedModel, direction: Direction, question: list[int], answer: list[int]) -> list[float]:
    positions = range(len(question), len(question) + len(answer))
    return expected_readings(plain_hidden(model, question + answer, {}), direction, positions)


@pytest.mark.parametrize(("blocks", "block"), [((1,), 1), ((0, 2), 0), (None, 2)])
def test_the_cap_is_the_dose_of_a_random_direction_that_makes_text_too_unlikely(
    llama: PreTrainedModel, blocks: tuple[int, ...] | None, block: int, tmp_path: Path
) -> None:
    written = [[token, *generate(llama, [*PROMPT, token], 9)] for token in random_tokens(0, 6)]
    command = msgspec.structs.replace(make_training(count=2), neutral=written)
    _, _, driver = train_and_load(llama, command, tmp_path, steering_blocks=blocks)
    found = driver.engine.steerer.calibration
    assert found is not None
    assert 0 < found.cap < calibration._CAP_DOSES[-1]
    vector = np.random.default_rng(0).standard_normal((1, HIDDEN_SIZE)).astype(np.float32)
    [unit] = torch.from_numpy(unit_vectors(vector)) * found.norms[block]

    def logprob(dose: float) -> float:
        return float(np.mean([mean_logprob(llama, text, {block: dose * unit}) for text in written]))

    costs = [logprob(0.0) - min(logprob(dose), logprob(-dose)) for dose in calibration._CAP_DOSES]
    doses, level = (0.0, *calibration._CAP_DOSES), math.log(calibration._CAP_PERPLEXITY_RATIO)
    costs = [0.0, *costs]
    after = next(i for i, cost in enumerate(costs) if cost >= level)
    share = (level - costs[after - 1]) / (costs[after] - costs[after - 1])
    expected = doses[after - 1] + share * (doses[after] - doses[after - 1])
    assert found.cap == pytest.approx(expected, rel=1e-3)
