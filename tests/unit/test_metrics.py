"""Metrics: what is declared follows the conventions, and counting adds up to what happened."""

import re
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as plain_families

from isochrone.adapters.telemetry.process import process_use
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.routing.bond import Bond
from isochrone.core.routing.choice import Foretold, Refused
from isochrone.gateway import metrics
from isochrone.gateway.carry_on import Continued
from isochrone.gateway.exposition import OPENMETRICS_END, accepts_openmetrics, text_of
from isochrone.gateway.measured import MOST_ROWS, OTHER, Measured
from isochrone.gateway.metrics import METRICS
from isochrone.ports.telemetry import Distribution, Family, Metric, Sample
from isochrone.wire.usage import UsageRecord
from tests.arch.sources import ROOT
from tests.unit.build_usage import a_decision, a_ground, a_record, a_usage_event, a_usage_record

NASTY = 'a"b\\c\nd{e="f"}'
SHAPE = ("chat.completions", "tiny-fable", "on_demand", "client")


def measured(*models: str) -> Measured:
    return Measured(lambda model: model in (models or ("tiny-fable",)))


def values(families: Iterable[Family], metric: Metric) -> dict[tuple[str, ...], float]:
    """Values of a counter, or counts of a histogram, by labels."""
    (family,) = [each for each in families if each.metric is metric]
    return {
        each.labels: sum(each.counts) if isinstance(each, Distribution) else each.value
        for each in family.samples
    }


def spread(families: Iterable[Family], metric: Metric) -> Distribution:
    (family,) = [each for each in families if each.metric is metric]
    (found,) = family.samples
    assert isinstance(found, Distribution)
    return found


def bucket(metric: Metric, value: float) -> int:
    """The index of the bucket that holds a value."""
    return sum(bound < value for bound in metric.buckets)


# -- what is declared ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_declaration_follows_the_conventions(metric: Metric) -> None:
    own = metric.name.startswith("isochrone_gateway_")
    assert own or metric.name.startswith("process_")
    assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    stem = metric.name.removesuffix("_total")
    assert stem.endswith("_" + metric.unit) if metric.unit else metric.kind == "gauge"
    assert metric.unit not in ("milliseconds", "ms", "kilobytes"), "base units only"
    assert metric.help.endswith(".")
    assert len(set(metric.labels)) == len(metric.labels)
    assert not {"key", "org", "tenant", "project", "request", "le"} & set(metric.labels)
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_names_are_declared_once_and_everything_declared_is_listed() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert {m for m in vars(metrics).values() if isinstance(m, Metric)} == set(METRICS)


def test_the_page_lists_what_is_declared() -> None:
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    for metric in METRICS:
        unit = metric.unit or "0 or 1"
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        row = f"| `{metric.name}` | {metric.kind} | {unit} | {labels} | {metric.help} |"
        assert row in page, f"docs/observability.md needs this row:\n{row}"
    assert set(re.findall(r"^\| `((?:isochrone|process)_\w+)`", page, re.M)) == {
        metric.name for metric in METRICS
    }


# -- what is counted -------------------------------------------------------------------------------


def test_a_finished_stream_is_counted_once_everywhere() -> None:
    counts = measured()
    counts.ended(a_record(replace(a_usage_event(), decision=a_decision(a_ground()))))
    families = list(counts.families())
    assert values(families, metrics.REQUESTS) == {(*SHAPE, "finished", "200", "sydney"): 1}
    assert values(families, metrics.TOKENS) == {
        ("tiny-fable", "on_demand", "client", "input_uncached"): 5,
        ("tiny-fable", "on_demand", "client", "input_cached"): 0,
        ("tiny-fable", "on_demand", "client", "output"): 3,
    }
    assert values(families, metrics.TOKEN_REPORTS) == {("client", "engine"): 1}
    assert values(families, metrics.ATTEMPTS) == {("client",): 1}
    duration = spread(families, metrics.DURATION)
    assert (duration.labels, duration.sum) == (SHAPE, 1.0)
    assert duration.counts[bucket(metrics.DURATION, 1.0)] == sum(duration.counts) == 1
    first = spread(families, metrics.FIRST_BYTE)
    assert first.sum == pytest.approx(0.010)
    assert first.counts[bucket(metrics.FIRST_BYTE, 0.010)] == 1
    added = spread(families, metrics.ADDED)
    assert added.sum == pytest.approx(0.0001)
    assert spread(families, metrics.RECEIVING).sum == pytest.approx(0.0001)
    ratio = spread(families, metrics.PREDICTION_RATIO)
    assert ratio.sum == pytest.approx(10.0 / 12.0)
    for metric in (metrics.REFUSALS, metrics.FAILURES, metrics.FAILED_ATTEMPTS):
        assert values(families, metric) == {}


def test_a_request_that_came_in_one_piece_took_no_time_to_come_in() -> None:
    counts = measured()
    counts.ended(msgspec.structs.replace(a_usage_record(), chosen_ms=0.0))
    counts.ended(msgspec.structs.replace(a_usage_record(), chosen_ms=30.0, sent_ms=31.0))
    receiving = spread(counts.families(), metrics.RECEIVING)
    assert (receiving.counts[0], sum(receiving.counts)) == (1, 2)
    assert receiving.sum == pytest.approx(0.030)


def test_only_streams_of_one_attempt_judge_the_prediction() -> None:
    record = a_record(replace(a_usage_event(), decision=a_decision(a_ground())))
    counts = measured()
    counts.ended(msgspec.structs.replace(record, stream=False))
    counts.ended(msgspec.structs.replace(record, attempts=2))
    families = list(counts.families())
    assert values(families, metrics.PREDICTION_RATIO) == {}
    assert values(families, metrics.FIRST_BYTE) == {SHAPE: 1}


def test_a_stream_that_went_on_elsewhere_judges_each_sites_prediction() -> None:
    first = Foretold(
        site=SiteName("paris"), since_ms=0.0, predicted_ttft_ms=100.0, actual_ttft_ms=50.0
    )
    decision = replace(
        a_decision(a_ground()), actual_ttft_ms=48.0, since_ms=70.0, foretold=(first,)
    )
    record = a_record(replace(a_usage_event(), decision=decision, first_byte_ms=50.0))
    counts = measured()
    counts.ended(msgspec.structs.replace(record, attempts=2))
    counts.ended(msgspec.structs.replace(record, attempts=3))
    families = list(counts.families())
    ratio = spread(families, metrics.PREDICTION_RATIO)
    assert sum(ratio.counts) == 2
    assert ratio.sum == pytest.approx(0.5 + 4.0)


@pytest.mark.parametrize(
    ("changes", "metric", "labels"),
    [
        ({"outcome": "refused", "reason": "residency", "status": 403}, metrics.REFUSALS,
         ("client", "residency")),
        ({"outcome": "timed_out", "reason": "total_timeout", "status": 504}, metrics.FAILURES,
         ("client", "timed_out", "total_timeout")),
        ({"outcome": "engine_lost", "reason": "engine_lost"}, metrics.FAILURES,
         ("client", "engine_lost", "engine_lost")),
        ({"input_cached": 4}, metrics.PREFIX_HITS, ("tiny-fable", "client")),
        ({"token_source": "counted"}, metrics.TOKEN_REPORTS, ("client", "counted")),
        ({"reporter": "evidence"}, metrics.ATTEMPTS, ("peer",)),
        ({"serving_site": None, "outcome": "refused"}, metrics.REQUESTS,
         (*SHAPE, "refused", "200", "none")),
    ],
)
def test_what_is_not_usual_is_counted(
    changes: dict[str, object], metric: Metric, labels: tuple[str, ...]
) -> None:
    counts = measured()
    counts.ended(msgspec.structs.replace(a_usage_record(), **changes))
    assert values(counts.families(), metric)[labels] == 1


def test_what_was_believed_cached_stands_beside_what_was_reported() -> None:
    counts = measured()
    kept = Bond(cached_tokens=500, prompt_tokens=1000, verdict="kept")
    for bond, cached, source in (
        (kept, 150, "engine"), (kept, 0, "running"),
        (Bond(cached_tokens=0, prompt_tokens=1000), 20, "engine"), (None, 7, "engine"),
    ):
        decision = replace(a_decision(a_ground()), bond=bond)
        record = a_record(replace(a_usage_event(), decision=decision))
        counts.ended(msgspec.structs.replace(
            record, input_uncached=200 - cached, input_cached=cached, token_source=source,
        ))
    families = list(counts.families())
    assert values(families, metrics.PREFIX_TOKENS) == {
        ("tiny-fable", "believed"): 100, ("tiny-fable", "reported"): 170,
    }
    assert values(families, metrics.SESSION_REQUESTS) == {("kept",): 2}


def test_attempts_and_why_sites_were_left() -> None:
    left = tuple(
        Refused(site=SiteName(site), rule="unreachable", detail="no connection")
        for site in ("berlin", "paris")
    )
    record = a_record(replace(a_usage_event(), attempts=3, decision=a_decision(a_ground())))
    assert record.decision is not None
    record = msgspec.structs.replace(
        record, decision=msgspec.structs.replace(record.decision, tried=left)
    )
    counts = measured()
    counts.ended(record)
    counts.ended(msgspec.structs.replace(record, attempts=0, decision=None))
    families = list(counts.families())
    assert values(families, metrics.ATTEMPTS) == {("client",): 3}
    assert values(families, metrics.FAILED_ATTEMPTS) == {("unreachable",): 2}


def test_answers_to_anything_else() -> None:
    counts = measured()
    counts.answered(404, "unknown_path")
    assert values(counts.families(), metrics.ANSWERS) == {("404", "unknown_path"): 1}


def test_streams_that_lost_their_engine() -> None:
    counts, record = measured(), a_usage_record()
    once = Continued(method="continue_ids", nth=1, gap_ms=300.0)
    twice = Continued(method="replay", nth=2, gap_ms=700.0)
    counts.lost_engine(record, (once,), None)
    counts.lost_engine(record, (once, twice), None)
    lost = msgspec.structs.replace(record, outcome="engine_lost", reporter="evidence")
    counts.lost_engine(lost, (once,), "no_replica")
    families = list(counts.families())
    assert values(families, metrics.CONTINUATIONS) == {
        ("client", "continue_ids", "finished"): 1,
        ("client", "continue_ids", "lost"): 1,
        ("client", "replay", "finished"): 1,
        ("peer", "continue_ids", "lost"): 1,
    }
    assert values(families, metrics.CONTINUATION_GAP) == {("continue_ids",): 3, ("replay",): 1}
    assert values(families, metrics.ABANDONED) == {("peer", "no_replica"): 1}


def test_no_counter_goes_down_while_it_is_scraped() -> None:
    """Between two families requests have their turn, and end."""
    counts, record = measured(), a_usage_record()
    refused = msgspec.structs.replace(
        record, outcome="refused", status=429, reason="rate_limit_requests", attempts=0,
        token_source="none",
    )
    for _ in range(10):
        counts.ended(record)

    def scrape(*meanwhile: UsageRecord) -> dict[tuple[str, tuple[str, ...]], float]:
        found = {}
        for family in counts.families():
            for sample in family.samples:
                if isinstance(sample, Sample):
                    found[family.metric.name, sample.labels] = sample.value
            for each in meanwhile:
                counts.ended(each)
        return found

    before = scrape()
    during = scrape(refused, msgspec.structs.replace(refused, reporter="evidence"))
    assert {name: value for name, value in before.items() if during[name] < value} == {}


# -- labels stay few -------------------------------------------------------------------------------


def test_models_that_clients_make_up_are_one_and_are_not_remembered() -> None:
    counts = measured()
    for number in range(3):
        counts.ended(_of_model(f"made-up-{number}"))
    counts.ended(_of_model(""))
    named = {labels[1]: n for labels, n in values(counts.families(), metrics.REQUESTS).items()}
    assert named == {OTHER: 3, "none": 1}


def test_rows_are_bounded() -> None:
    counts = Measured(lambda model: True)
    for number in range(MOST_ROWS + 50):
        counts.ended(_of_model(f"model-{number}"))
    requests = values(counts.families(), metrics.REQUESTS)
    assert len(requests) == MOST_ROWS + 1
    assert sum(requests.values()) == MOST_ROWS + 50
    rest = ("chat.completions", OTHER, "on_demand", "client", "finished", "200", OTHER)
    assert requests[rest] == 50


def _of_model(name: str) -> UsageRecord:
    return msgspec.structs.replace(a_usage_record(), model=ModelName(name))


# -- what is scraped -------------------------------------------------------------------------------


def test_the_text_has_help_type_unit_and_values() -> None:
    families = [
        Family(metrics.TOKENS, [Sample((NASTY, "batch", "client", "output"), 7)]),
        Family(metrics.ADDED, [Distribution(("client",), (2, *[0] * 12, 1), 0.5)]),
        Family(metrics.VIEW_AGE, [Sample((), float("inf"))]),
        Family(metrics.CLOCK_OFFSET, []),
    ]
    plain = "".join(text_of(family, openmetrics=False) for family in families)
    assert f"# HELP {metrics.TOKENS.name} {metrics.TOKENS.help}\n" in plain
    assert f"# TYPE {metrics.TOKENS.name} counter\n" in plain
    assert "# UNIT" not in plain
    said = plain_families(plain)
    assert {family.name: family.type for family in said} == {
        "isochrone_gateway_tokens": "counter", metrics.ADDED.name: "histogram",
        metrics.VIEW_AGE.name: "gauge", metrics.CLOCK_OFFSET.name: "gauge",
    }
    text = "".join(text_of(family, openmetrics=True) for family in families) + OPENMETRICS_END
    parsed = openmetrics_families(text)  # type: ignore[no-untyped-call]
    read = {family.name: family for family in parsed}
    assert [(f.name, f.type, f.unit) for f in read.values()] == [
        ("isochrone_gateway_tokens", "counter", "tokens"),
        ("isochrone_gateway_added_latency_seconds", "histogram", "seconds"),
        ("isochrone_gateway_view_age_seconds", "gauge", "seconds"),
        ("isochrone_gateway_clock_offset_seconds", "gauge", "seconds"),
    ]
    (tokens,) = read["isochrone_gateway_tokens"].samples
    assert tokens.labels == {"model": NASTY, "class": "batch", "source": "client", "kind": "output"}
    assert tokens.value == 7
    counted = {s.labels.get("le", s.name[-5:]): s.value for s in read[metrics.ADDED.name].samples}
    assert (counted["5e-05"], counted["1.0"], counted["+Inf"]) == (2, 2, 3)
    assert (counted["count"], counted["s_sum"]) == (3, 0.5)


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("", False),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", True),
        ("text/plain, application/openmetrics-text", True),
    ],
)
def test_scrapers_get_what_they_read(accept: str, wants: bool) -> None:
    assert accepts_openmetrics(accept) is wants


def test_the_process_says_what_it_uses() -> None:
    use = process_use()
    assert use.cpu_s > 0
    assert use.resident_bytes > 1_000_000
    assert 0 < use.open_fds < use.most_fds
    assert use.started_at > 1_600_000_000
