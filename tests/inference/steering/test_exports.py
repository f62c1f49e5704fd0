"""A concept's vectors leave the engine with all that another one needs to steer with them."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from inference.interface.concepts import ExportVectors, VectorsResult
from inference.steering.direction_files import DirectionFiles
from inference.steering.directions import Calibration
from tests.given_vectors import added_by
from tests.inference.conftest import Driver, build_driver, generate, request
from tests.inference.steering.conftest import (
    NORMS,
    added_vectors,
    make_direction,
    random_tokens,
    steered,
    steering_plainly,
)
from tests.inference.steering.test_direction_files import REPORT

DIRECTION = make_direction(
    5, 0.3, (0, 2), down_scale=0.5, max_strength=1.75, reading_block=2, reading_range=(-3.0, 4.0)
)


@pytest.fixture
def driver(llama: PreTrainedModel, tmp_path: Path) -> Driver:
    """Its engine finds the concept `kind` on disk."""
    files = DirectionFiles(tmp_path)
    files.save_calibration(Calibration(NORMS, 0.5))
    files.save("kind", DIRECTION, REPORT)
    return build_driver(llama, DirectionFiles(tmp_path))


def test_the_vectors_are_what_strength_one_adds(driver: Driver) -> None:
    result = driver.export(ExportVectors("a", "kind"))
    assert (result.request_id, result.report, result.norms) == ("a", REPORT, [NORMS[0], NORMS[2]])
    vectors = result.vectors
    assert vectors is not None
    np.testing.assert_array_equal(added_by(vectors), DIRECTION.vectors(1.0))
    assert (vectors.blocks, vectors.down_scale) == ((0, 2), 0.5)
    assert (vectors.max_strength, vectors.max_down_strength) == (1.75, 2.0)
    assert (vectors.reading_block, vectors.reading_range) == (2, (-3.0, 4.0))
    assert driver.engine.is_idle


def test_plain_transformers_with_the_vectors_generate_the_same(
    driver: Driver, llama: PreTrainedModel
) -> None:
    vectors = driver.export(ExportVectors("a", "kind")).vectors
    assert vectors is not None
    known = added_vectors(["kind"], 1.0, {"kind": DIRECTION})
    prompt = random_tokens(0, 20)
    result = driver.run(steered(request("b", prompt, 16), "kind"))["b", 0]
    for block, row in zip(vectors.blocks, added_by(vectors), strict=True):
        np.testing.assert_allclose(row, known[block].numpy(), atol=1e-5)
    with steering_plainly(llama, known):
        assert result.token_ids == generate(llama, prompt, 16)


def test_an_unknown_concept_has_no_vectors(driver: Driver) -> None:
    assert driver.export(ExportVectors("a", "rude")) == VectorsResult("a")
    driver.forget("kind")
    assert driver.export(ExportVectors("b", "kind")) == VectorsResult("b")


def test_every_export_is_answered_once_beside_requests(driver: Driver, llama: PreTrainedModel) -> None:
    prompt = random_tokens(0, 20)
    driver.add(request("r", prompt, 16))
    driver.step()
    for name, concept in [("a", "kind"), ("b", "rude"), ("c", "kind")]:
        driver.engine.trainer.export(ExportVectors(name, concept))
    results = driver.step().vectors
    assert [(result.request_id, result.vectors is None) for result in results] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]
    assert driver.step().vectors == []
    assert driver.run()["r", 0].token_ids == generate(llama, prompt, 16)


def test_the_engine_is_not_idle_until_it_has_reported_the_vectors(driver: Driver) -> None:
    driver.engine.trainer.export(ExportVectors("a", "kind"))
    assert not driver.engine.is_idle
    assert len(driver.step().vectors) == 1
    assert driver.engine.is_idle
