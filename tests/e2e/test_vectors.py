"""Vectors in and out of the embedded model, and readings of texts, compared with plain transformers."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx
import numpy as np
import pytest
import torch
from safetensors.numpy import load
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.concepts.neutral_texts import TRAINING_PROMPT
from tests.app.concepts.vectors.files import write_gguf
from tests.e2e.conftest import TOKEN, Server
from tests.e2e.test_embedded import prompt_ids

PROMPT = "Tell me about the hotel."
TEXT = "The room was large, and the staff were kind to us."
BLOCKS = (0, 7, 18, 23)
PAIRS = [
    ("I love this wonderful place!", "I hate this horrible place!"),
    ("What a happy, sunny day.", "What a sad, gloomy day."),
    ("Our team won a great victory.", "Our team suffered a bad defeat."),
    ("This book is brilliant and exciting.", "This book is boring and awful."),
]


def file_metadata(content: bytes) -> dict[str, str]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def give(server: Server, content: bytes, **params: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"{server.url}/steering_concepts/import"
    return httpx.post(url, content=content, params=params, headers=headers, timeout=120)


def given(server: Server, content: bytes, **params: str) -> dict:
    response = give(server, content, **params)
    assert response.status_code == 201, response.text
    return response.json()


@pytest.fixture(scope="module")
def directions(reference_model: PreTrainedModel) -> dict[int, np.ndarray]:
    """A vector for some blocks, long enough to change answers."""
    generator = np.random.default_rng(0)
    size = reference_model.config.hidden_size
    vectors = {block: generator.standard_normal(size) for block in BLOCKS}
    return {block: (3 * v / np.linalg.norm(v)).astype(np.float32) for block, v in vectors.items()}


@pytest.fixture(scope="module")
def imported(server: Server, directions: dict[int, np.ndarray]) -> Iterator[dict]:
    """A control vector in repeng's file format, as a concept."""
    yield given(server, write_gguf(directions), name="control")
    server.delete("/steering_concepts/control")


@contextmanager
def steered(
    model: PreTrainedModel, vectors: Mapping[int, np.ndarray], strength: float = 1.0
) -> Iterator[None]:
    """Plain transformers that add the vectors like llama.cpp, but not at the first position."""
    passed = dict.fromkeys(vectors, 0)

    def add(block: int, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(passed[block], passed[block] + output.shape[1])
        passed[block] += output.shape[1]
        return output + strength * (positions > 0)[:, None] * torch.from_numpy(vectors[block])

    with ExitStack() as stack:
        for block in vectors:
            handle = model.model.layers[block].register_forward_hook(partial(add, block))
            stack.callback(handle.remove)
        yield


def log_probabilities(server: Server, **steering: object) -> list[float]:
    answer = server.chat(PROMPT, max_tokens=1, top_logprobs=10, **steering)
    [entry] = answer["choices"][0]["logprobs"]["content"]
    return [top["logprob"] for top in entry["top_logprobs"]]


@pytest.mark.parametrize("strength", [1.0, -1.0, 0.5])
def test_a_control_vector_has_the_effect_that_its_file_says(
    server: Server,
    imported: dict,
    directions: dict[int, np.ndarray],
    reference_model: PreTrainedModel,
    reference_tokenizer: PreTrainedTokenizerBase,
    strength: float,
) -> None:
    ids = torch.tensor([prompt_ids(reference_tokenizer, PROMPT)])
    with torch.inference_mode(), steered(reference_model, directions, strength):
        expected = reference_model(ids).logits[0, -1].log_softmax(-1).topk(10).values.tolist()
    found = log_probabilities(server, steering_concepts=["control"], steering_strength=strength)
    assert found == pytest.approx(expected, abs=1e-3)
    assert found != pytest.approx(log_probabilities(server), abs=0.05), (
        "the vector is too short for this test"
    )


def test_an_import_without_examples_is_not_measured(imported: dict) -> None:
    report = imported["report"]
    assert imported["imported"]
    assert report["works"] is None
    assert (report["num_examples"], report["effects"], report["specificity"]) == (0, [], None)
    assert report["blocks"] == list(BLOCKS)


def test_an_export_of_an_import_has_the_same_vectors(
    server: Server, imported: dict, directions: dict[int, np.ndarray]
) -> None:
    content = server.get("/steering_concepts/control/vectors").content
    tensors, metadata = load(content), file_metadata(content)
    added = {entry["block"]: entry["added"] for entry in json.loads(metadata["blocks"])}
    for block, vector in directions.items():
        assert tensors[f"direction.{block}"] * added[block] == pytest.approx(vector, rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def exported(quantized_server: Server) -> Iterator[bytes]:
    """The vectors of a concept that the quantized server has trained. It is called "mood" there."""
    examples = [{"positive": up, "negative": down} for up, down in PAIRS]
    made = quantized_server.post("/steering_concepts", {"name": "mood", "examples": examples}, timeout=900)
    assert made.status_code == 201, made.text
    yield quantized_server.get("/steering_concepts/mood/vectors").content
    quantized_server.delete("/steering_concepts/mood")


@pytest.fixture(scope="module")
def mood(server: Server, exported: bytes) -> Iterator[dict]:
    """The same concept on the server in full precision."""
    yield given(server, exported, name="mood")
    server.delete("/steering_concepts/mood")


def steered_blocks(concept: dict) -> set[int]:
    """Those of both signs: each sign may have its own."""
    return {*concept["report"]["blocks"], *concept["report"]["down_blocks"]}


def file_blocks(content: bytes) -> set[int]:
    return {entry["block"] for entry in json.loads(file_metadata(content)["blocks"])}


def steered_alike(server: Server, first: str, second: str, error: float) -> None:
    for strength in (-1, 0.5, 1):
        original, other = (
            log_probabilities(server, steering_concepts=[name], steering_strength=strength)
            for name in (first, second)
        )
        assert other == pytest.approx(original, abs=error)


def test_a_trained_concept_can_be_exported_and_imported(quantized_server: Server, exported: bytes) -> None:
    for tensor in load(exported).values():
        assert np.linalg.norm(tensor) == pytest.approx(1, abs=1e-5)
    copy = given(quantized_server, exported, name="copy")
    assert steered_blocks(copy) == file_blocks(exported)
    # The copy's vectors differ in their last bits, and then activations are rounded to other integers.
    steered_alike(quantized_server, "mood", "copy", error=0.3)
    unsteered = log_probabilities(quantized_server)
    assert log_probabilities(quantized_server, steering_concepts=["copy"]) != pytest.approx(
        unsteered, abs=0.3
    )
    assert quantized_server.delete("/steering_concepts/copy").status_code == 204


def test_an_imported_concept_can_be_exported_and_imported(
    server: Server, mood: dict, exported: bytes
) -> None:
    again = server.get("/steering_concepts/mood/vectors").content
    assert steered_blocks(mood) == file_blocks(again)
    for name, tensor in load(exported).items():
        assert load(again)[name] == pytest.approx(tensor, abs=1e-6)
    given(server, again, name="copy")
    steered_alike(server, "mood", "copy", error=1e-3)
    readings = [
        server.post(f"/steering_concepts/{name}/read", {"texts": [TEXT]}).json()["readings"][0]
        for name in ("mood", "copy")
    ]
    numbers = [[token["reading"] for token in reading["tokens"]] for reading in readings]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)
    assert server.delete("/steering_concepts/copy").status_code == 204


@pytest.mark.usefixtures("mood")
def test_readings_are_the_projections_of_plain_transformers(
    server: Server,
    exported: bytes,
    reference_model: PreTrainedModel,
    reference_tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Those of a server in full precision, with the vectors from a quantized one."""
    reading = json.loads(file_metadata(exported)["reading"])
    direction = torch.from_numpy(load(exported)[f"direction.{reading['block']}"])
    prompt = prompt_ids(reference_tokenizer, TRAINING_PROMPT)
    ids = torch.tensor([prompt + reference_tokenizer(TEXT, add_special_tokens=False).input_ids])
    with torch.inference_mode():
        states = reference_model(ids, output_hidden_states=True).hidden_states[reading["block"] + 1]
    projections = states[0, len(prompt) :] @ direction
    expected = ((projections - reading["zero"]) / (reading["one"] - reading["zero"])).tolist()
    answer = server.post("/steering_concepts/mood/read", {"texts": [TEXT]}).json()
    [found] = answer["readings"]
    assert [token["reading"] for token in found["tokens"]] == pytest.approx(expected, abs=2e-3)
    assert found["mean"] == pytest.approx(np.mean(expected), abs=2e-3)
    assert "".join(token["token"] for token in found["tokens"]) == TEXT
