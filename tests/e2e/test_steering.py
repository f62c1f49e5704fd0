"""Concepts on the embedded model: created over HTTP, used in requests, compared with plain transformers."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from aleph_alpha_client import Client
from aleph_alpha_client.steering import SteeringConceptCreationRequest, SteeringPairedExample
from safetensors.torch import load
from steering_vectors import record_activations
from steering_vectors.aggregators import mean_aggregator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from app.concepts.neutral_texts import NEUTRAL_TEXTS, TRAINING_PROMPT
from tests.e2e.conftest import TOKEN, Server, serving
from tests.e2e.test_embedded import prompt_ids

SHIPPED = {"sentiment", "formality", "child-friendly", "french", "confidence"}
PROMPT = "Tell me about the hotel."
TRAINING_SECONDS = 900
EXAMPLES = [
    {"positive": "I love this wonderful place!", "negative": "I hate this horrible place!"},
    {"positive": "What a happy, sunny day.", "negative": "What a sad, gloomy day."},
    {"positive": "The food was delicious and fresh.", "negative": "The food was disgusting and stale."},
    {"positive": "Our team won a great victory.", "negative": "Our team suffered a bad defeat."},
    {"positive": "This book is brilliant and exciting.", "negative": "This book is boring and awful."},
    {"positive": "She enjoyed the excellent concert.", "negative": "She endured the terrible concert."},
    {"positive": "A beautiful garden full of joy.", "negative": "An ugly garden full of misery."},
    {"positive": "Thankfully, the results are fantastic.", "negative": "Sadly, the results are dreadful."},
]


@pytest.fixture(scope="module")
def concept(server: Server) -> dict:
    """A concept that was created over HTTP."""
    response = server.post("/steering_concepts", {"examples": EXAMPLES}, timeout=TRAINING_SECONDS)
    assert response.status_code == 201, response.text
    return response.json()


Vectors = dict[int, torch.Tensor]
"""By decoder block: a vector [hidden_size]."""


@pytest.fixture(scope="module")
def units(concept: dict, server: Server) -> Vectors:
    """The exported unit direction of each steered block."""
    answer = server.get(f"/steering_concepts/{concept['id']}/vectors", timeout=300)
    assert answer.status_code == 200, answer.text
    tensors = load(answer.content)
    return {int(name.removeprefix("direction.")): row for name, row in tensors.items()}


@pytest.fixture(scope="module")
def vectors(
    concept: dict,
    units: Vectors,
    reference_model: PreTrainedModel,
    reference_tokenizer: PreTrainedTokenizerBase,
) -> Vectors:
    """What strength 1 adds, computed from the exported direction and plain transformers."""
    norms = {block: mean_norm(reference_model, reference_tokenizer, block) for block in units}
    return {block: unit * norms[block] * concept["report"]["dose"] for block, unit in units.items()}


def scaled(vectors: Vectors, strength: float, concept: dict) -> Vectors:
    """What a strength adds. Negative strengths have their own blocks and dose."""
    report = concept["report"]
    factor = strength if strength >= 0 else strength * report["down_dose"] / report["dose"]
    blocks = report["blocks" if strength >= 0 else "down_blocks"]
    return {block: factor * vectors[block] for block in blocks}


def content(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


def log_probabilities(entry: dict) -> dict[str, float]:
    """The log probabilities of the token and of the most likely ones."""
    return {top["token"]: top["logprob"] for top in [entry, *entry["top_logprobs"]]}


def training_prompt(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return prompt_ids(tokenizer, TRAINING_PROMPT)


def hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> dict[int, torch.Tensor]:
    """For each decoder block: its mean output over the text's tokens, recorded by `steering-vectors`."""
    prompt = training_prompt(tokenizer)
    ids = torch.tensor([prompt + tokenizer(text, add_special_tokens=False).input_ids])
    with torch.inference_mode(), record_activations(model) as recorded:
        model(ids, use_cache=False)
    return {block: output[0, len(prompt) :].mean(0) for block, [output] in recorded.items()}


def mean_norm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, block: int) -> float:
    """Mean norm of a decoder block's output on the neutral texts."""
    prompt = training_prompt(tokenizer)
    norms = []
    for text in NEUTRAL_TEXTS:
        ids = torch.tensor([prompt + tokenizer(text, add_special_tokens=False).input_ids])
        with torch.inference_mode(), record_activations(model, layer_nums=[block]) as recorded:
            model(ids, use_cache=False)
        norms.append(recorded[block][0][0, len(prompt) :].norm(dim=-1).mean())
    return float(torch.stack(norms).mean())


@contextmanager
def steered(model: PreTrainedModel, vectors: Vectors) -> Iterator[None]:
    """Plain transformers with hooks that add the vectors at every position but the first."""
    handles = [
        model.model.layers[block].register_forward_hook(adding(vector)) for block, vector in vectors.items()
    ]
    yield
    for handle in handles:
        handle.remove()


def adding(vector: torch.Tensor) -> Callable[..., torch.Tensor]:
    passed = 0

    def add(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        nonlocal passed
        positions = torch.arange(passed, passed + output.shape[1])
        passed += output.shape[1]
        return output + (positions > 0)[:, None] * vector

    return add


def test_the_shipped_concepts_are_listed(server: Server) -> None:
    listed = server.get("/steering_concepts").json()["data"]
    shipped = {entry["id"].removeprefix("_worker/"): entry for entry in listed if entry["shipped"]}
    assert shipped.keys() == SHIPPED
    assert all(entry["num_examples"] >= 24 for entry in shipped.values())


def test_the_direction_is_the_one_that_steering_vectors_computes(
    units: Vectors,
    reference_model: PreTrainedModel,
    reference_tokenizer: PreTrainedTokenizerBase,
) -> None:
    sides = [
        [hidden_states(reference_model, reference_tokenizer, pair[side]) for pair in EXAMPLES]
        for side in ("positive", "negative")
    ]
    for block, unit in units.items():
        positive, negative = (torch.stack([means[block] for means in side]) for side in sides)
        expected = mean_aggregator()(positive, negative)
        assert (unit - expected / expected.norm()).abs().max() <= 1e-4, block


def test_steered_answers_are_those_of_plain_transformers_with_a_hook(
    server: Server,
    concept: dict,
    vectors: Vectors,
    reference_model: PreTrainedModel,
    reference_tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = torch.tensor([prompt_ids(reference_tokenizer, PROMPT)])
    texts = set()
    report = concept["report"]
    for strength in (-report["max_down_strength"], 0.5, report["max_strength"]):
        with torch.inference_mode(), steered(reference_model, scaled(vectors, strength, concept)):
            output = reference_model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
            )
        expected = reference_tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        options = {"steering_concepts": [concept["id"]], "steering_strength": strength}
        assert content(server.chat(PROMPT, max_tokens=24, **options)) == expected
        texts.add(expected)
    assert len(texts) == 3, "the steering is too weak for this test"


def test_log_probabilities_are_those_of_the_steered_model(
    server: Server,
    concept: dict,
    vectors: Vectors,
    reference_model: PreTrainedModel,
    reference_tokenizer: PreTrainedTokenizerBase,
) -> None:
    ids = torch.tensor([prompt_ids(reference_tokenizer, PROMPT)])
    with torch.inference_mode(), steered(reference_model, vectors):
        expected = reference_model(ids).logits[0, -1].log_softmax(-1).topk(10).values.tolist()
    answer = server.chat(PROMPT, max_tokens=1, top_logprobs=10, steering_concepts=[concept["id"]])
    [entry] = answer["choices"][0]["logprobs"]["content"]
    assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx(expected, abs=1e-3)


def test_strength_zero_does_not_steer(server: Server, concept: dict) -> None:
    plain = server.chat(PROMPT, max_tokens=16, top_logprobs=3)
    zero = server.chat(
        PROMPT, max_tokens=16, top_logprobs=3, steering_concepts=[concept["id"]], steering_strength=0
    )
    assert zero["usage"] == plain["usage"]
    [unsteered], [reference] = zero["choices"], plain["choices"]
    entries, expected = (choice.pop("logprobs")["content"] for choice in (unsteered, reference))
    assert unsteered == reference
    assert [entry["token"] for entry in entries] == [entry["token"] for entry in expected]
    # The second prompt has a prefix cache hit, so its batch has another size and results differ slightly.
    for entry, other in zip(entries, expected, strict=True):
        assert log_probabilities(entry) == pytest.approx(log_probabilities(other), rel=0, abs=1e-4)


def test_each_of_several_concurrent_requests_has_its_own_steering(server: Server, concept: dict) -> None:
    ways = [{}] + [
        {"steering_concepts": [concept["id"]], "steering_strength": strength}
        for strength in (-2, -1, -0.5, 0, 0.5, 1, 2)
    ]
    alone = [server.chat(PROMPT, max_tokens=20, **way)["choices"] for way in ways]
    with ThreadPoolExecutor(24) as pool:
        together = [
            pool.submit(server.chat, PROMPT, max_tokens=20, n=1 + i % 2, **way)
            for i, way in enumerate(ways * 3)
        ]
        for i, task in enumerate(together):
            texts = {choice["message"]["content"] for choice in task.result()["choices"]}
            assert texts == {alone[i % len(ways)][0]["message"]["content"]}


def test_aleph_alphas_client_creates_a_concept(server: Server, concept: dict) -> None:
    client = Client(token=TOKEN, host=server.url, total_retries=0)
    pairs = [SteeringPairedExample(**pair) for pair in EXAMPLES]
    made = client.create_steering_concept(SteeringConceptCreationRequest(pairs))
    assert made.id == concept["id"]  # the same examples
    client.session.close()


def test_the_first_use_of_a_shipped_concept_trains_it(server: Server) -> None:
    up, down = (
        content(
            server.chat(
                PROMPT,
                max_tokens=32,
                steering_concepts=["sentiment"],
                steering_strength=strength,
                timeout=TRAINING_SECONDS,
            )
        )
        for strength in (1, -1)
    )
    assert up != down
    deadline = time.monotonic() + TRAINING_SECONDS
    while (shown := server.get("/steering_concepts/_worker/sentiment").json())["state"] != "ready":
        assert time.monotonic() < deadline, shown
        time.sleep(0.5)
    down, *_, up = shown["report"]["effects"]
    assert up["shift"] > 0.4, shown["report"]
    assert down["shift"] < -0.4, shown["report"]
    assert len(shown["report"]["samples"]) == 6


def test_the_report_recognises_shuffled_labels(quantized_server: Server) -> None:
    shuffled = [
        {"positive": pair["negative"], "negative": pair["positive"]} if i % 2 else pair
        for i, pair in enumerate(EXAMPLES)
    ]
    wanted = {"name": "shuffled", "examples": shuffled}
    response = quantized_server.post("/steering_concepts", wanted, TRAINING_SECONDS)
    assert response.status_code == 201
    report = response.json()["report"]
    assert report["works"] is False
    assert report["warnings"]
    assert quantized_server.delete("/steering_concepts/_worker/shuffled").status_code == 204


def test_concepts_survive_a_kill_and_a_restart(quantized_config: dict, tmp_path: Path) -> None:
    body = {"name": "survivor", "examples": EXAMPLES}
    other = {
        "name": "unborn",
        "examples": [*EXAMPLES, {"positive": "Yes, gladly!", "negative": "No, never!"}],
    }
    with serving(quantized_config, tmp_path) as first, ThreadPoolExecutor(1) as pool:
        assert first.post("/steering_concepts", body, TRAINING_SECONDS).status_code == 201
        unfinished = pool.submit(first.post, "/steering_concepts", other)
        while first.get("/steering_concepts/unborn").status_code == 404:
            time.sleep(0.05)
        first.process.send_signal(signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            unfinished.result()
    with serving(quantized_config, tmp_path) as second:
        listed = second.get("/steering_concepts").json()
        assert [entry["id"] for entry in listed["data"] if not entry["shipped"]] == ["_worker/survivor"]
        assert listed["problems"] == []
        assert second.post("/steering_concepts", body, TRAINING_SECONDS).status_code == 201
        assert second.chat(PROMPT, max_tokens=4, steering_concepts=["survivor"])["choices"]
