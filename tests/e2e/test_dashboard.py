"""The dashboard's queries name metrics and labels that a real server reports."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Server

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "tiller.json"
QUERIES = [
    pytest.param(target, id=f"{panel['title']}: {target['legendFormat']}")
    for panel in json.loads(DASHBOARD.read_text())["panels"]
    for target in panel["targets"]
]
FROM_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus adds to each metric."""

Reported = dict[str, set[str]]
"""The labels of each metric."""


@pytest.fixture(scope="module")
def reported(tiny_server: Server) -> Reported:
    """What a server reports that has trained a concept and answered requests."""
    examples = [
        {"positive": f"A good {thing}.", "negative": f"A bad {thing}."} for thing in ("day", "dog", "meal")
    ]
    created = tiny_server.post("/steering_concepts", {"name": "good", "examples": examples})
    assert created.status_code == 201, created.text
    tiny_server.chat("Hello", max_tokens=4, steering_concepts=["_worker/good"])
    return read_metrics(tiny_server)


def read_metrics(server: Server) -> Reported:
    found: Reported = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set(FROM_PROMETHEUS)).update(sample.labels)
    return found


def result_labels(expression: Any, reported: Reported) -> set[str]:
    """The labels of a query's result. Raises KeyError if a metric or a label is not reported."""
    match expression:
        case promql.VectorSelector():
            labels = reported[expression.name]
            return require({matcher.name for matcher in expression.matchers.matchers}, labels)
        case promql.MatrixSelector():
            return result_labels(expression.vector_selector, reported)
        case promql.Call():
            labels = set.union(*(result_labels(argument, reported) for argument in expression.args))
            is_quantile = expression.func.name == "histogram_quantile"
            return require({"le"}, labels) - {"le"} if is_quantile else labels
        case promql.AggregateExpr():
            labels = result_labels(expression.expr, reported)
            kept = set(expression.modifier.labels) if expression.modifier else set()
            require(kept, labels)
            return kept
        case promql.BinaryExpr():
            left, right = (result_labels(side, reported) for side in (expression.lhs, expression.rhs))
            matching = expression.modifier and expression.modifier.matching
            return require(set(matching.labels) if matching else set(), left & right) and left
        case promql.ParenExpr():
            return result_labels(expression.expr, reported)
        case promql.NumberLiteral():
            return set()
    raise NotImplementedError(type(expression))


def require(named: set[str], labels: set[str]) -> set[str]:
    """Returns `labels`, which must have the named ones."""
    if missing := named - labels:
        raise KeyError(*missing)
    return labels


def parse(query: str) -> promql.Expr:
    return promql.parse(query.replace("$__rate_interval", "1m"))


@pytest.mark.parametrize("target", QUERIES)
def test_a_query_names_what_the_server_reports(target: dict[str, str], reported: Reported) -> None:
    labels = result_labels(parse(target["expr"]), reported)
    assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels


@pytest.mark.parametrize(
    "query",
    [
        "sum(rate(tiller_answers_total[1m]))",
        "sum by (state) (tiller_worker_up)",
        'tiller_worker_up{state="idle"}',
        "histogram_quantile(0.5, sum(rate(tiller_queue_time_seconds_bucket[1m])))",
        "tiller_worker_up and on (route) tiller_info",
    ],
)
def test_a_query_for_something_else_is_found(query: str, reported: Reported) -> None:
    with pytest.raises(KeyError):
        result_labels(parse(query), reported)
