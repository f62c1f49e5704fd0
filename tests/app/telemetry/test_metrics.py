"""The reported metrics and their names, and that the dashboard and the docs use the same names."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from app.schemas.completions import FinishReason, Usage
from app.telemetry import observation
from app.telemetry.metrics import Metrics
from app.telemetry.observation import Observation, WorkerState
from inference.interface.protocol import EngineStats
from inference.interface.requests import GenerationRequest, SteeringSpec

ROOT = Path(__file__).parents[3]


def all_samples(metrics: Metrics) -> list[Sample]:
    families = text_string_to_metric_families(metrics.render().decode())
    return [sample for family in families for sample in family.samples]


def samples(metrics: Metrics, **labels: str) -> dict[str, float]:
    """The samples that have exactly these labels."""
    return {sample.name: sample.value for sample in all_samples(metrics) if sample.labels == labels}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(observation.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def metrics() -> Metrics:
    """Those of a server with one model, tiny."""
    found = Metrics()
    found.describe("1", "tiny", "float32")
    return found


def seen(choices: int = 1, concepts: int = 0) -> Observation:
    steering = SteeringSpec(dict.fromkeys(map(str, range(concepts)), 1.0)) if concepts else None
    found = Observation("r")
    found.model = "tiny"
    found.generation_request = GenerationRequest("r", [0] * 10, 100, choices, steering=steering)
    return found


def end(metrics: Metrics, found: Observation, tokens: int, *reasons: FinishReason | None) -> dict[str, float]:
    found.usage = Usage(10, tokens, 10 + tokens)
    found.finish_reasons = list(reasons)
    metrics.count_generation(found)
    return samples(metrics, model="tiny")


def test_a_generation(clock: list[float], metrics: Metrics) -> None:
    steered = seen(choices=2, concepts=3)
    clock[0] = 102.0
    steered.mark_first_token(queue_seconds=0.5)
    metrics.count_first_token(steered)
    at_first_token = samples(metrics, model="tiny")
    assert at_first_token["tiller_time_to_first_token_seconds_sum"] == 2.0, "reported before the end"
    assert at_first_token["tiller_queue_time_seconds_sum"] == 0.5
    clock[0] = 106.0
    found = end(metrics, steered, 42, "stop", "length")
    assert found["tiller_time_per_output_token_seconds_sum"] == pytest.approx(0.2)  # 4 s, 20 intervals each
    assert found["tiller_generation_seconds_sum"] == 6.0
    assert samples(metrics, concepts="3", model="tiny")["tiller_steered_total"] == 1
    assert found["tiller_aborts_total"] == 0
    assert found["tiller_prompt_tokens_total"] == 10
    assert found["tiller_completion_tokens_total"] == 42


def test_a_generation_whose_client_disconnected(clock: list[float], metrics: Metrics) -> None:
    found = end(metrics, seen(choices=2), 0, "stop", None)
    assert found["tiller_time_per_output_token_seconds_count"] == 0
    assert found["tiller_generation_seconds_count"] == 0
    assert found["tiller_aborts_total"] == 1
    assert not any(sample.name == "tiller_steered_total" for sample in all_samples(metrics))


def test_a_single_token_has_no_inter_token_latency(clock: list[float], metrics: Metrics) -> None:
    single = seen()
    single.mark_first_token(queue_seconds=None)
    metrics.count_first_token(single)
    found = end(metrics, single, 1, "length")
    assert found["tiller_time_to_first_token_seconds_count"] == 1
    assert found["tiller_queue_time_seconds_count"] == 0
    assert found["tiller_time_per_output_token_seconds_count"] == 0


def test_each_render_reads_the_state_of_each_worker() -> None:
    metrics, workers = Metrics(), [WorkerState(up=True), WorkerState(up=False, restarts=2)]
    metrics.watch(lambda: {"tiny": workers})
    assert samples(metrics, worker="0", model="tiny")["tiller_kv_cache_usage_ratio"] == 0
    stats = EngineStats(3, 5, 8, 6, preemptions=7, prefix_cache_queries=100, prefix_cache_hits=64)
    workers[0] = WorkerState(up=True, restarts=1, stats=stats)
    found = samples(metrics, worker="0", model="tiny")
    assert found["tiller_worker_up"] == 1
    assert found["tiller_worker_restarts_total"] == 1
    assert found["tiller_sequences_running"] == 3
    assert found["tiller_sequences_waiting"] == 5
    assert found["tiller_kv_cache_usage_ratio"] == 0.75
    assert found["tiller_preemptions_total"] == 7
    assert found["tiller_prefix_cache_queries_total"] == 100
    assert found["tiller_prefix_cache_hits_total"] == 64
    other = samples(metrics, worker="1", model="tiny")
    assert (other["tiller_worker_up"], other["tiller_worker_restarts_total"]) == (0, 2)


def test_intervals_between_tokens_are_a_histogram() -> None:
    metrics, worker = Metrics(), WorkerState(up=True)
    metrics.watch(lambda: {"tiny": [worker]})
    for seconds, count in (0.025, 3), (0.02, 1), (99.0, 2), (0.03, 1):
        worker.intervals.add(seconds, count)
    name = "tiller_inter_token_latency_seconds"
    buckets = {
        sample.labels["le"]: sample.value
        for sample in all_samples(metrics)
        if sample.name == name + "_bucket"
    }
    assert (buckets["0.015"], buckets["0.025"], buckets["0.05"], buckets["10.0"]) == (0, 4, 5, 5)
    assert buckets["+Inf"] == samples(metrics, worker="0", model="tiny")[name + "_count"] == 7
    assert samples(metrics, worker="0", model="tiny")[name + "_sum"] == pytest.approx(
        0.075 + 0.02 + 198 + 0.03
    )


def test_the_server_info_and_the_process_are_reported() -> None:
    metrics = Metrics()
    for model, dtype in (("tiny", "float32"), ("large", "bfloat16")):
        metrics.describe("1", model, dtype)
        assert samples(metrics, version="1", model=model, dtype=dtype) == {"tiller_info": 1}
        assert samples(metrics, model=model)["tiller_aborts_total"] == 0
    found = samples(metrics)
    assert found["process_resident_memory_bytes"] > 2**20
    assert found["process_open_fds"] > 0


def test_worker_processes_are_reported_while_they_exist() -> None:
    metrics = Metrics()
    gone = subprocess.Popen(["true"])
    gone.wait()
    pids = [os.getpid(), None, os.getppid(), gone.pid]
    metrics.watch(lambda: {"tiny": [WorkerState(up=True, pid=pid) for pid in pids]})
    found = {
        sample.labels["worker"]: sample.value
        for sample in all_samples(metrics)
        if sample.name == "tiller_worker_process_resident_memory_bytes"
    }
    assert found.keys() == {"0", "2"}
    assert found["0"] == pytest.approx(samples(metrics)["process_resident_memory_bytes"], rel=0.01)


def test_docs_and_dashboard_name_all_metrics() -> None:
    metrics = Metrics()
    metrics.watch(lambda: {"tiny": [WorkerState(up=True, pid=os.getpid())]})
    names = set(re.findall(r"^# TYPE (\w+)", metrics.render().decode(), re.MULTILINE))
    reported = {name for name in names if not name.endswith("_created")}
    ours = {name for name in reported if re.match(r"tiller_(?!worker_process_)", name)}
    page = (ROOT / "docs/operations.md").read_text()
    assert set(re.findall(r"`(tiller_\w+?)(?:\{[\w,]+\})?`", page)) == ours
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/tiller.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    names_shown = re.findall(r"\b(?:tiller|process)_\w+", expressions)
    shown = {re.sub(r"_bucket$", "", name) for name in names_shown}
    assert shown <= reported
    assert ours - shown == {"tiller_running"}, "the workers' own numbers are shown instead"
