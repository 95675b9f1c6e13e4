"""Spans: one a request, belonging together over gateways, and sinks that send them or drop them."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from isochrone.adapters.telemetry.otlp import OtlpSpans
from isochrone.core.errors import InvalidInput
from isochrone.gateway import metrics
from isochrone.gateway.spans import span_id_of, trace_of
from isochrone.ports.telemetry import Span, SpanSink
from isochrone.twin.fakes.telemetry import MemorySpans
from isochrone.wiring.gateway_settings import load_gateway
from isochrone.wiring.telemetry import spans_of
from tests.fixtures.collector import Collector
from tests.fixtures.gateways import GatewayCloud, RunningSite, ask, chat_body, post, run, until
from tests.fixtures.scrapes import scrape

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"

# -- spans of requests -----------------------------------------------------------------------------


async def spans(site: RunningSite, count: int) -> list[Span]:
    sink = site.spans
    await until(lambda: len(sink.spans) >= count)
    return sink.spans


def test_a_request_over_two_gateways_is_one_trace() -> None:
    async def main(cloud: GatewayCloud) -> None:
        near = await cloud.add_site("sydney", "AU", engines=0)
        far = await cloud.add_site("berlin", "DE")
        await cloud.key("secret")
        await cloud.ready()
        traceparent = f"00-{TRACE}-{PARENT}-01"
        own = await ask(near, post(chat_body(stream=True)))
        given = await ask(near, post(chat_body(), headers={"traceparent": traceparent}))
        (first, second), peers = await spans(near, 2), await spans(far, 2)
        assert first.parent_id is None
        assert first.trace_id == trace_of(own.request_id, None)[0]
        assert (second.trace_id, second.parent_id) == (int(TRACE, 16), int(PARENT, 16))
        for answer, ingress, peer in ((own, first, peers[0]), (given, second, peers[1])):
            assert ingress.span_id == span_id_of(answer.request_id, "sydney")
            assert (peer.trace_id, peer.parent_id) == (ingress.trace_id, ingress.span_id)
            assert peer.span_id != ingress.span_id
            assert ingress.name == "chat tiny-fable"
            assert ingress.error is None
            assert ingress.ended_at >= ingress.began_at
        said = first.attributes
        assert said["isochrone.request.id"] == own.request_id
        assert float(said["gen_ai.response.time_to_first_chunk"]) > 0
        assert {name: said[name] for name in (
            "gen_ai.operation.name", "gen_ai.request.model", "gen_ai.response.model",
            "gen_ai.usage.input_tokens", "gen_ai.usage.cache_read.input_tokens",
            "gen_ai.usage.output_tokens", "server.address", "http.response.status_code",
            "isochrone.site", "isochrone.country", "isochrone.class", "isochrone.attempts",
        )} == {
            "gen_ai.operation.name": "chat", "gen_ai.request.model": "tiny-fable",
            "gen_ai.response.model": "tiny-fable", "gen_ai.usage.input_tokens": 10,
            "gen_ai.usage.cache_read.input_tokens": 4, "gen_ai.usage.output_tokens": 3,
            "server.address": "127.0.0.1", "http.response.status_code": 200,
            "isochrone.site": "berlin", "isochrone.country": "DE",
            "isochrone.class": "on_demand", "isochrone.attempts": 1,
        }

    run(main)


def test_spans_say_what_went_wrong_and_whose_fault_it_was() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU")
        await cloud.key("secret")
        await cloud.key("bound", residency=("DE",))
        await cloud.ready()
        await ask(site, post(chat_body(), key="bound"))
        (refused,) = await spans(site, 1)
        assert (refused.error, refused.attributes["error.type"]) == (None, "residency")
        assert "gen_ai.response.model" not in refused.attributes
        site.engines[0].die_after = 1
        await ask(site, post(chat_body(stream=True)))
        _, lost = await spans(site, 2)
        assert (lost.error, lost.attributes["error.type"]) == ("engine_lost", "engine_lost")

    run(main)


def test_a_ratio_of_zero_keeps_nothing() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", otlp_sample_ratio=0.0)
        await cloud.key("secret")
        await cloud.ready()
        await ask(site, post(chat_body()))
        await until(lambda: b'"event":"request"' in site.log_lines)  # flushed together
        assert site.spans.spans == []

    run(main)


@pytest.mark.parametrize(
    "header",
    [
        f"00-{TRACE}-{PARENT}-01-more", f"ff-{TRACE}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{PARENT}-01", "00-1-2-01", "",
    ],
)
def test_a_traceparent_that_is_none_is_ignored(header: str) -> None:
    assert trace_of("r-1", header.encode()) == trace_of("r-1", None)


def test_a_traceparent_of_a_later_version_counts() -> None:
    header = f"01-{TRACE}-{PARENT}-01-more".encode()
    assert trace_of("r-1", header) == (int(TRACE, 16), int(PARENT, 16))


# -- the contract of span sinks --------------------------------------------------------------------


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def a_span(number: int = 1) -> Span:
    return Span(
        name="chat tiny-fable", trace_id=int(TRACE, 16), span_id=number, parent_id=7,
        began_at=1_000, ended_at=2_000, attributes={"isochrone.site": "sydney", "n": 1, "ok": True},
        error="engine_lost",
    )


def sink_of(kind: str, collector: Collector, most: int) -> SpanSink:
    if kind == "memory":
        return MemorySpans(most)
    return OtlpSpans(
        collector.url, service="s", version="1", instance="i", most_waiting=most, every_s=600.0
    )


@pytest.mark.parametrize("kind", ["memory", "otlp"])
def test_what_is_taken_is_sent_and_what_is_too_much_is_dropped(
    kind: str, collector: Collector
) -> None:
    sink = sink_of(kind, collector, 5)
    collector.hold.clear()
    for number in range(1, 9):
        sink.take(a_span(number))
    assert sink.counts().dropped == 3
    collector.hold.set()
    sink.close()
    counts = sink.counts()
    assert (counts.exported, counts.dropped, counts.failed) == (5, 3, 0)


def test_a_collector_gets_spans_as_they_were(collector: Collector) -> None:
    sink = sink_of("otlp", collector, 5)
    sink.take(a_span())
    sink.close()
    (found,) = collector.spans
    assert (found.name, found.trace_id.hex(), int.from_bytes(found.span_id)) == (
        "chat tiny-fable", TRACE, 1
    )
    assert int.from_bytes(found.parent_span_id) == 7
    assert (found.start_time_unix_nano, found.end_time_unix_nano) == (1_000, 2_000)
    assert found.kind == found.SPAN_KIND_SERVER
    assert (found.status.code, found.status.message) == (2, "engine_lost")
    assert [each.key for each in found.attributes] == ["isochrone.site", "n", "ok"]
    assert collector.resource["service.name"] == "s"
    assert collector.resource["service.instance.id"] == "i"


def test_a_collector_that_refuses_costs_spans_and_nothing_else(collector: Collector) -> None:
    collector.status = 400
    sink = sink_of("otlp", collector, 5)
    sink.take(a_span())
    sink.close()
    assert (sink.counts().exported, sink.counts().failed) == (0, 1)


SPEAK = """
import sys, time
from isochrone.adapters.telemetry.otlp import OtlpSpans
from isochrone.wiring.log import configure_log
from tests.contract.test_spans import a_span
configure_log("gateway")
sink = OtlpSpans(sys.argv[1], service="s", version="1", instance="i", every_s=0.01)
sink.take(a_span())
while not sink.counts().failed:
    time.sleep(0.01)
sink.close()
"""


@pytest.mark.parametrize("listens", [True, False])
def test_what_authorises_at_a_collector_is_not_in_the_log(
    collector: Collector, listens: bool
) -> None:
    """Not of the URL, of headers that are written wrongly, or of the collector's own words."""
    collector.status, collector.said = 401, "marked-3 is no key"
    url = collector.url if listens else "http://127.0.0.1:9/v1/traces"
    url = url.replace("//", "//user:marked-0@") + "?key=marked-1"
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, url], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "OTEL_EXPORTER_OTLP_HEADERS": "authorization: Bearer marked-2"},
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    why = "status 401" if listens else "ConnectionError"
    assert [(each["event"], each.get("why")) for each in said[1:]] == [("spans_not_sent", why)]
    assert said[0]["event"] == "otlp_environment_not_read"
    assert "marked" not in done.stdout + done.stderr


def test_that_spans_are_sent_again_is_said_once(
    collector: Collector, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = OtlpSpans(collector.url, service="s", version="1", instance="i", every_s=0.01)
    for status in (400, 400, 200, 200):
        collector.status = status
        before = sink.counts()
        sink.take(a_span())
        deadline = time.monotonic() + 30
        while sink.counts() == before and time.monotonic() < deadline:
            time.sleep(0.01)
    sink.close()
    said = capsys.readouterr().out
    assert (said.count("spans_not_sent"), said.count("spans_sent_again")) == (1, 1)


def test_a_gateway_sends_to_its_collector(collector: Collector) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0, otlp_endpoint=collector.url)
        sink = spans_of(site.settings, "sydney")
        assert sink is not None
        site.spans = sink  # type: ignore[assignment]
        site.stop.set()
        assert site.task is not None
        await site.task
        await cloud.start_gateway("sydney")
        await cloud.key("secret")
        await cloud.ready()
        answer = await ask(site, post(chat_body()))

        async def sent() -> bool:
            return (await scrape(site)).sum(metrics.SPANS, outcome="exported") == 1

        async with asyncio.timeout(25):
            while not await sent():
                await asyncio.sleep(0.02)
        (found,) = collector.spans
        said = {each.key: each.value.string_value for each in found.attributes}
        assert said["isochrone.request.id"] == answer.request_id
        sink.close()

    run(main)


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4318", "http://host:4318", "ftp://host/x"])
def test_an_endpoint_that_is_none_stops_the_start(endpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        f'identity = "i"\nport = 1\njournal = "j"\notlp_endpoint = "{endpoint}"\n'
        "tls_key = \"k\"\nmetrics_port = 1\nbreaker_first_hold_s = 60\n"
    )
    with pytest.raises(InvalidInput) as raised:
        load_gateway(file)
    said = [problem.partition(": ")[2].split()[0].rstrip(":") for problem in raised.value.problems]
    assert said == ["tls_certificate", "otlp_endpoint", "metrics_port", "breaker_first_hold_s"]
