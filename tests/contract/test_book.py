"""The book on a real PostgreSQL: each request once, whatever the order and number of reports."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.pool import Pool, open_pool
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import KeyId, ModelName, OrgId, ReplicaId, RequestId, SiteName, uuid7
from isochrone.core.metering.event import Reporter, Tokens, UsageEvent
from isochrone.core.metering.merge import better
from isochrone.core.routing.choice import Ground, GroundSite, Stopped
from isochrone.core.world.tenant import Scope
from isochrone.ports.book import Parked, UsageFilter, UsageGroup
from tests.unit.build_usage import a_decision, a_ground, a_usage_event

ALL = Scope(org_id=None)
S = 1_000_000_000
DAY = 86_400 * S


@pytest.fixture
def book(pool: Pool) -> PostgresBook:
    return PostgresBook(pool)


def a_report(number: int = 1, *, reporter: Reporter = "ingress", output: int = 3) -> UsageEvent:
    """Request `number`, received `number` seconds into 2026-11-20."""
    at = 20_777 * DAY + number * S
    event = a_usage_event(uuid7(at, number), reporter=reporter, output=output)
    return replace(event, received_at=at, finished_at=at + S)


def only(book: PostgresBook) -> UsageEvent:
    """The single booked event, with its decision."""
    (row,) = book.requests(ALL, UsageFilter(), most=10)
    booked = book.request(ALL, row.event.request_id)
    assert booked is not None
    return booked.event


def test_an_event_comes_back_as_it_was(book: PostgresBook) -> None:
    plain = a_report(1)
    full = replace(
        a_report(2), client_request_id='tab\tline\nback\\slash "quote" \u00e9', revision="sha",
        replica=ReplicaId("sydney/tiny/0"), reason="x", decision=a_decision(a_ground()),
        tokens=Tokens(input_uncached=0, input_cached=7, output=2**40, source="running"),
    )
    nothing = replace(
        a_report(3), serving_site=None, serving_country=None, ingress_country=None,
        chosen_ms=None, sent_ms=None, first_byte_ms=None, outcome="refused", status=403,
        tokens=Tokens(),
    )
    assert book.book_usage([plain, full, nothing], now=5) == 3
    for event in (plain, full, nothing):
        booked = book.request(ALL, event.request_id)
        assert booked is not None
        assert (booked.event, booked.booked_at) == (event, 5)


def test_reports_of_one_request_leave_the_better_one_in_every_order(book: PostgresBook) -> None:
    reports = [
        a_report(reporter="recovered", output=9),
        a_report(reporter="evidence", output=2),
        a_report(reporter="evidence", output=4),
        replace(a_report(output=3), decision=a_decision(a_ground())),
    ]
    for number, order in enumerate(itertools.permutations(reports), start=1):
        request = RequestId(uuid7(number * S, number))
        told = [replace(report, request_id=request) for report in order]
        if number % 2:
            book.book_usage(told, now=1)  # at once
        else:
            for report in told:
                book.book_usage([report, report], now=1)  # one by one, each twice
        booked = book.request(ALL, request)
        assert booked is not None
        best = told[0]
        for report in told:
            best = better(best, report)
        assert booked.event == best
    assert len(book.requests(ALL, UsageFilter(), most=100)) == 24


def test_the_same_batch_again_changes_nothing(book: PostgresBook) -> None:
    batch = [a_report(number) for number in range(1, 101)]
    assert book.book_usage(batch, now=1) == 100
    assert book.book_usage(batch, now=2) == 0
    assert book.book_usage([*batch, a_report(101)], now=3) == 1
    rows = book.requests(ALL, UsageFilter(), most=200)
    assert [row.booked_at for row in rows] == [1] * 100 + [3]
    assert book.book_usage([], now=4) == 0


def test_what_cannot_be_stored_is_refused_whole(book: PostgresBook) -> None:
    good = a_report(1)
    infinite = replace(a_decision(a_ground()), prefill_ms=float("inf"))
    for bad in (
        replace(a_report(2), request_id=RequestId("mine")),
        replace(a_report(2), tokens=Tokens(output=-1)),
        replace(a_report(2), tokens=Tokens(output=2**63)),
        replace(a_report(2), reason="nul \0 byte"),
        replace(a_report(2), total_ms=float("nan")),
        replace(a_report(2), decision=infinite),
    ):
        with pytest.raises(InvalidInput):
            book.book_usage([good, bad], now=1)
    assert book.requests(ALL, UsageFilter(), most=10) == []
    assert book.book_usage([good], now=1) == 1


def test_a_request_comes_with_the_ground_that_its_own_ingress_told(book: PostgresBook) -> None:
    ground, twin = a_ground(sites=3), a_ground(sites=40)
    report = replace(a_report(1), decision=a_decision(ground))
    book.book_usage([report, replace(a_report(2), decision=a_decision(a_ground("lost")))], now=1)
    impostor = [(SiteName("frankfurt"), twin)]
    assert book.keep_grounds(impostor, now=1) == 1
    assert _ground_of(book, report) is None
    told = [(SiteName("sydney"), ground)] * 2
    assert book.keep_grounds(told, now=2) == 1
    assert book.keep_grounds([*told, (SiteName("sydney"), twin)], now=3) == 0
    assert _ground_of(book, report) == ground
    assert _ground_of(book, a_report(2)) is None
    (first, _) = book.requests(ALL, UsageFilter(), most=10)
    assert (first.event.decision, first.ground) == (None, None)


def _ground_of(book: PostgresBook, event: UsageEvent) -> Ground | None:
    booked = book.request(ALL, event.request_id)
    assert booked is not None
    return booked.ground


def test_a_ground_that_cannot_be_stored_is_refused_whole(book: PostgresBook) -> None:
    sydney, good = SiteName("sydney"), a_ground("good")
    far = GroundSite(site=SiteName("x"), rtt_ms=float("inf"), rtt_source="emulated")
    nul = GroundSite(site=SiteName("nul \0 byte"), rtt_ms=1.0, rtt_source="emulated")
    for bad in (replace(good, id="bad", open_sites=(each,)) for each in (far, nul)):
        with pytest.raises(InvalidInput):
            book.keep_grounds([(sydney, good), (sydney, bad)], now=1)
    assert book.keep_grounds([(sydney, good)], now=1) == 1


def test_a_decision_of_another_shape_stays_in_its_row_and_is_not_shown(
    book: PostgresBook, pool: Pool
) -> None:
    report = a_report(1)
    book.book_usage([report], now=1)
    with pool.transaction() as connection:
        connection.execute("""UPDATE usage SET decision = '{"choice": {"candidates": []}}'""")
    assert only(book) == report


def test_a_request_comes_with_what_each_site_says_of_its_stops(book: PostgresBook) -> None:
    def stopped(site: str, request: UsageEvent, reporter: Reporter = "evidence") -> UsageEvent:
        stop = Stopped(
            site=SiteName(site), replica=None, for_class="reserved", since_ms=1.0, output=2,
        )
        decision = replace(
            a_decision(a_ground()), ground="" if reporter == "evidence" else "ground-1",
            stops=(stop,),
        )
        return replace(
            request, reporter=reporter, serving_site=SiteName(site), decision=decision
        )

    def sites(scope: Scope, number: int) -> list[str]:
        booked = book.request(scope, a_report(number).request_id)
        assert booked is not None
        return [each.site for each in booked.stops]

    for number in (1, 2, 3):
        told = a_report(number)
        book.note_evidence([
            stopped("paris", replace(told, received_at=told.received_at + 2)),
            stopped("berlin", replace(told, received_at=told.received_at + 1)),
            replace(told, reporter="evidence", serving_site=SiteName("oslo")),
        ], now=1)
    book.book_usage([stopped("sydney", a_report(1), "ingress"), a_report(2)], now=1)
    assert sites(ALL, 1) == ["sydney", "berlin", "paris"]
    assert sites(Scope(org_id=OrgId("org")), 2) == ["berlin", "paris"]
    # Evidence that stands in for an ingress is not told twice.
    book.book_overdue_evidence(9, now=9)
    assert sorted(sites(ALL, 3)) == ["berlin", "paris"]


def test_evidence_is_booked_when_the_ingress_stays_silent_and_yields_to_its_late_report(
    book: PostgresBook,
) -> None:
    evidence = a_report(reporter="evidence", output=5)
    assert book.note_evidence([evidence, evidence], now=100) == 1
    assert book.note_evidence([evidence], now=150) == 0
    assert book.book_overdue_evidence(100, now=200) == 0  # not older than that
    assert book.requests(ALL, UsageFilter(), most=10) == []

    assert book.book_overdue_evidence(101, now=200) == 1
    assert only(book) == replace(evidence, outcome="ingress_lost")
    assert book.book_overdue_evidence(1000, now=2000) == 0

    assert book.book_usage([a_report(reporter="recovered", output=50)], now=300) == 0
    late = a_report(output=4)
    assert book.book_usage([late], now=400) == 1
    assert only(book) == late


def test_evidence_replaces_a_recovered_report_but_not_one_of_the_ingress(
    book: PostgresBook,
) -> None:
    book.book_usage([a_report(1, reporter="recovered"), a_report(2)], now=1)
    told = [a_report(number, reporter="evidence", output=8) for number in (1, 2)]
    book.note_evidence(told, now=1)
    assert book.book_overdue_evidence(2, now=2) == 2
    first, second = (row.event for row in book.requests(ALL, UsageFilter(), most=10))
    assert (first.reporter, first.tokens.output) == ("evidence", 8)
    assert second == a_report(2)


def test_better_evidence_of_a_site_that_was_settled_is_settled_again(book: PostgresBook) -> None:
    """As when a site gave its slot back and served the rest later, and the ingress died."""
    begun = a_report(reporter="evidence", output=2)
    book.note_evidence([begun], now=1)
    assert book.book_overdue_evidence(9, now=9) == 1
    rest = replace(begun, tokens=Tokens(input_uncached=5, output=9, source="engine"))
    assert book.note_evidence([rest], now=20) == 1
    assert book.book_overdue_evidence(20, now=21) == 0, "its own wait begins anew"
    assert book.book_overdue_evidence(21, now=22) == 1
    assert only(book).tokens.output == 9
    assert book.note_evidence([begun, rest], now=30) == 0
    assert book.book_overdue_evidence(99, now=99) == 0


def test_evidence_of_two_sites_books_the_larger_work_once(book: PostgresBook) -> None:
    broken = a_report(reporter="evidence", output=2)
    whole = replace(broken, serving_site=SiteName("ashburn"), tokens=Tokens(output=9))
    assert book.note_evidence([broken, whole], now=1) == 2
    assert book.book_overdue_evidence(9, now=9, most=1) == 1
    assert book.book_overdue_evidence(9, now=9, most=1) == 1
    assert only(book).tokens.output == 9


def test_requests_come_in_pages_and_only_those_chosen(book: PostgresBook) -> None:
    events = [
        replace(
            a_report(number),
            serving_site=SiteName("sydney" if number % 2 else "ashburn"),
            key_id=KeyId(f"key-{number % 3}"),
        )
        for number in range(1, 8)
    ]
    book.book_usage(list(reversed(events)), now=1)
    seen, after = [], None
    while page := book.requests(ALL, UsageFilter(), most=3, after=after):
        seen += [row.event for row in page]
        after = page[-1].event.request_id
    assert seen == events
    seen, after = [], None
    while page := book.requests(ALL, UsageFilter(), most=3, after=after, newest=True):
        seen += [row.event for row in page]
        after = page[-1].event.request_id
    assert seen == events[::-1]

    def numbers(chosen: UsageFilter) -> list[int]:
        rows = book.requests(ALL, chosen, most=100)
        return [events.index(row.event) + 1 for row in rows]

    assert numbers(UsageFilter(since=events[2].received_at)) == [3, 4, 5, 6, 7]
    assert numbers(UsageFilter(until=events[2].received_at)) == [1, 2]
    assert numbers(UsageFilter(site=SiteName("ashburn"))) == [2, 4, 6]
    assert numbers(UsageFilter(key_id=KeyId("key-0"), site=SiteName("ashburn"))) == [6]
    assert numbers(UsageFilter(model=ModelName("other"))) == []
    assert numbers(UsageFilter(ingress=events[0].ingress_site)) == [1, 2, 3, 4, 5, 6, 7]
    assert numbers(UsageFilter(ingress=SiteName("ashburn"))) == []
    with pytest.raises(InvalidInput, match="after"):
        book.requests(ALL, UsageFilter(), most=1, after="x")


def test_a_tenant_sees_only_its_own(book: PostgresBook) -> None:
    mine, other = a_report(1), replace(a_report(2), org_id=OrgId("other"))
    book.book_usage([mine, other], now=1)
    scope = Scope(org_id=OrgId("org"))
    assert [row.event for row in book.requests(scope, UsageFilter(), most=9)] == [mine]
    assert book.request(scope, mine.request_id) is not None
    assert book.request(scope, other.request_id) is None
    assert book.request(ALL, RequestId("not an id")) is None
    (total,) = book.totals(scope, UsageFilter(), "model", most=9)
    assert total.requests == 1


def test_totals_add_up_in_every_grouping(book: PostgresBook) -> None:
    served = [replace(a_report(number), key_id=KeyId(f"k{number % 2}")) for number in range(4)]
    served[3] = replace(served[3], tokens=replace(served[3].tokens, source="counted"))
    refused = replace(
        a_report(5), received_at=20_778 * DAY, serving_site=None, serving_country=None,
        outcome="refused",
        tokens=Tokens(),
    )
    book.book_usage([*served, refused], now=1)
    names: dict[UsageGroup, list[str]] = {
        "key": ["k0", "k1", "key"],
        "model": ["tiny-fable"],
        "site": ["", "sydney"],
        "country": ["", served[0].serving_country or "none"],
        "class": ["on_demand"],
        "day": ["2026-11-20", "2026-11-21"],
    }
    for group, wanted in names.items():
        totals = book.totals(ALL, UsageFilter(), group, most=10)
        assert [total.name for total in totals] == wanted
        assert sum(total.requests for total in totals) == 5
        assert sum(total.finished for total in totals) == 4
        # The one that was counted; in the refused one there was nothing to measure.
        assert sum(total.unmeasured for total in totals) == 1
        if group in ("site", "country"):
            assert [total.unmeasured for total in totals] == [0, 1]
        assert sum(total.input_uncached for total in totals) == 20
        assert sum(total.output for total in totals) == 12
        assert min(total.first_at for total in totals) == served[0].received_at
        assert max(total.last_at for total in totals) == refused.received_at
        paged = book.totals(ALL, UsageFilter(), group, most=10, after=wanted[0])
        assert [total.name for total in paged] == wanted[1:]


def test_replica_totals_count_what_each_replica_served(book: PostgresBook) -> None:
    events = [replace(a_report(number), replica=ReplicaId("r1")) for number in (1, 2)]
    book.book_usage([*events, a_report(3)], now=1)
    (total,) = book.replica_totals(since=0)
    assert (total.replica, total.site, total.requests, total.output) == ("r1", "sydney", 2, 6)
    assert book.replica_totals(since=events[1].received_at + 1) == []


def test_parked_messages_are_kept_once(book: PostgresBook) -> None:
    message = Parked(id="a", subject="usage.x", payload=b"\x00\xff", reason="not a batch")
    book.park([message], now=1)
    book.park([message, replace(message, id="b")], now=2)
    assert [each.id for each in book.parked(most=10)] == ["b", "a"]
    assert book.parked(most=10)[1] == message


def test_two_bookers_at_once_book_each_request_once(database: str) -> None:
    """Two connections with overlapping batches in opposite orders: no deadlock, no double."""
    batch = [a_report(number, reporter="recovered") for number in range(1, 301)]
    better_ones = [a_report(number) for number in range(1, 301)]
    pools = [open_pool(database) for _ in range(2)]
    books = [PostgresBook(each) for each in pools]
    with ThreadPoolExecutor(2) as workers:
        for _ in range(5):
            results = [
                workers.submit(books[0].book_usage, [*batch, *better_ones], now=1),
                workers.submit(books[1].book_usage, list(reversed(better_ones)), now=1),
            ]
            for result in results:
                result.result(timeout=30)
    rows = books[0].requests(ALL, UsageFilter(), most=1000)
    assert [row.event for row in rows] == better_ones
    for each in pools:
        each.close()
