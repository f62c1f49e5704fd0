"""What is reported, under which names, and that the dashboard and the docs know no others."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import metrics as subject
from app.metrics import Metrics, Timing
from app.schemas.completions import Usage
from inference.protocol import EngineStats

DOCS = Path(__file__).parents[2] / "docs"


def samples(metrics: Metrics) -> dict[str, float]:
    """Those without labels."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        sample.name: sample.value for family in families for sample in family.samples if not sample.labels
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(subject.time, "perf_counter", lambda: now[0])
    return now


def test_a_generation(clock: list[float]) -> None:
    metrics, timing = Metrics(), Timing()
    clock[0] = 102.0
    timing.token()
    clock[0] = 106.0
    timing.token()
    metrics.count_generation(Usage(10, 42, 52), timing, choices=2, steered=True, ended=True)
    found = samples(metrics)
    assert found["tiller_time_to_first_token_seconds_sum"] == 2.0
    assert found["tiller_time_per_output_token_seconds_sum"] == pytest.approx(0.2)  # 4 s, 20 intervals each
    assert found["tiller_generation_seconds_sum"] == 6.0
    assert found["tiller_steered_total"] == 1
    assert found["tiller_aborts_total"] == 0
    assert found["tiller_prompt_tokens_total"] == 10
    assert found["tiller_completion_tokens_total"] == 42


def test_a_generation_that_brought_nothing(clock: list[float]) -> None:
    metrics = Metrics()
    metrics.count_generation(Usage(10, 0, 10), Timing(), choices=1, steered=False, ended=False)
    found = samples(metrics)
    assert found["tiller_time_to_first_token_seconds_count"] == 0
    assert found["tiller_time_per_output_token_seconds_count"] == 0
    assert found["tiller_generation_seconds_count"] == 0
    assert found["tiller_aborts_total"] == 1


def test_a_single_token_has_no_time_between_tokens(clock: list[float]) -> None:
    metrics, timing = Metrics(), Timing()
    timing.token()
    metrics.count_generation(Usage(10, 1, 11), timing, choices=1, steered=False, ended=True)
    assert samples(metrics)["tiller_time_to_first_token_seconds_count"] == 1
    assert samples(metrics)["tiller_time_per_output_token_seconds_count"] == 0


def test_the_engine_is_asked_each_time() -> None:
    metrics, stats = Metrics(), [EngineStats()]
    metrics.watch(lambda: stats[0])
    assert samples(metrics)["tiller_kv_cache_usage_ratio"] == 0
    stats[0] = EngineStats(
        running=3,
        waiting=5,
        blocks=8,
        blocks_in_use=6,
        preemptions=7,
        looked_up_tokens=100,
        found_tokens=64,
    )
    found = samples(metrics)
    assert found["tiller_sequences_running"] == 3
    assert found["tiller_sequences_waiting"] == 5
    assert found["tiller_kv_cache_usage_ratio"] == 0.75
    assert found["tiller_preemptions_total"] == 7
    assert found["tiller_prefix_cache_queries_total"] == 100
    assert found["tiller_prefix_cache_hits_total"] == 64


def test_docs_and_dashboard_know_what_there_is() -> None:
    metrics = Metrics()
    metrics.watch(EngineStats)
    metrics.count_request("/chat/completions", 200)
    names = set(re.findall(r"^# TYPE (tiller_\w+)", metrics.render().decode(), re.MULTILINE))
    reported = {name for name in names if not name.endswith("_created")}
    page = (DOCS / "operations.md").read_text()
    documented = set(re.findall(r"`(tiller_\w+?)(?:\{[\w,]+\})?`", page))
    assert documented == reported
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    shown = {re.sub(r"_bucket$", "", name) for name in re.findall(r"tiller_\w+", expressions)}
    assert shown <= reported
    assert len(shown) > 10
