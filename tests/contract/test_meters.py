"""Events of meters on a real PostgreSQL: each judged by itself, for ever, never dropped."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from typing import Any, LiteralString

import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.meters import PostgresMeters
from isochrone.adapters.postgres.pool import Pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.core.billing.charge import PerUnit
from isochrone.core.billing.ledger import Account
from isochrone.core.billing.meter_event import SECOND_NS, MeterEvent
from isochrone.core.billing.sheet import HOUR_NS, Facts, Meter, Price, Recurring, When
from isochrone.core.ids import ModelName, OrgId, RequestId
from isochrone.core.metering.event import Tokens
from isochrone.core.money import PICO
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.ledger import Spent
from tests.contract.test_control_api import Api, api  # noqa: F401 - a fixture
from tests.contract.test_ledger import (
    MINE,
    NOVEMBER,
    ORG,
    PROJECT,
    START,
    a_report,
    a_sheet,
    charge_all,
    sell_at,
    spent_by,
    spent_pico,
)


@pytest.fixture
def meters(pool: Pool) -> PostgresMeters:
    return PostgresMeters(pool)


def an_event(name: str = "e1", meter: str = "bytes", **changes: Any) -> MeterEvent:
    event = MeterEvent(
        id=name, org_id=ORG, project_id=PROJECT, amount=10, from_at=START,
        facts=Facts(meter=meter),  # type: ignore[arg-type]
    )
    return replace(event, **changes)


def gpus(name: str, level: int, begin_s: int, end_s: int, **changes: Any) -> MeterEvent:
    return an_event(
        name, "gpu_seconds", amount=level, from_at=START + begin_s * SECOND_NS,
        until_at=START + end_s * SECOND_NS, facts=Facts(meter="gpu_seconds", kind="H100"),
        **changes,
    )


def add(meters: PostgresMeters, *events: MeterEvent) -> list[str]:
    return [each.verdict for each in meters.add_events(MINE, events, now=1)]


def hours(pool: Pool) -> dict[tuple[str, int], int]:
    """(meter, hours since the start) -> amount."""
    with pool.transaction(EVERY_TENANT) as connection:
        rows = connection.execute(
            "SELECT meter, (hour_at - %s) / %s, sum(amount) FROM meter_hours GROUP BY 1, 2",
            (START, HOUR_NS),
        ).fetchall()
    return {(meter, hour): int(amount) for meter, hour, amount in rows if amount}


def test_each_event_is_judged_by_itself(meters: PostgresMeters, pool: Pool) -> None:
    first = an_event()
    assert add(
        meters, first, first, replace(first, amount=11), an_event("e2", "phone_minutes"),
        an_event("e3", amount=-1), an_event("e4", "output_tokens"), an_event("e5", "active_users"),
        an_event("e6", until_at=START + 5), gpus("e7", 1, 5, 5),
        an_event("e8", org_id=OrgId("other")), an_event("e9"),
    ) == [
        "accepted", "duplicate", "conflicting", "unmetered", "refused", "refused", "refused",
        "refused", "refused", "refused", "accepted",
    ]
    assert add(meters, first, an_event("e2", "phone_minutes")) == ["duplicate", "duplicate"]
    assert [each.id for each in meters.unmetered(MINE, most=9)] == ["e2"]
    assert meters.unmetered(Scope(org_id=OrgId("other")), most=9) == []
    assert hours(pool) == {("bytes", 0): 20}


def test_what_is_held_is_counted_by_time_and_split_at_hours(
    meters: PostgresMeters, pool: Pool
) -> None:
    assert add(meters, gpus("a", 8, 1800, 3 * 3600), gpus("b", 1, 0, 60)) == ["accepted"] * 2
    assert hours(pool) == {
        ("gpu_seconds", 0): 8 * 1800 + 60, ("gpu_seconds", 1): 8 * 3600,
        ("gpu_seconds", 2): 8 * 3600,
    }
    # It ended earlier than was said; what it replaces no longer counts.
    assert add(meters, gpus("c", 8, 1800, 3600, replaces="a")) == ["accepted"]
    assert hours(pool) == {("gpu_seconds", 0): 8 * 1800 + 60}
    assert add(
        meters, gpus("d", 8, 0, 60, replaces="a"), gpus("e", 8, 0, 60, replaces="lost"),
        an_event("f", replaces="c"),
    ) == ["conflicting"] * 3
    assert add(meters, gpus("g", 4, 1800, 3600, replaces="c")) == ["accepted"]
    assert hours(pool) == {("gpu_seconds", 0): 4 * 1800 + 60}


def test_peaks_and_users_are_counted_once_an_hour(meters: PostgresMeters, pool: Pool) -> None:
    add(
        meters, an_event("a", "peak_streams", amount=5), an_event("b", "peak_streams", amount=9),
        an_event("c", "peak_streams", amount=7),
        an_event("d", "active_users", subject="x"), an_event("e", "active_users", subject="y"),
        an_event("f", "active_users", subject="x"),
        an_event("g", "active_users", subject="x", from_at=START + HOUR_NS),
    )
    assert hours(pool) == {
        ("peak_streams", 0): 9, ("active_users", 0): 2, ("active_users", 1): 1
    }


def test_the_order_of_arrival_does_not_matter(meters: PostgresMeters, pool: Pool) -> None:
    def kept(org: str) -> list[tuple[object, ...]]:
        with pool.transaction(EVERY_TENANT) as connection:
            return connection.execute(
                "SELECT project_id, hour_at, meter, kind, amount, digest FROM meter_hours"
                " WHERE org_id = %s ORDER BY hour_at, meter", (org,)
            ).fetchall()

    told = [gpus("a", 2, 0, 5000), an_event("b"), gpus("c", 1, 100, 9000)]
    for number, order in enumerate(permutations(told)):
        org = OrgId(f"org-{number}")
        for event in order:
            meters.add_events(EVERY_TENANT, [replace(event, org_id=org)] * 2, now=1)
        assert kept(org) == kept("org-0") != []


def test_sums_of_hours_are_made_again_to_the_same_bytes(meters: PostgresMeters, pool: Pool) -> None:
    add(
        meters, gpus("a", 8, 1800, 3 * 3600), an_event("b"), an_event("c", "peak_streams"),
        an_event("d", "active_users", subject="x"),
    )

    def kept() -> list[tuple[object, ...]]:
        with pool.transaction(EVERY_TENANT) as connection:
            return connection.execute(
                "SELECT * FROM meter_hours WHERE amount <> 0 ORDER BY meter, hour_at"
            ).fetchall()

    right = kept()
    assert meters.make_hours_again(since=0, until=2**62) == 0
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("UPDATE meter_hours SET amount = 7 WHERE meter = 'bytes'")
        connection.execute(
            "UPDATE meter_hours SET digest = 0::bit(128) WHERE hour_at > %s", (START,)
        )
        connection.execute(
            "INSERT INTO meter_hours SELECT org_id, project_id, hour_at, 'egress', model, class,"
            " site, bound, kind, 1, digest FROM meter_hours WHERE meter = 'bytes'"
        )
    assert meters.make_hours_again(since=START + HOUR_NS, until=START + 2 * HOUR_NS) == 1
    assert meters.make_hours_again(since=0, until=2**62) == 3
    assert meters.make_hours_again(since=0, until=2**62) == 0
    assert kept() == right


def test_an_amended_request_is_charged_as_amended(meters: PostgresMeters, pool: Pool) -> None:
    ledger, book = PostgresLedger(pool), PostgresBook(pool)
    sell_at(PostgresPrices(pool), a_sheet())
    booked = a_report(1, output=1_000)
    guessed = replace(a_report(2), reporter="evidence")
    book.book_usage([booked, guessed], now=1)
    charge_all(ledger, START + HOUR_NS)
    before = spent_pico(ledger)
    right = an_event(
        "a", "output_tokens", amount=400, request_id=booked.request_id,
        facts=Facts(meter="output_tokens", model=ModelName("whatever")),
    )
    lost = RequestId("01a1f640-bfe8-7000-8000-00000000ffff")
    assert add(
        meters, right, right, replace(right, id="b"), replace(right, request_id=lost, id="c"),
        replace(right, request_id=guessed.request_id, id="d"),
    ) == ["accepted", "duplicate", "conflicting", "conflicting", "conflicting"]
    charge_all(ledger, START + HOUR_NS)
    assert before - spent_pico(ledger) == 600 * 2 * 10**6
    assert add(meters, replace(right, id="e", amount=1_000, replaces="a")) == ["accepted"]
    charge_all(ledger, START + HOUR_NS)
    (spent,) = ledger.spent(MINE, NOVEMBER, now=START, org_id=None, project_id=None)
    assert isinstance(spent, Spent)
    assert spent.rated.total_pico == spent.charged_pico == before


def test_a_request_that_did_not_count_is_amended_from_nothing(
    meters: PostgresMeters, pool: Pool
) -> None:
    """A refusal counts for no meter, so taking its request away takes nothing from the others."""
    ledger, book = PostgresLedger(pool), PostgresBook(pool)
    each = Price(
        name="requests", when=When(meters=frozenset[Meter](("requests",))),
        charge=PerUnit(price_pico=PICO),
    )
    sell_at(PostgresPrices(pool), a_sheet(prices=(each,)))
    refused = replace(a_report(1), outcome="refused", tokens=Tokens())
    book.book_usage([refused, a_report(2)], now=1)
    gone = an_event("a", "requests", amount=0, request_id=refused.request_id)
    assert add(meters, gone) == ["accepted"]
    charge_all(ledger, START + HOUR_NS)
    assert spent_pico(ledger) == PICO
    counted = replace(gone, id="b", amount=1, replaces="a")
    assert add(meters, counted, counted) == ["accepted", "duplicate"]
    assert spent_pico(ledger) == 2 * PICO


def test_what_is_told_of_hours_to_come_is_not_spent_yet(
    meters: PostgresMeters, pool: Pool
) -> None:
    """A machine that is held until later is told when it begins, and a typo may be of any day."""
    each = Price(
        name="gpus", when=When(meters=frozenset[Meter](("gpu_seconds",))),
        charge=PerUnit(price_pico=PICO),
    )
    sell_at(PostgresPrices(pool), a_sheet(prices=(each,)))
    assert add(meters, gpus("a", 1, 0, 3 * 3600)) == ["accepted"]
    ledger = PostgresLedger(pool)

    def spent_at(now: int) -> list[int]:
        return [each.rated.total_pico for each in spent_by(ledger, now=now)]

    assert spent_at(START - 1) == []
    assert spent_at(START) == spent_at(START + HOUR_NS - 1) == [3600 * PICO]
    assert spent_at(START + 2 * HOUR_NS) == spent_at(NOVEMBER.end) == [3 * 3600 * PICO]


def test_an_event_of_the_wrong_month_that_is_replaced_leaves_nothing_owed_there(
    meters: PostgresMeters, pool: Pool
) -> None:
    support = Recurring(name="support", amount_pico=300 * PICO)
    sell_at(PostgresPrices(pool), a_sheet(recurring=(support,)))
    ledger, closed = PostgresLedger(pool), NOVEMBER.end + HOUR_NS
    assert add(meters, an_event("typo")) == ["accepted"]
    charge_all(ledger, closed)
    before = spent_by(ledger, now=NOVEMBER.begin)
    assert sum(each.rated.total_pico for each in before) == 0, "asked before the month began"
    owed = {account.kind: amount for (account, _), amount in _balances(ledger).items()}
    assert owed["owed"] == -300 * PICO
    assert add(meters, an_event("e2", from_at=closed, replaces="typo")) == ["accepted"]
    charge_all(ledger, closed)
    assert _balances(ledger) == {}
    (spent,) = ledger.spent(MINE, NOVEMBER, now=closed, org_id=None, project_id=None)
    assert isinstance(spent, Spent)
    assert (spent.rated.total_pico, spent.charged_pico) == (0, 0)


def _balances(ledger: PostgresLedger) -> Mapping[tuple[Account, str], int]:
    return ledger.balances(MINE, org_id=None, project_id=None)


def test_an_id_that_two_tell_at_once_is_judged_for_each(
    meters: PostgresMeters, pool: Pool
) -> None:
    """Of different meters, so that no lock parts them."""
    with ThreadPoolExecutor(1) as threads, pool.transaction(EVERY_TENANT) as connection:
        connection.execute(
            "INSERT INTO meter_events (org_id, id, project_id, meter, amount, from_at, subject,"
            " model, class, site, bound, kind, was, is_metered, arrived_at)"
            " VALUES ('org', 'e1', 'project', 'luck', 1, 1, '', '', '', '', false, '', 0, false, 1)"
        )
        told = threads.submit(add, meters, an_event("e1"), an_event("e2"))
        while not _waits(pool):
            pass
        connection.commit()
        assert told.result() == ["conflicting", "accepted"]


def test_requests_and_hours_are_locked_in_one_order(meters: PostgresMeters, pool: Pool) -> None:
    """So that batches that name them in other orders, and charging, cannot wait in a circle."""
    first, last = a_report(1), a_report(2)
    PostgresBook(pool).book_usage([first, last], now=1)
    amended = [
        an_event(f"a{number}", "output_tokens", request_id=each.request_id)
        for number, each in enumerate((last, first))
    ]
    rows = "SELECT 1 FROM usage WHERE request_id = %s FOR UPDATE"
    assert _is_locked_meanwhile(
        meters, pool, amended, rows, (last.request_id,), (first.request_id,)
    )
    late, peak = an_event("b", from_at=START + HOUR_NS), an_event("p", "peak_streams")
    add(meters, late, peak)
    rows = "SELECT 1 FROM meter_hours WHERE meter = %s AND hour_at = %s FOR UPDATE"
    assert not _is_locked_meanwhile(
        meters, pool, [replace(late, id="c"), replace(peak, id="q")], rows,
        ("peak_streams", START), ("bytes", START + HOUR_NS),
    )


def _is_locked_meanwhile(
    meters: PostgresMeters, pool: Pool, events: list[MeterEvent], rows: LiteralString,
    held: tuple[object, ...], asked: tuple[object, ...],
) -> bool:
    """Whether adding the events has locked the row `asked` while it waits for the row `held`."""
    with ThreadPoolExecutor(1) as threads, pool.transaction(EVERY_TENANT) as connection:
        assert connection.execute(rows, held).fetchone() is not None
        told = threads.submit(add, meters, *events)
        while not _waits(pool):
            pass
        with pool.transaction(EVERY_TENANT) as other:
            free = other.execute(f"{rows} SKIP LOCKED", asked).fetchone()
        connection.commit()
        assert told.result() == ["accepted", "accepted"]
    return free is None


def _waits(pool: Pool) -> bool:
    """Whether somebody waits for another's transaction."""
    with pool.transaction() as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        ).fetchone()
    return row is not None and row[0] > 0


def test_events_come_in_over_the_api(api: Api) -> None:  # noqa: F811
    event = {
        "id": "g", "meter": "gpu_seconds", "amount": 2, "kind": "H100",
        "at": "2026-11-20T00:00:00Z", "until": "2026-11-20T01:00:00Z",
    }
    body = {"events": [event, event, {**event, "id": "x", "meter": "luck", "until": None}]}
    status, said = api.call("POST", "meters/events", body)
    assert status == 200
    assert [each["result"] for each in said["items"]] == ["accepted", "duplicate", "unmetered"]
    assert [each["id"] for each in api.call("GET", "meters/unmetered")[1]["items"]] == ["x"]
    wrong: list[list[dict[str, object]]] = [
        [], [{**event, "at": "now"}], [{**event, "at": "9" * 5_000}], [{"id": "x"}],
    ]
    for bad in ({"events": events} for events in wrong):
        assert api.call("POST", "meters/events", bad)[0] == 422
    vague = {**event, "id": "v", "model": "", "kind": "", "site": ""}
    for result in ("accepted", "duplicate"):
        items = api.call("POST", "meters/events", {"events": [vague]})[1]["items"]
        assert [each["result"] for each in items] == [result], "what is empty was left out"
    known, lost = {**event, "id": "y"}, {**event, "id": "z", "project_id": "lost"}
    items = api.call("POST", "meters/events", {"events": [lost, known]})[1]["items"]
    assert [each["result"] for each in items] == ["refused", "accepted"]
    assert items[0]["reason"] == "there is no project 'lost'"
    owner = api.tenant("acme")
    assert api.call("POST", "meters/events", body, key=owner)[0] == 403
    first = api.call("GET", "meters/events?limit=1")[1]
    rest = api.call("GET", f"meters/events?limit=1000&after={first['next']}")[1]
    kept = [each["id"] for each in (*first["items"], *rest["items"])]
    assert kept == sorted(
        each["id"] for each in (*said["items"], *items, {"id": "v", "result": "accepted"})
        if each["result"] in ("accepted", "unmetered")
    )
    assert rest["next"] is None
    assert api.call("GET", "meters/events", key=owner)[1]["items"] == [], "of another organisation"
    for named, by in (("org_id=lost", None), ("project_id=lost", None), ("org_id=default", owner)):
        assert api.call("GET", f"meters/events?{named}", **({"key": by} if by else {}))[0] == 404
    assert api.call("GET", "meters/unmetered", key=owner)[1]["items"] == []
