"""Directions that one worker has trained are used by another one with the same model."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from transformers import PreTrainedModel

from inference.engine import Engine
from inference.interface.concepts import DirectionResult, SendDirection, TakeDirection, TrainConcept
from inference.steering.direction_files import DirectionFiles, encode_direction
from inference.steering.directions import Calibration
from tests.inference.conftest import Driver, build_driver, request
from tests.inference.steering.conftest import NORMS, make_direction, make_training, random_tokens, steered
from tests.inference.steering.test_direction_files import REPORT

DIRECTION = make_direction(5, 0.3, (0, 2), reading_block=2, reading_range=(-3.0, 4.0))
CALIBRATION = Calibration(NORMS, 0.5)
CONTENT = encode_direction(DIRECTION, REPORT)


@pytest.fixture
def trained(llama: PreTrainedModel, tmp_path: Path) -> Driver:
    files = DirectionFiles(tmp_path / "trained")
    files.save_calibration(CALIBRATION)
    files.save("kind", DIRECTION, REPORT)
    return build_driver(llama, files)


@pytest.fixture
def other(llama: PreTrainedModel, tmp_path: Path) -> Driver:
    return build_driver(deepcopy(llama), DirectionFiles(tmp_path / "other"))


def sent(engine: Engine, concept: str = "kind") -> DirectionResult:
    engine.trainer.send(SendDirection("a", concept))
    assert not engine.is_idle
    [result] = engine.step().directions
    assert engine.is_idle
    return result


def taken(result: DirectionResult, **changes: bytes) -> TakeDirection:
    assert result.content is not None
    return msgspec.structs.replace(TakeDirection("kind", result.content, result.calibration), **changes)


def test_the_other_worker_generates_the_same(trained: Driver, other: Driver, tmp_path: Path) -> None:
    prompt = random_tokens(0, 20)
    other.engine.trainer.take(taken(sent(trained.engine)))
    expected = trained.run(steered(request("r", prompt, 16), "kind"))["r", 0]
    assert other.run(steered(request("r", prompt, 16), "kind"))["r", 0].token_ids == expected.token_ids
    kept = DirectionFiles(tmp_path / "other").load("kind")
    assert kept is not None
    np.testing.assert_array_equal(kept[0].units, DIRECTION.units)
    assert kept[1] == REPORT
    assert DirectionFiles(tmp_path / "other").load_calibration() == CALIBRATION


def test_its_training_is_complete_at_once(trained: Driver, other: Driver) -> None:
    other.engine.trainer.take(taken(sent(trained.engine)))
    command: TrainConcept = make_training("kind")
    other.engine.trainer.add(command)
    [update] = other.engine.step().training
    assert update.report == REPORT


def test_an_unknown_concept_has_no_direction(trained: Driver) -> None:
    assert sent(trained.engine, "rude") == DirectionResult("a")


def test_a_worker_keeps_its_own_calibration_and_directions(trained: Driver, other: Driver) -> None:
    own = Calibration(NORMS, 0.25)
    other.engine.steerer.calibration = own
    result = sent(trained.engine)
    other.engine.trainer.take(taken(result))
    assert other.engine.steerer.calibration == own
    before = other.engine.steerer.get("kind")
    other.engine.trainer.take(taken(result, content=encode_direction(make_direction(6, 0.1, (1,)), REPORT)))
    assert other.engine.steerer.get("kind") is before


@pytest.mark.parametrize(
    "changes",
    [
        {"content": b""},
        {"content": b"\xff" * 100},
        {"content": CONTENT[:-1]},
        {"content": encode_direction(replace(DIRECTION, blocks=(0, 9), reading_block=0), REPORT)},
        {"calibration": b"{}"},
        {"calibration": msgspec.json.encode(Calibration(NORMS[:-1], 0.5))},
        {"calibration": msgspec.json.encode(Calibration(NORMS, 0.5)).replace(b"0.5", b"null")},
    ],
)
def test_what_does_not_fit_is_not_used(trained: Driver, other: Driver, changes: dict[str, bytes]) -> None:
    other.engine.trainer.take(taken(sent(trained.engine), **changes))
    assert not other.engine.trainer.knows("kind")
