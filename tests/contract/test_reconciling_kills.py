"""Reconciliation on a real PostgreSQL where engines died, streams went on, clients left and days
ended: what that explains, by how much, and that nothing else is explained by it."""

import asyncio
from dataclasses import replace

import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.reconciling import PostgresReconciling
from isochrone.control.fleet_state import FleetState
from isochrone.control.reconciling import Reconciler, report_of
from isochrone.core.billing.period import DAY_NS, day_of
from isochrone.core.ids import ModelName, ReplicaId, RequestId, SiteName, uuid7
from isochrone.core.metering.event import Tokens, UsageEvent
from isochrone.core.metering.loose import Counts, Reason
from isochrone.core.metering.reconcile import Reading, Reconciliation, ReplicaLine
from isochrone.core.routing.choice import Decision, Refused
from isochrone.core.world.digest import ReplicaLoad, SiteDigest
from isochrone.twin.clock import VirtualClock
from isochrone.twin.loop import VirtualLoop, run
from isochrone.wire import fleet
from tests.contract.test_ledger import START, S
from tests.unit.build_usage import a_decision, a_ground, a_usage_event

HERE, THERE = ReplicaId("sydney/tiny/0"), ReplicaId("ashburn/tiny/0")
BESIDE = ReplicaId("sydney/tiny/1")
DIED_S, BACK_S = 100.0, 110.0
LOST = "lost during the answer"


class Day:
    """The book of a day on which sydney's engine died, and what engines counted."""

    def __init__(self, pool: Pool) -> None:
        self.store = PostgresReconciling(pool)
        self.book = PostgresBook(pool)
        self._next = 0

    def counted(
        self, second: float, uncached: int, output: int, *, replica: ReplicaId = HERE,
        life: int = 1, cached: int = 0,
    ) -> None:
        now = START + int(second * S)
        reading = Reading(
            replica=replica, generation=life, site=SiteName(replica.split("/")[0]),
            model=ModelName("tiny-fable"),
            counts=Counts(input_uncached=uncached, input_cached=cached, output=output),
        )
        self.store.note_counts([reading], day_at=day_of(now), now=now)

    def booked(
        self, begun_s: float, ended_s: float, tokens: Tokens, *, replica: ReplicaId = HERE,
        tried: tuple[Refused, ...] = (), attempts: int = 1,
    ) -> UsageEvent:
        self._next += 1
        at, until = (START + int(second * S) for second in (begun_s, ended_s))
        decision: Decision = replace(a_decision(a_ground()), tried=tried)
        site = SiteName(replica.split("/")[0])
        event = replace(
            a_usage_event(uuid7(at, self._next)), received_at=at, finished_at=until,
            total_ms=(ended_s - begun_s) * 1000, sent_ms=0.0, tokens=tokens, replica=replica,
            serving_site=site, decision=decision, attempts=attempts,
        )
        self.book.book_usage([event], now=until)
        return event

    def report(self, day_at: int = START) -> Reconciliation:
        return report_of(self.store, day_at)

    def line(self, replica: ReplicaId = HERE, day_at: int = START) -> ReplicaLine:
        (line,) = [one for one in self.report(day_at).replicas if one.replica == replica]
        return line


@pytest.fixture
def day(pool: Pool) -> Day:
    return Day(pool)


def exactly(uncached: int, output: int, *, cached: int = 0) -> Tokens:
    return Tokens(
        input_uncached=uncached, input_cached=cached, output=output, source="engine"
    )


def lost_at(site: str, replica: str = "") -> Refused:
    return Refused(site=SiteName(site), rule="tried_before", detail=f"{replica}{LOST}")


def an_engine_died(day: Day) -> None:
    """One request of 5 + 10 tokens was served before, and one of the life after."""
    day.booked(10, 20, exactly(5, 10))
    day.counted(21, 5, 10)
    day.counted(DIED_S - 1, 5, 10)
    day.booked(BACK_S + 30, BACK_S + 31, exactly(5, 10))
    day.counted(BACK_S, 0, 0, life=2)
    day.counted(BACK_S + 60, 5, 10, life=2)


def test_a_stream_that_went_on_elsewhere_is_explained_at_both_engines(day: Day) -> None:
    an_engine_died(day)
    day.counted(DIED_S - 1, 5 + 7, 10 + 4)  # it had read 7 tokens and written 4 when it died
    day.booked(
        95, 105, exactly(7, 12), replica=THERE, tried=(lost_at("sydney", f"replica {HERE}: "),),
        attempts=2,
    )
    day.counted(106, 7, 8, replica=THERE, cached=4)  # it read these 4 as a prompt
    day.store.still_heard([(THERE, 1)], day_at=START, now=START + 200 * S)
    lost, went_on = day.line(HERE), day.line(THERE)
    assert lost.difference == Counts(input_uncached=7, output=4)
    assert went_on.difference == Counts(input_cached=4, output=-4)
    assert lost.verdict == went_on.verdict == "within"
    assert lost.reasons == (Reason(cause="ended", requests=1),)
    assert went_on.reasons == (Reason(cause="moved", requests=1),)
    report = day.report()
    assert report.agrees
    assert len(report.explained) == 2
    assert report.explained[0].startswith(f"{THERE}: agrees within ")
    assert "worked on by several engines, each of which read the prompt (1)" in report.explained[0]
    ended = "at work when its engine ended, of whose last counts nobody heard (1)"
    assert report.explained[1].startswith(f"{HERE}: agrees within ")
    assert ended in report.explained[1]


def test_what_a_dead_engine_told_nobody_is_explained(day: Day) -> None:
    an_engine_died(day)
    day.booked(99, 99.5, exactly(6, 3))
    line = day.line()
    assert line.difference == Counts(input_uncached=-6, output=-3)
    assert (line.verdict, line.lives) == ("within", 2)
    assert line.reasons == (Reason(cause="ended", requests=1),)
    assert line.allowed.least == line.difference


@pytest.mark.parametrize("second", [50.0, 150.0])
def test_a_request_that_is_booked_twice_is_found_though_an_engine_died(
    day: Day, second: float
) -> None:
    an_engine_died(day)
    day.booked(99, 99.5, exactly(6, 3))
    day.booked(second, second + 1, exactly(5, 10))
    line = day.line()
    assert (line.verdict, line.difference.output) == ("differs", -13)
    (finding,) = day.report().findings
    assert f"{HERE}: its engine counted -11 uncached, +0 cached and -13 output" in finding
    assert "explained is from -6 uncached, +0 cached and -3 output to +0 uncached" in finding


def test_a_request_that_was_never_booked_is_found_though_an_engine_died(day: Day) -> None:
    an_engine_died(day)
    day.booked(99, 99.5, exactly(6, 3))
    day.counted(BACK_S + 90, 10, 20, life=2)
    line = day.line()
    assert (line.verdict, line.difference) == ("differs", Counts(input_uncached=-1, output=7))


def test_what_a_client_left_is_explained_by_the_time_that_it_took(day: Day) -> None:
    day.booked(10, 20, exactly(5, 100))  # 10 tokens a second
    day.booked(30, 31, replace(exactly(5, 8), source="running"))
    day.counted(40, 10, 108 + 30)
    day.store.still_heard([(HERE, 1)], day_at=START, now=START + 100 * S)
    assert day.line().verdict == "within"
    assert day.line().reasons == (Reason(cause="cut_off", requests=1),)
    assert day.line().allowed.most == Counts(output=2 * 10 * (1 + 2) - 8)
    day.counted(41, 10, 108 + 90)
    assert day.line().verdict == "differs", "no engine writes so much in so little time"
    day.booked(50, 51, Tokens())
    assert day.line().allowed.most.input_uncached > 0, "nobody knows what it read of that one"


def test_who_was_refused_elsewhere_first_is_not_loose(day: Day) -> None:
    refused = Refused(site=SiteName("sydney"), rule="saturated", detail="queue_full, 3 s")
    day.booked(10, 20, exactly(5, 100), replica=THERE, tried=(refused,), attempts=2)
    day.counted(21, 5, 100, replica=THERE)
    day.store.still_heard([(THERE, 1)], day_at=START, now=START + 100 * S)
    line = day.line(THERE)
    assert (line.verdict, line.reasons) == ("equal", ())


def test_a_stream_that_went_on_within_its_site_is_known_by_evidence(day: Day) -> None:
    event = day.booked(10, 20, exactly(5, 10))
    seen = replace(event, replica=BESIDE, attempts=2, reporter="evidence", decision=None)
    day.book.note_evidence([seen], now=1)
    day.counted(21, 5, 4)
    day.counted(21, 9, 6, replica=BESIDE)
    for name in (HERE, BESIDE):
        day.store.still_heard([(name, 1)], day_at=START, now=START + 100 * S)
    assert [day.line(name).verdict for name in (HERE, BESIDE)] == ["within", "within"]
    assert day.line(BESIDE).difference == Counts(input_uncached=9, output=6)


def test_a_request_over_midnight_is_explained_on_both_days(day: Day) -> None:
    night = DAY_NS / S
    day.counted(night - 1, 50, 40)
    day.counted(night + 2, 50, 44)
    day.booked(night - 300, night - 200, exactly(50, 36))
    day.booked(night - 5, night + 30, exactly(3, 14))
    day.counted(night + 40, 53, 50)
    day.store.still_heard([(HERE, 1)], day_at=START + DAY_NS, now=START + DAY_NS + 99 * S)
    first, second = day.line(), day.line(day_at=START + DAY_NS)
    assert first.difference == Counts(output=4)
    assert second.difference == Counts(output=-4)
    assert first.verdict == second.verdict == "within"
    assert first.reasons == second.reasons == (Reason(cause="midnight", requests=1),)


def test_only_an_engine_that_answers_is_noted_as_heard(day: Day) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)
        heard = FleetState(clock)

        async def offload(call):  # type: ignore[no-untyped-def]
            return call()

        reconciler = Reconciler(day.store, heard, clock=clock, offload=offload)
        running = asyncio.create_task(reconciler.run())
        load = ReplicaLoad(
            id=HERE, model=ModelName("tiny-fable"), generation=1, state="ready", pid=1, running=0,
            waiting=0, restarts=0, prompt_tokens_total=5, cached_tokens_total=0,
            output_tokens_total=3,
        )
        begun = clock.wall_ns()
        for sequence in range(1, 121):
            is_up = sequence < 60
            digest = SiteDigest(
                site=SiteName("sydney"), epoch=1, sequence=sequence, at=1, loads=(),
                replicas=(load if is_up else replace(load, state="failed"),),
            )
            heard.on_message("digest.sydney", fleet.encode(digest))
            await asyncio.sleep(1)
        running.cancel()
        for begun_s in (5, 57):  # the second while it was told of last
            at = begun + begun_s * S
            event = replace(
                a_usage_event(uuid7(at, begun_s)), received_at=at, finished_at=at + S,
                replica=HERE, tokens=exactly(5, 3),
            )
            day.book.book_usage([event], now=1)
        line = day.line(day_at=day_of(begun))
        assert (line.verdict, line.difference.output) == ("within", -3)
        assert line.reasons == (Reason(cause="silent", requests=1),)
        early = replace(event, request_id=RequestId(uuid7(begun, 7)), received_at=begun,
                        finished_at=begun + 15 * S)
        day.book.book_usage([early], now=1)
        assert day.line(day_at=day_of(begun)).verdict == "differs", "it was heard since"

    run(main())
