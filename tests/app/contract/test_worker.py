"""A worker process's refusals, failures and death, as a client of the gateway sees them.

The worker here is a script that speaks the protocol. A request's `max_tokens`, or a concept's number of
examples, tells it what to do.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.concepts.concept import digest_of
from app.main import create_app
from app.settings import Settings
from app.workers.supervisor import supervise
from app.workers.timing import Timing
from inference.interface.config import EngineConfig
from tests.app.contract.conftest import client_of
from tests.app.contract.support import (
    assert_error,
    assert_error_payload,
    chat,
    event_payloads,
    pairs,
    post,
    store_concepts,
)

WORKER = """
import json, sys
sys.path.insert(0, {root!r})
import zmq
from inference.interface.concepts import *
from inference.interface.protocol import *
from inference.interface.requests import *

socket = zmq.Context().socket(zmq.PAIR)
socket.connect(sys.argv[-1])
directory = json.loads(socket.recv())["source"]
socket.send(encode(Started(ModelInfo(directory, 256, 300, {{"config.json": (2,)}}, "00", "float32"))))

def report(**parts):
    socket.send(encode(StepReport(**parts)))

while True:
    request = decode_command(socket.recv())
    if isinstance(request, TrainConcept):
        if len(request.positive) == {die}:
            sys.exit(1)
        failed = len(request.positive) == {fail}
        state = TrainingState.FAILED if failed else TrainingState.READY
        report(training=[TrainingUpdate(request.concept, state, detail="too much alike" if failed else "")])
        continue
    if not isinstance(request, GenerationRequest):
        continue
    name, wish = request.request_id, request.max_tokens
    if wish == {clip}:
        report(submit_results=[SubmitResult(name, clipped=dict.fromkeys(request.steering.strengths, 0.75))])
        readings = [number + 0.5 for number in range(len(request.readings))]
        report(events=[TokenEvent(name, 0, 70, FinishReason.LENGTH, None, readings)])
    elif request.steering:
        concept = next(iter(request.steering.strengths))
        report(submit_results=[SubmitResult(name, RefusalCode.UNKNOWN_STEERING_CONCEPT, concept)])
    elif wish in {refusals!r}:
        code = RefusalCode({refusals!r}[wish])
        detail = "CUDA error in /srv/worker.py" if code == RefusalCode.INTERNAL else ""
        report(submit_results=[SubmitResult(name, code, detail)])
    else:
        report(submit_results=[SubmitResult(name)])
        report(events=[TokenEvent(name, 0, 70), TokenEvent(name, 0, 71)])
        if wish == {fail}:
            report(failures=[Failure(name, "CUDA error in /srv/worker.py")])
        elif wish == {die}:
            sys.exit(1)
        elif wish != {hang}:
            report(events=[TokenEvent(name, 0, 2, FinishReason.STOP)])
"""
QUEUE_FULL, TOO_LONG, INTERNAL, FAIL, DIE, HANG, CLIP = range(101, 108)
REFUSALS = {QUEUE_FULL: "QUEUE_FULL", TOO_LONG: "CONTEXT_LENGTH_EXCEEDED", INTERNAL: "INTERNAL"}
STATUS = {"QUEUE_FULL": 503, "CONTEXT_LENGTH_EXCEEDED": 400, "INTERNAL": 500}

streamed_or_not = pytest.mark.parametrize("streamed", [True, False])


@pytest.fixture
async def client(
    tmp_path: Path, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with its own worker process."""
    root = str(Path(__file__).parents[3])
    source = WORKER.format(root=root, refusals=REFUSALS, fail=FAIL, die=DIE, hang=HANG, clip=CLIP)
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!{sys.executable}\n{source}")
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    config = EngineConfig(source=str(model_directory), cache_directory=str(tmp_path))
    async with supervise(config, Timing(longest_delay=0.05)) as engine:
        data = tmp_path / "data"
        store_concepts(data, {"kind": pairs("kind")})
        app = create_app(Settings(model={"name": "tiny"}, data_directory=str(data)), {"tiny": engine})
        async with client_of(app) as client:
            yield client


async def test_a_worker_answers_several_requests(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        answer = (await chat(client, max_tokens=5)).json()
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] == 2


async def test_reduced_strengths_and_readings_reach_the_client(client: httpx.AsyncClient) -> None:
    fields = {"steering_concepts": ["kind"], "steering_readings": ["_worker/kind"], "max_tokens": CLIP}
    answer = (await chat(client, **fields)).json()
    assert answer["steering"] == {"applied": {"_worker/kind": 0.75}}
    (entry,) = answer["choices"][0]["steering_readings"]["content"]
    assert entry["readings"] == {"_worker/kind": 0.5}


@streamed_or_not
async def test_each_refusal_has_its_status(client: httpx.AsyncClient, streamed: bool) -> None:
    for wish, code in REFUSALS.items():
        response = await chat(client, max_tokens=wish, stream=streamed)
        assert_error(response, STATUS[code], code)
        assert "CUDA" not in response.text
        if code == "QUEUE_FULL":
            assert int(response.headers["retry-after"]) >= 1


@streamed_or_not
@pytest.mark.parametrize("given", ["_worker/nobody-1", "nobody-1"])
async def test_an_unknown_concept_is_reported_by_its_id(
    client: httpx.AsyncClient, given: str, streamed: bool
) -> None:
    response = await chat(client, steering_concepts=[given], stream=streamed)
    assert_error(response, 404, "UNKNOWN_STEERING_CONCEPT", "_worker/nobody-1", param="steering_concepts")


@streamed_or_not
async def test_a_concept_that_the_worker_has_lost_is_unavailable(
    client: httpx.AsyncClient, streamed: bool
) -> None:
    response = await chat(client, steering_concepts=["kind"], stream=streamed)
    assert_error(response, 503, "UNAVAILABLE")
    assert digest_of(pairs("kind")) not in response.text


def examples(count: int) -> dict[str, Any]:
    return {"examples": [{"positive": "a", "negative": f"b{number}"} for number in range(count)]}


async def test_a_concept_is_created(client: httpx.AsyncClient) -> None:
    created = await post(client, "/steering_concepts", examples(1))
    assert created.status_code == 201
    assert created.json()["state"] == "ready"


async def test_a_concept_that_cannot_be_trained_is_refused(client: httpx.AsyncClient) -> None:
    refused = await post(client, "/steering_concepts", examples(FAIL))
    assert_error(refused, 400, "INVALID_REQUEST", "too much alike")


async def test_a_creation_ends_when_the_worker_dies(client: httpx.AsyncClient) -> None:
    assert_error(await post(client, "/steering_concepts", examples(DIE)), 503, "UNAVAILABLE")
    assert_error(await post(client, "/steering_concepts", examples(1)), 503, "UNAVAILABLE")
    assert (await client.delete("/steering_concepts/kind")).status_code == 204


async def test_a_concept_whose_training_always_kills_the_worker_is_given_up(
    client: httpx.AsyncClient,
) -> None:
    assert_error(await post(client, "/steering_concepts", examples(DIE)), 503, "UNAVAILABLE")
    async with asyncio.timeout(20):
        while len((await client.get("/steering_concepts")).json()["data"]) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        while (await client.get("/health")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await post(client, "/steering_concepts", examples(1))).status_code == 201


async def test_the_worker_serves_on_after_a_failed_request(client: httpx.AsyncClient) -> None:
    assert_error(await chat(client, max_tokens=FAIL), 500, "INTERNAL")
    response = await chat(client, max_tokens=FAIL, stream=True)
    last = event_payloads(response.content)[-1]
    assert_error_payload(last.encode(), "INTERNAL")
    assert "CUDA" not in response.text
    assert (await chat(client, max_tokens=5)).status_code == 200


@streamed_or_not
async def test_the_workers_death_ends_running_requests_and_refuses_new_ones(
    client: httpx.AsyncClient, streamed: bool
) -> None:
    response = await chat(client, max_tokens=DIE, stream=streamed)
    if streamed:
        assert response.status_code == 200
        assert_error_payload(event_payloads(response.content)[-1].encode(), "UNAVAILABLE")
    else:
        assert_error(response, 503, "UNAVAILABLE")
    assert (await client.get("/health")).status_code == 503
    later = await chat(client, stream=streamed)
    assert_error(later, 503, "UNAVAILABLE")
    assert int(later.headers["retry-after"]) >= 1
