"""Reconciliation on a real PostgreSQL: engine tokens = usage tokens = charged tokens, or who says
otherwise."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.estate import PostgresEstate
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.meters import PostgresMeters
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.adapters.postgres.reconciling import PostgresReconciling
from isochrone.control.fleet_state import FleetState, learn_links
from isochrone.control.reconciling import Reconciler, report_of
from isochrone.core.billing.period import DAY_NS
from isochrone.core.billing.sheet import HOUR_NS
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.metering.loose import Counts
from isochrone.core.metering.reconcile import Reading
from isochrone.core.world.digest import ProbedRtt, ReplicaLoad, SiteDigest
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.book import Parked
from isochrone.twin.clock import VirtualClock
from isochrone.twin.loop import VirtualLoop, run
from isochrone.wire import fleet
from tests.contract.test_ledger import START, a_report, a_sheet, charge_all, sell_at
from tests.contract.test_meters import an_event

REPLICA = ReplicaId("sydney/tiny/0")


@pytest.fixture
def store(pool: Pool) -> PostgresReconciling:
    return PostgresReconciling(pool)


def a_reading(uncached: int, output: int, *, generation: int = 1, cached: int = 0) -> Reading:
    return Reading(
        replica=REPLICA, generation=generation, site=SiteName("sydney"), model=ModelName("tiny"),
        counts=Counts(input_uncached=uncached, input_cached=cached, output=output),
    )


def served(number: int, *, output: int = 3) -> UsageEvent:
    return replace(a_report(number, output=output), replica=REPLICA)


def test_all_agrees_to_the_token(store: PostgresReconciling, pool: Pool) -> None:
    book, ledger = PostgresBook(pool), PostgresLedger(pool)
    sell_at(PostgresPrices(pool), a_sheet())
    book.book_usage([served(1), served(2, output=7)], now=1)
    store.note_counts([a_reading(10, 10)], day_at=START, now=1)
    waiting = report_of(store, START)
    assert {each.meter: each.waiting for each in waiting.meters} == {
        "input_uncached_tokens": 10, "output_tokens": 10, "requests": 2,
    }
    assert waiting.agrees
    charge_all(ledger, START + HOUR_NS)
    report = report_of(store, START)
    (line,) = report.replicas
    assert (line.verdict, line.requests, line.lives) == ("equal", 2, 1)
    assert line.engine == line.exact == Counts(input_uncached=10, output=10)
    by_meter = {each.meter: each for each in report.meters}
    assert by_meter["output_tokens"].used == by_meter["output_tokens"].charged == 10
    # The sheet prices tokens and says nothing of requests, which is told.
    assert report.findings == ("requests: 2 of 2 have no price",)
    assert report_of(store, START + DAY_NS).replicas == ()


def test_a_missing_token_is_found_wherever_it_went(store: PostgresReconciling, pool: Pool) -> None:
    book = PostgresBook(pool)
    book.book_usage([served(1)], now=1)
    assert report_of(store, START).findings == (f"{REPLICA}: no counts of its engine were heard",)
    store.note_counts([a_reading(5, 4)], day_at=START, now=1)
    (line,) = report_of(store, START).replicas
    assert (line.verdict, line.difference) == ("differs", Counts(output=1))
    book.park([Parked(id="x", subject="usage.x", payload=b"x", reason="bad")], now=START)
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("UPDATE request_hours SET output = 0")
    PostgresMeters(pool).add_events(EVERY_TENANT, [an_event()], now=START)
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("UPDATE meter_hours SET amount = amount + 1")
    said = " ".join(report_of(store, START).findings)
    assert "2 sums by hour are not" in said, "one of requests, one of another meter"
    assert "1 messages could not be booked" in said


def test_lives_and_days_of_an_engine_are_told_apart(store: PostgresReconciling) -> None:
    later = START + DAY_NS
    store.note_counts([a_reading(10, 20)], day_at=START, now=1)
    store.note_counts([a_reading(8, 19)], day_at=START, now=2)  # one that came late
    store.note_counts([a_reading(15, 30)], day_at=later, now=3)
    store.note_counts([a_reading(2, 3)], day_at=later, now=4)  # counts that began anew
    store.note_counts([a_reading(4, 6)], day_at=later, now=5)
    store.note_counts([a_reading(1, 1, generation=2)], day_at=later, now=6)
    (first,) = store.day_sums(START).engines
    assert (first.counts, first.lives) == (Counts(input_uncached=10, output=20), 1)
    (second,) = store.day_sums(later).engines
    assert second.counts == Counts(input_uncached=5 + 4 + 1, output=10 + 6 + 1)
    assert second.lives == 3


def test_days_that_ended_while_control_was_away_are_reported_when_it_is_back(
    store: PostgresReconciling,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)

        async def offload(call):  # type: ignore[no-untyped-def]
            return call()

        async def begun_again() -> bool:
            return await Reconciler(
                store, FleetState(clock), clock=clock, offload=offload
            ).report()

        def kept() -> list[int]:
            return [each.day_at // DAY_NS for each in store.reports(most=100)]

        assert await begun_again()
        (first,) = kept()
        assert not await begun_again()
        await asyncio.sleep(5 * DAY_NS / 1e9)
        assert await begun_again()
        assert kept() == list(range(first + 5, first - 1, -1))
        await asyncio.sleep(60 * DAY_NS / 1e9)
        assert await begun_again()
        assert kept()[:31] == list(range(first + 65, first + 34, -1))
        assert kept()[31:] == list(range(first + 5, first - 1, -1)), "no more than a month back"

    run(main())


def test_the_loop_keeps_what_digests_tell_and_reports_each_day_once(
    store: PostgresReconciling,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)
        heard = FleetState(clock)

        async def offload(call):  # type: ignore[no-untyped-def]
            return call()

        reconciler = Reconciler(store, heard, clock=clock, offload=offload)
        running = asyncio.create_task(reconciler.run())
        begun = clock.wall_ns()
        for sequence in range(1, 4):
            replica = ReplicaLoad(
                id=REPLICA, model=ModelName("tiny"), generation=1, state="ready", pid=1, running=0,
                waiting=0, restarts=0, prompt_tokens_total=sequence, cached_tokens_total=None,
                output_tokens_total=2 * sequence,
            )
            mute = replace(replica, id="other", prompt_tokens_total=None)
            failed = replace(replica, id="failed", state="failed")
            hung = replace(replica, id="hung", silent_s=9.0)
            digest = SiteDigest(
                site=SiteName("sydney"), epoch=1, sequence=sequence, at=1, loads=(),
                replicas=(replica, mute, failed, hung),
            )
            heard.on_message("digest.sydney", fleet.encode(digest))
            await asyncio.sleep(3)
        day_at = begun - begun % DAY_NS
        (engine,) = store.day_sums(day_at).engines
        assert engine.counts == Counts(input_uncached=3, output=6)
        await asyncio.sleep(2 * DAY_NS / 1e9)
        running.cancel()
        reports = store.reports(most=9)
        assert [each.day_at - day_at for each in reports] == [DAY_NS, 0, -DAY_NS][: len(reports)]
        assert [each.agrees for each in reports if each.day_at == day_at] == [False]

    run(main())


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"prompt_tokens_total": -1}, True),
        ({"output_tokens_total": 2**63}, True),
        ({"generation": 2**63}, True),
        ({"id": "frankfurt/\0"}, True),
        ({"id": REPLICA, "prompt_tokens_total": 99}, False),
        ({"model": "\0"}, True),
        ({"probe": -1.0}, True),
        ({"probe": float("nan")}, True),
        ({"peer": "\0"}, True),
    ],
)
def test_what_one_site_tells_costs_no_other_its_counts(
    pool: Pool, store: PostgresReconciling, change: dict[str, Any], refused: bool
) -> None:
    def a_digest(site: str, replica: ReplicaLoad, probe: ProbedRtt) -> bytes:
        return fleet.encode(SiteDigest(
            site=SiteName(site), epoch=1, sequence=1, at=1, loads=(), replicas=(replica,),
            probes=(probe,),
        ))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)
        heard = FleetState(clock)

        async def offload(call):  # type: ignore[no-untyped-def]
            return call()

        counts = ReplicaLoad(
            id=REPLICA, model=ModelName("tiny"), generation=1, state="ready", pid=1, running=0,
            waiting=0, restarts=0, prompt_tokens_total=3, cached_tokens_total=None,
            output_tokens_total=6,
        )
        near = ProbedRtt(peer=SiteName("frankfurt"), rtt_ms=1.0)
        loops = (
            asyncio.create_task(Reconciler(store, heard, clock=clock, offload=offload).run()),
            asyncio.create_task(learn_links(heard, PostgresEstate(pool), offload)),
        )
        begun = clock.wall_ns()
        heard.on_message("digest.sydney", a_digest("sydney", counts, near))
        changed = dict(change)
        far = ProbedRtt(peer=changed.pop("peer", "sydney"), rtt_ms=changed.pop("probe", 1.0))
        bad = replace(counts, **{"id": "frankfurt/tiny/0"} | changed)
        heard.on_message("digest.frankfurt", a_digest("frankfurt", bad, far))
        await asyncio.sleep(15)
        assert not any(each.done() for each in loops)
        (engine,) = store.day_sums(begun - begun % DAY_NS).engines
        assert engine.counts == Counts(input_uncached=3, output=6)
        assert (heard.heard(SiteName("frankfurt")) is None) == refused
        for each in loops:
            each.cancel()

    run(main())
