"""The dashboard and the alert rules of examples/monitoring ask for what gateways really expose, in
queries that Prometheus understands and a form that Grafana does."""

import json
import re
from pathlib import Path

import promql_parser
import pytest
from grafana_foundation_sdk.models.dashboard import Dashboard

from isochrone.gateway.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "examples" / "monitoring"
KNOWN = {metric.name: metric for metric in METRICS}
TARGET = {"instance"}  # a label that Prometheus gives each target
NAME = re.compile(r"\b((?:isochrone_gateway|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby \(([^)]*)\)")


def alerts() -> dict[str, str]:
    """Alert -> its expression."""
    text = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    return dict(re.findall(r"- alert: (\w+)\n +expr: (.+)\n", text))


def panels() -> dict[str, str]:
    """Title and letter of a query -> its expression."""
    board = json.loads((MONITORING / "gateways.json").read_text(encoding="utf-8"))
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"] for target in panel["targets"]
    }


# What Grafana puts in the place of its own variables before it asks.
FILLED = {"$__rate_interval": "1m", "$instance": ".*", "$model": ".*"}


def asked(expression: str) -> str:
    """The query that reaches Prometheus."""
    for name, value in FILLED.items():
        expression = expression.replace(name, value)
    return expression


@pytest.mark.parametrize("expression", [*alerts().values(), *panels().values()])
def test_every_query_is_promql(expression: str) -> None:
    query = asked(expression)
    assert "$" not in query, "a variable that nobody fills in"
    assert promql_parser.parse(query) is not None


def test_what_is_no_promql_is_refused() -> None:
    for wrong in ("sum by (x (y)", "rate(isochrone_gateway_ready)", "ready[5m] > 1", "nosuch(x)"):
        with pytest.raises(ValueError, match=r"."):
            promql_parser.parse(wrong)


def test_the_dashboard_is_one_by_grafanas_own_types() -> None:
    content = json.loads((MONITORING / "gateways.json").read_text(encoding="utf-8"))
    board = Dashboard.from_json(content)
    kept = json.loads(json.dumps(board.to_json(), default=lambda each: each.to_json()))
    assert (board.title, board.uid) == ("Isochrone gateways", "isochrone-gateways")
    assert unknown(content, kept) == [], "fields that Grafana would pass over"
    broken = {**content, "panels": [{"type": "timeseries", "titel": "x"}]}
    assert unknown(broken, json.loads(json.dumps(
        Dashboard.from_json(broken).to_json(), default=lambda each: each.to_json()
    ))) == ["panels.0.titel"]


def unknown(given: object, kept: object, path: str = "") -> list[str]:
    """Fields that are given and not kept, by their paths."""
    if isinstance(given, dict):
        assert isinstance(kept, dict), path
        return [
            each for name, value in given.items()
            for each in ([f"{path}{name}"] if name not in kept
                         else unknown(value, kept[name], f"{path}{name}."))
        ]
    if isinstance(given, list):
        assert isinstance(kept, list), path
        return [each for number, value in enumerate(given)
                for each in unknown(value, kept[number], f"{path}{number}.")]
    return []


def faults(expression: str) -> list[str]:
    """What an expression names that no gateway exposes."""
    wrong: list[str] = []
    labels: set[str] = set(TARGET)
    found = NAME.findall(expression)
    for name, chosen in found:
        base = name.removesuffix("_bucket")
        metric = KNOWN.get(base)
        if metric is None or (name != base) != (metric.kind == "histogram"):
            wrong.append(f"{name} is not exposed so")
            continue
        own = {*metric.labels, *TARGET} | ({"le"} if metric.kind == "histogram" else set())
        labels |= own
        wrong += [f"{name} has no label {label}" for label in re.findall(r"(\w+)=~?\"", chosen)
                  if label not in own]
        if metric.kind == "counter" and f"rate({name}" not in expression:
            wrong.append(f"{name} only ever grows: ask for its rate")
    for group in GROUPED.findall(expression):
        wrong += [f"nothing has the label {each}" for each in group.split(", ")
                  if each not in labels]
    return wrong if found else ["it names no metric"]


@pytest.mark.parametrize(("name", "expression"), [*alerts().items(), *panels().items()])
def test_everything_that_is_asked_for_exists(name: str, expression: str) -> None:
    assert faults(expression) == []


def test_faults_are_found() -> None:
    for wrong in (
        "isochrone_gateway_redy == 0", "rate(isochrone_gateway_retries_total{grant=\"no\"}[5m])",
        "isochrone_gateway_failures_total > 0", "isochrone_gateway_loop_lag_seconds > 1",
        "sum by (tenant) (isochrone_gateway_ready)", "isochrone_gateway_ready_bucket", "1",
    ):
        assert len(faults(wrong)) == 1, wrong


def test_every_rule_is_complete_and_the_document_points_here() -> None:
    text = (MONITORING / "alerts.yml").read_text(encoding="utf-8")
    count = text.count("- alert: ")
    assert count == len(alerts()) > 10
    for part in ("expr: ", "for: ", "severity: ", "summary: ", "description: "):
        assert text.count(part) == count
    assert len(panels()) > 10
    document = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    for path in sorted(MONITORING.iterdir()):
        assert f"examples/monitoring/{path.name}" in document
