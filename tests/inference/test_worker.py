"""Tests the worker from the gateway's side, as a process behind a socket."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
import zmq

from inference.backends.cpu import build
from inference.building import build_engine
from inference.interface.concepts import (
    ExportVectors,
    ForgetConcept,
    PrioritizeTraining,
    ReadingsResult,
    ReadTexts,
    TrainConcept,
    TrainingState,
    TrainingUpdate,
    VectorsResult,
)
from inference.interface.config import ConfigError, EngineConfig
from inference.interface.protocol import (
    Command,
    ModelInfo,
    Report,
    Started,
    StartFailed,
    StepReport,
    decode_report,
    encode,
)
from inference.interface.requests import (
    Abort,
    GenerationRequest,
    RefusalCode,
    SamplingParams,
    SteeringSpec,
    SubmitResult,
)
from inference.runner.devices import choose_device
from inference.steering.direction_files import DirectionFiles
from tests.inference.conftest import Driver, build_driver, generate, make_model, request
from tests.inference.steering.conftest import make_training

TIMEOUT_MILLISECONDS = 120_000


class Process:
    """A worker process and the gateway's end of its socket."""

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        module: str = "inference.worker",
        stderr: int | None = None,
    ) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.linger = 0
        self._socket.sndtimeo = TIMEOUT_MILLISECONDS
        endpoint = f"ipc://{directory}/worker.sock"
        self._socket.bind(endpoint)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._socket.send(msgspec.json.encode(config))

    def send(self, command: Command) -> None:
        self._socket.send(encode(command))

    def receive(self) -> Report:
        assert self._socket.poll(TIMEOUT_MILLISECONDS), "the worker sends no report"
        return decode_report(self._socket.recv())

    def receive_steps(self, num_events: int) -> list[StepReport]:
        """The next reports, until they have `num_events` tokens."""
        reports: list[StepReport] = []
        while sum(len(report.events) for report in reports) < num_events:
            report = self.receive()
            assert isinstance(report, StepReport)
            reports.append(report)
        return reports

    def receive_training(self, concept: str) -> list[TrainingUpdate]:
        """The updates about one concept, until its training ends."""
        updates: list[TrainingUpdate] = []
        while not updates or updates[-1].state not in (TrainingState.READY, TrainingState.FAILED):
            report = self.receive()
            assert isinstance(report, StepReport)
            updates += [update for update in report.training if update.concept == concept]
        return updates

    def receive_results(self, count: int) -> list[VectorsResult | ReadingsResult]:
        """The next answers to ExportVectors and ReadTexts."""
        results: list[VectorsResult | ReadingsResult] = []
        while len(results) < count:
            report = self.receive()
            assert isinstance(report, StepReport)
            results += [*report.vectors, *report.readings]
        return results

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.stdin.close()
        self.stdout.close()
        self._socket.close()
        self._context.term()


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    make_model("llama").save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def cache_with_kernels(directory: Path) -> Path:
    """A cache with nothing but the compiled kernels, since compiling takes long."""
    shared_cache = Path(EngineConfig().cache_directory).expanduser()
    build.load(shared_cache)
    cache = directory / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(shared_cache / "kernels")
    return cache


@pytest.fixture
def worker(tmp_path: Path, model_directory: Path) -> Iterator[Process]:
    config = EngineConfig(
        source=str(model_directory),
        cache_directory=str(cache_with_kernels(tmp_path)),
        kv_cache_gib=0.001,
        max_running=32,  # fewer steps to capture on CUDA
        threads=1,
    )
    process = Process(tmp_path, config)
    yield process
    process.close()


def test_it_serves_until_the_gateway_exits(worker: Process, model_directory: Path) -> None:
    started = worker.receive()
    assert isinstance(started, Started)
    assert started.model.directory == str(model_directory)
    assert (started.model.vocab_size, started.model.context_length) == (199, 512)
    assert (started.model.num_layers, started.model.hidden_size) == (3, 32)
    named = {"generation_config.json": (1,), "config.json": (1,)}
    assert (started.model.end_token_ids, started.model.dtype) == (named, "float32")

    greedy = SamplingParams(temperature=0.0)
    worker.send(GenerationRequest("a", [5, 6, 7], 8, sampling=greedy))
    worker.send(GenerationRequest("b", [9] * 20, 8, sampling=greedy, n=2))
    worker.send(GenerationRequest("c", [9], 8, steering=SteeringSpec({"_worker/x": 1.0})))
    worker.send(GenerationRequest("d", [9] * 500, 13))
    reports = worker.receive_steps(24)
    submit_results = {a.request_id: a for report in reports for a in report.submit_results}
    assert submit_results == {
        "a": SubmitResult("a"),
        "b": SubmitResult("b"),
        "c": SubmitResult("c", RefusalCode.UNKNOWN_STEERING_CONCEPT, "_worker/x"),
        "d": SubmitResult("d", RefusalCode.CONTEXT_LENGTH_EXCEEDED),
    }
    events = [event for report in reports for event in report.events]
    model = make_model("llama")
    for request_id, index, prompt in [("a", 0, [5, 6, 7]), ("b", 0, [9] * 20), ("b", 1, [9] * 20)]:
        its_events = [event for event in events if (event.request_id, event.index) == (request_id, index)]
        assert [event.token_id for event in its_events] == generate(model, prompt, 8)
        assert [event.finish_reason for event in its_events] == [None] * 7 + ["length"]

    worker.stdin.close()
    assert worker.process.wait(timeout=10) == 0


def test_an_abort_ends_a_generation_and_nothing_else(worker: Process) -> None:
    assert isinstance(worker.receive(), Started)
    worker.send(GenerationRequest("long", [5], 500))
    worker.send(GenerationRequest("other", [6], 40))
    worker.receive_steps(4)
    worker.send(Abort("long"))
    worker.send(Abort("unknown"))
    events = [event for report in worker.receive_steps(36) for event in report.events]
    while not any(event.finish_reason for event in events):
        events += [event for report in worker.receive_steps(1) for event in report.events]
    assert events[-1].request_id == "other"
    assert sum(event.request_id == "long" for event in events) < 100
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=10) == 0


def test_it_trains_concepts_steers_with_them_and_forgets_them(worker: Process, tmp_path: Path) -> None:
    assert isinstance(worker.receive(), Started)
    positive, negative = ([[start + i, start + i + 1] for i in range(8)] for start in (10, 40))
    prompts = [[2, 7]] * 8
    training = TrainConcept("kind", [2, 7], prompts, positive, negative, [[90, 91, 92], [93, 94]])
    worker.send(msgspec.structs.replace(training, concept="later", background=True))
    worker.send(training)
    updates = worker.receive_training("kind")
    assert updates[0].state is TrainingState.TRAINING
    assert [update.progress for update in updates] == sorted(update.progress for update in updates)
    assert updates[-1].report is not None

    steering = SteeringSpec({"kind": -1.5})
    steered = msgspec.structs.replace(request("a", [5, 6, 7], 12), steering=steering, readings=("kind",))
    [directory] = (tmp_path / "cache" / "steering").glob("*/*")
    driver = build_driver(make_model("llama"), DirectionFiles(directory))
    driver.engine.trainer.add(training)
    assert driver.step().training == [updates[-1]]
    expected = driver.run(steered)["a", 0]
    assert expected.token_ids != generate(make_model("llama"), [5, 6, 7], 12)
    worker.send(steered)
    events = [event for report in worker.receive_steps(12) for event in report.events]
    assert [event.token_id for event in events] == expected.token_ids
    readings = [number for event in events for number in event.readings or ()]
    own_readings = [event.readings[0] for event in expected.events if event.readings]
    assert readings == pytest.approx(own_readings, abs=1e-4)
    assert len(readings) == 12

    reading = ReadTexts("read", "kind", prompts[:2], positive[:2])
    worker.send(ReadTexts("left", "kind", prompts * 9, positive * 9))
    worker.send(Abort("left"))
    worker.send(ExportVectors("export", "kind"))
    worker.send(reading)
    worker.send(ExportVectors("none", "other"))
    results = {result.request_id: result for result in worker.receive_results(3)}
    assert results["export"] == driver.export(ExportVectors("export", "kind"))
    assert results["none"] == VectorsResult("none")
    read, own = results["read"], driver.read(reading)
    assert isinstance(read, ReadingsResult)
    assert read.readings == [pytest.approx(numbers, abs=1e-4) for numbers in own.readings or ()]
    assert len(read.readings) == 2

    worker.send(PrioritizeTraining("later"))
    worker.send(ForgetConcept("kind"))
    worker.send(steered)
    report = worker.receive()
    while not (isinstance(report, StepReport) and report.submit_results):
        report = worker.receive()
    assert report.submit_results == [SubmitResult("a", RefusalCode.UNKNOWN_STEERING_CONCEPT, "kind")]
    worker.send(training)
    worker.send(msgspec.structs.replace(training, concept="later"))
    assert [update.state for update in worker.receive_training("kind")][-1] is TrainingState.READY
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(timeout=10) == 0


def test_each_dtype_has_its_own_directions_of_the_same_weights(tmp_path: Path) -> None:
    make_model("llama").bfloat16().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    cache = cache_with_kernels(tmp_path)

    def start(dtype: str) -> tuple[Driver, ModelInfo]:
        config = EngineConfig(
            source=str(tmp_path / "model"),
            cache_directory=str(cache),
            device="cpu",
            dtype=dtype,
            kv_cache_gib=0.001,
            max_running=8,
        )
        engine, info = build_engine(config)
        return Driver(engine), info

    wide, wide_info = start("float32")
    assert wide.train(make_training("kind")).state is TrainingState.READY
    narrow, narrow_info = start("bfloat16")
    assert (wide_info.dtype, narrow_info.dtype) == ("float32", "bfloat16")
    assert wide_info.weights_digest == narrow_info.weights_digest
    assert not narrow.engine.trainer.knows("kind")
    assert start("float32")[0].engine.trainer.knows("kind")


@pytest.mark.parametrize(
    ("source", "config", "message"),
    [
        ("/no/such/model", {}, "model directory /no/such/model does not exist"),
        ("", {"device": "cuda"}, "engine.device is cuda, but torch finds no CUDA device"),
    ],
)
def test_a_failed_start_is_reported_in_one_line(
    tmp_path: Path, model_directory: Path, source: str, config: dict[str, str], message: str
) -> None:
    if config and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    process = Process(tmp_path, EngineConfig(source=source or str(model_directory), **config))
    assert process.receive() == StartFailed(message)
    assert process.process.wait(timeout=10) == 1
    process.close()


@pytest.mark.parametrize(
    ("config", "device"),
    [
        ({}, "cuda:0"),
        ({"device": "cuda", "replica": 3}, "cuda:3"),
        ({"replica": 5}, "cuda:1"),
        ({"replica": 1, "device_index": 2}, "cuda:3"),
        ({"device": "cpu", "replica": 1}, "cpu"),
    ],
)
def test_workers_take_the_devices_in_turn(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object], device: str
) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert choose_device(EngineConfig(**config, kv_cache_share=0.1, device_processes=8)) == torch.device(
        device
    )
    assert taken == ([] if device == "cpu" else [torch.device(device)])


def test_groups_take_as_many_devices_as_they_have_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    config = EngineConfig(tensor_parallel=2, replicas=2, device_processes=4)
    second = msgspec.structs.replace(config, replica=1)
    devices = [choose_device(one, number).index for one in (config, second) for number in range(2)]
    assert devices == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"engine.tensor_parallel is 8, but this host has 4 GPUs"):
        choose_device(EngineConfig(tensor_parallel=8))
    with pytest.raises(ConfigError, match=r"6 processes for GPUs, but this host has 4 GPUs"):
        choose_device(EngineConfig(tensor_parallel=2, replicas=3, device_processes=6))
    assert choose_device(EngineConfig(tensor_parallel=8, device="cpu")) == torch.device("cpu")


@pytest.mark.parametrize("replica", [0, 1])
def test_workers_share_a_gpu_only_with_a_configured_kv_cache(
    monkeypatch: pytest.MonkeyPatch, replica: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with pytest.raises(
        ConfigError, match=r"2 processes for GPUs, but this host has 1 GPU: set engine.kv_cache_gib or"
    ):
        choose_device(EngineConfig(replicas=2, replica=replica, device_processes=2))
    for size in ({"kv_cache_gib": 1.0}, {"kv_cache_share": 0.4}):
        config = EngineConfig(replicas=2, replica=replica, device_processes=2, **size)
        assert choose_device(config) == torch.device("cuda:0")


def test_it_reports_the_engines_stats(worker: Process) -> None:
    started = worker.receive()
    assert isinstance(started, Started)
    worker.send(request("a", [5] * 40, 30))
    reports = worker.receive_steps(30)
    while not (stats := [report.stats for report in reports if report.stats]) or stats[-1].running:
        report = worker.receive()
        assert isinstance(report, StepReport)
        reports.append(report)
    assert stats[0].running == 1
    assert stats[0].blocks_in_use > 0
    assert stats[-1].blocks_in_use == 0
    assert stats[-1].blocks == stats[0].blocks > 0
    assert stats[-1].prefix_cache_queries == 40
    assert len(stats) < len(reports)
