"""Traffic over a real PostgreSQL: counted right, bounded by a sample, each tenant's own."""

from dataclasses import replace
from typing import Any

import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.traffic import PostgresTraffic
from isochrone.core.ids import ModelName, OrgId, SiteName, uuid7
from isochrone.core.metering.event import Tokens, UsageEvent
from isochrone.core.world.digest import DeploymentLoad, ReplicaLoad, SiteDigest
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.traffic import TrafficFilter
from isochrone.wire import fleet, subjects
from tests.contract.test_control_api import Api, api  # noqa: F401 - a fixture
from tests.unit.build_usage import a_usage_event

SECOND_NS = 1_000_000_000
NOW = 1_760_000_000 * SECOND_NS
ONE, TWO = Scope(org_id=OrgId("one")), Scope(org_id=OrgId("two"))
TEN = TrafficFilter(since=NOW, span_ns=SECOND_NS, spans=10, target_ms=200.0)


def a_request(number: int, at_s: float, **changes: Any) -> UsageEvent:
    """One that entered and was served at sydney, and had its first byte after 100 ms."""
    received_at = NOW + round(at_s * SECOND_NS)
    return replace(
        a_usage_event(uuid7(received_at, number)),
        **{
            "org_id": OrgId("one"), "received_at": received_at, "ingress_site": SiteName("sydney"),
            "serving_site": SiteName("sydney"), "first_byte_ms": 100.0, "outcome": "finished",
            "reason": None, "tokens": Tokens(output=10, source="engine"), **changes,
        },
    )


@pytest.fixture
def traffic(pool: Pool) -> PostgresTraffic:
    """Two spans with requests: three good ones, and in the next a slow, a refused, a lost one."""
    PostgresBook(pool).book_usage(
        [
            *(a_request(number, 0.1 * number) for number in range(3)),
            a_request(3, 1.0, first_byte_ms=900.0, serving_site=SiteName("ashburn")),
            a_request(4, 1.5, outcome="refused", reason="residency", serving_site=None,
                      first_byte_ms=None, org_id=OrgId("two"), tokens=Tokens()),
            a_request(5, 1.9, outcome="engine_lost", reason="engine_lost",
                      model=ModelName("other")),
            a_request(6, 10.0),
        ],
        now=NOW + 20 * SECOND_NS,
    )
    return PostgresTraffic(pool)


def test_each_span_counts_what_was_received_in_it(traffic: PostgresTraffic) -> None:
    first, second = traffic.spans(EVERY_TENANT, TEN, "all")
    assert (first.at, first.requests, first.good, first.spilled, first.p50_ms) == (
        NOW, 3, 3, 0, 100.0,
    )
    assert (second.at, second.requests, second.finished, second.refused, second.failed) == (
        NOW + SECOND_NS, 3, 1, 1, 1,
    )
    assert (second.good, second.spilled, second.output_tokens) == (0, 1, 20)
    assert second.p50_ms == 500.0, "between the slow one's 900 and the lost one's 100"


def test_groups_filters_reasons_and_spills(traffic: PostgresTraffic) -> None:
    by_model = traffic.spans(EVERY_TENANT, TEN, "model")
    assert {each.name for each in by_model} == {a_usage_event(uuid7(NOW, 1)).model, "other"}
    only = replace(TEN, model=ModelName("other"))
    assert [each.requests for each in traffic.spans(EVERY_TENANT, only, "all")] == [1]
    reasons = traffic.reasons(EVERY_TENANT, TEN)
    assert {(each.outcome, each.reason, each.requests) for each in reasons} == {
        ("refused", "residency", 1), ("engine_lost", "engine_lost", 1),
    }
    (spill,) = traffic.spills(EVERY_TENANT, TEN, most=9)
    assert (spill.ingress, spill.site, spill.requests) == ("sydney", "ashburn", 1)
    at_ashburn = replace(TEN, site=SiteName("ashburn"))
    assert sum(each.requests for each in traffic.spans(EVERY_TENANT, at_ashburn, "org")) == 1


def test_a_tenant_sees_its_own(traffic: PostgresTraffic) -> None:
    assert sum(each.requests for each in traffic.spans(ONE, TEN, "all")) == 5
    assert [each.name for each in traffic.spans(TWO, TEN, "org")] == ["two"]
    assert traffic.reasons(TWO, TEN)[0].reason == "residency"
    assert traffic.spills(TWO, TEN, most=9) == []
    assert [each.outcome for each in traffic.flows(TWO, since=NOW, after=0).flows] == ["refused"]


def test_of_a_busy_span_the_first_are_looked_at_and_stand_for_all(pool: Pool) -> None:
    PostgresBook(pool).book_usage(
        [a_request(number, number / 1000) for number in range(1000)], now=NOW + 2 * SECOND_NS
    )
    traffic = PostgresTraffic(pool, most_of_a_span=100)
    (span,) = traffic.spans(EVERY_TENANT, TEN, "all")
    assert span.looked_at == 100
    assert 900 < span.requests < 1100, "as if the rest of the second went on like its beginning"
    exact = PostgresTraffic(pool, most_of_a_span=1001)
    assert [each.requests for each in exact.spans(EVERY_TENANT, TEN, "all")] == [1000]


def test_flows_are_told_once(traffic: PostgresTraffic, pool: Pool) -> None:
    found = traffic.flows(EVERY_TENANT, since=NOW, after=NOW)
    assert sum(each.requests for each in found.flows) == 7
    assert found.until == NOW + 20 * SECOND_NS
    assert traffic.flows(EVERY_TENANT, since=NOW, after=found.until).flows == ()
    PostgresBook(pool).book_usage([a_request(7, 11.0)], now=NOW + 21 * SECOND_NS)
    (news,) = traffic.flows(EVERY_TENANT, since=NOW, after=found.until).flows
    assert (news.ingress, news.site, news.requests) == ("sydney", "sydney", 1)


def test_the_api_tells_the_last_hour_and_the_latest(api: Api) -> None:  # noqa: F811
    now = api.context.now()
    event = replace(
        a_usage_event(uuid7(now, 1)), received_at=now, finished_at=now, org_id=OrgId("default"),
        ingress_site=SiteName("sydney"), serving_site=SiteName("ashburn"), first_byte_ms=300.0,
        outcome="finished",
    )
    api.context.book.book_usage([event], now=now)
    status, found = api.call("GET", "traffic")
    (span,) = found["spans"]
    assert (status, span["requests"], span["good"], span["is_sample"]) == (200, 1, 0, False)
    assert found["since"] <= now < found["since"] + 3600 * SECOND_NS
    (span,) = api.call("GET", "traffic?target_ms=400&by=site")[1]["spans"]
    assert (span["name"], span["good"], span["spilled"]) == ("ashburn", 1, 1)
    flows = api.call("GET", "flows")[1]
    assert [(each["ingress"], each["site"]) for each in flows["flows"]] == [("sydney", "ashburn")]
    assert api.call("GET", f"flows?after={flows['until']}")[1]["flows"] == []
    assert api.call("GET", "traffic?spans=0")[0] == 422


def test_what_sites_do_now_is_told_in_the_order_of_their_names(api: Api) -> None:  # noqa: F811
    digest = SiteDigest(
        site=SiteName("frankfurt"), epoch=1, sequence=1, at=1,
        loads=(
            DeploymentLoad(
                model=ModelName("tiny"), revision=None, ready=2, slots=8, running=3, waiting=1,
                pending_prompt_tokens=0, pending_output_tokens=0, prefill_tok_s=1.0,
                decode_tok_s=1.0,
            ),
        ),
        replicas=(
            ReplicaLoad(
                id="r", model=ModelName("tiny"), generation=1, state="ready", pid=1, running=3,
                waiting=1, restarts=0, prompt_tokens_total=1, cached_tokens_total=1,
                output_tokens_total=1, kept_tokens=700, held_tokens=90,
            ),
        ),
    )
    subject = subjects.digest_subject(SiteName("frankfurt"))
    api.context.fleet.on_message(subject, fleet.encode(digest))
    sites = api.call("GET", "live")[1]["sites"]
    assert [each["name"] for each in sites] == ["ashburn", "frankfurt", "sydney"]
    assert sites[1] == {
        "name": "frankfurt", "health": "down", "ready": 2, "slots": 8, "running": 3, "waiting": 1,
        "kept_tokens": 700, "held_tokens": 90,
    }, "it has not joined, so it is down whatever it says"
    assert (sites[0]["slots"], sites[0]["held_tokens"]) == (0, None)
