"""The ledger on a real PostgreSQL: zero-sum for ever, charged once, right after late usage."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import psycopg
import pytest

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.pool import Pool, open_pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.control.charging import Charging, charge_now
from isochrone.core.billing.charge import Graduated, PerUnit, Tier
from isochrone.core.billing.charging import Payer
from isochrone.core.billing.hold import Hold, Settle
from isochrone.core.billing.ledger import Account, Entry, Posting, unwinding
from isochrone.core.billing.period import month_of
from isochrone.core.billing.rate import Period
from isochrone.core.billing.sheet import (
    HOUR_NS,
    METERS,
    Fee,
    Meter,
    Price,
    PriceSheet,
    Recurring,
    When,
)
from isochrone.core.errors import Conflict, InvalidInput, NotFound, TooMuchMoney
from isochrone.core.ids import OrgId, ProjectId, uuid7
from isochrone.core.metering.event import Tokens, UsageEvent
from isochrone.core.money import LARGEST, PICO
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.ledger import Due, Ledger, Spent, Unrated
from isochrone.ports.prices import Prices, StoredSheet
from isochrone.ports.tenants import Once
from tests.unit.build_usage import a_usage_event

S = 1_000_000_000
T = TypeVar("T")
DAY = 86_400 * S
NOVEMBER = month_of(20_777 * DAY)
START = 20_777 * DAY  # 2026-11-20
ORG, PROJECT = OrgId("org"), ProjectId("project")
MINE = Scope(org_id=ORG)
CREDIT = Account(kind="credit", org_id=ORG, project_id=PROJECT)
OWED = Account(kind="owed", org_id=ORG, project_id=PROJECT)
REVENUE = Account(kind="revenue", org_id=ORG)
CASH = Account(kind="cash", org_id=ORG)


@pytest.fixture
def ledger(pool: Pool) -> PostgresLedger:
    return PostgresLedger(pool)


@pytest.fixture
def book(pool: Pool) -> PostgresBook:
    return PostgresBook(pool)


@pytest.fixture
def prices(pool: Pool) -> PostgresPrices:
    return PostgresPrices(pool)


def a_sheet(**changes: object) -> PriceSheet:
    """Output at 2 EUR a million, then 1 from ten thousand on; input at 0.5."""
    output, inputs = frozenset[Meter](("output_tokens",)), frozenset(METERS[:2])
    tiers = (Tier(up_to=10_000, price_pico=2 * PICO), Tier(up_to=None, price_pico=PICO))
    sheet = PriceSheet(
        id="standard", version=1, currency="EUR", valid_from=0,
        prices=(
            Price(
                name="output", when=When(meters=output), charge=Graduated(tiers=tiers, per=10**6)
            ),
            Price(
                name="input", when=When(meters=inputs),
                charge=PerUnit(price_pico=PICO // 2, per=10**6),
            ),
        ),
    )
    return replace(sheet, **changes)  # type: ignore[arg-type]


def sell_at(prices: Prices, sheet: PriceSheet, only_for: OrgId | None = None) -> None:
    prices.add_sheet(
        EVERY_TENANT, StoredSheet(sheet=sheet, only_for=only_for, created_at=START), once=None
    )


def a_report(number: int, *, hour: int = 0, output: int = 3) -> UsageEvent:
    at = START + hour * HOUR_NS + number * S
    event = a_usage_event(uuid7(at, number), output=output)
    return replace(event, received_at=at, finished_at=at + S)


def charge_all(ledger: Ledger, before: int) -> int:
    return sum(
        ledger.charge(each, before=before, now=before)
        for each in ledger.due(before=before, now=before)
    )


def at(ledger: PostgresLedger, account: Account) -> int:
    return ledger.balances(MINE, org_id=None, project_id=None).get((account, "EUR"), 0)


def spent_by(
    ledger: PostgresLedger, project_id: ProjectId | None = None, *, now: int = NOVEMBER.end
) -> list[Spent]:
    """Of each project, which all can be rated."""
    found = ledger.spent(EVERY_TENANT, NOVEMBER, now=now, org_id=None, project_id=project_id)
    known = [each for each in found if isinstance(each, Spent)]
    assert len(known) == len(found)
    return known


def spent_pico(ledger: PostgresLedger) -> int:
    return sum(each.rated.total_pico for each in spent_by(ledger))


def zero_sum(pool: Pool) -> bool:
    with pool.transaction(EVERY_TENANT) as connection:
        row = connection.execute("SELECT coalesce(sum(amount_pico), 0) FROM entries").fetchone()
    assert row is not None
    return bool(row[0] == 0)


def a_credit(key: str = "top-up", euros: int = 10) -> Posting:
    return Posting(
        org_id=ORG, key=key, kind="credit", at=1, currency="EUR", about="payment",
        entries=(
            Entry(account=CREDIT, amount_pico=euros * PICO),
            Entry(account=CASH, amount_pico=-euros * PICO),
        ),
    )


def test_a_posting_is_recorded_once_and_comes_back_as_it_was(ledger: PostgresLedger) -> None:
    posting = a_credit()
    assert ledger.record(MINE, posting, now=5) == "recorded"
    assert ledger.record(MINE, posting, now=6) == "duplicate"
    assert ledger.record(MINE, replace(posting, about="another"), now=6) == "conflict"
    undone = unwinding(posting, key="undo", at=2, about="a mistake")
    assert ledger.record(MINE, undone, now=7) == "recorded"
    with pytest.raises(Conflict):
        ledger.record(MINE, unwinding(posting, key="twice", at=2, about="x"), now=8)
    rows = ledger.postings(MINE, org_id=None, project_id=PROJECT, most=9)
    assert [(row.posting, row.recorded_at) for row in rows] == [(posting, 5), (undone, 7)]
    assert ledger.postings(MINE, org_id=None, project_id=None, most=9, after=rows[0].number) == [
        rows[1]
    ]
    assert ledger.balances(MINE, org_id=None, project_id=None) == {}
    with pytest.raises(InvalidInput, match="not to zero"):
        ledger.record(MINE, replace(posting, key="k", entries=posting.entries[:1] * 2), now=9)
    with pytest.raises(NotFound):
        ledger.balances(MINE, org_id=OrgId("other"), project_id=None)


def test_the_database_itself_keeps_the_ledger(ledger: PostgresLedger, database: str) -> None:
    ledger.record(MINE, a_credit(), now=1)
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("SET isochrone.tenant = '*'")
        for statement in (
            "UPDATE entries SET amount_pico = 1", "DELETE FROM entries", "DELETE FROM postings",
            "UPDATE charges SET quantity = 1", "TRUNCATE entries",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                owner.execute(statement)
        with pytest.raises(psycopg.errors.CheckViolation, match="sum to zero"):
            owner.execute(
                "INSERT INTO entries VALUES ('org', 'top-up', 7, 'cash', '', 1)"
            )
        with pytest.raises(psycopg.errors.CheckViolation, match="sum to zero"):
            owner.execute(
                "INSERT INTO postings (org_id, key, kind, at, currency, about, recorded_at)"
                " VALUES ('org', 'empty', 'credit', 1, 'EUR', 'x', 1)"
            )


def test_hours_are_charged_when_they_are_over_and_late_usage_corrects_them(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices, pool: Pool
) -> None:
    sell_at(prices, a_sheet())
    book.book_usage([a_report(1, output=6_000), a_report(2, hour=1, output=6_000)], now=1)
    assert charge_all(ledger, START) == 0
    assert charge_all(ledger, START + HOUR_NS) == 2  # output and input of the first hour
    assert charge_all(ledger, START + HOUR_NS) == 0
    assert at(ledger, REVENUE) == 6_000 * 2 * PICO // 10**6 + 5 * PICO // 2 // 10**6
    assert charge_all(ledger, START + 2 * HOUR_NS) == 2
    assert at(ledger, REVENUE) == spent_pico(ledger) == -at(ledger, OWED)

    # Late usage of the first hour moves the second one into the cheaper tier.
    book.book_usage([a_report(3, output=5_000)], now=2)
    assert charge_all(ledger, START + 2 * HOUR_NS) == 3
    assert at(ledger, REVENUE) == spent_pico(ledger) == (
        (10_000 * 2 + 7_000) * PICO // 10**6 + 3 * 5 * PICO // 2 // 10**6
    )
    kinds = [
        row.posting.kind for row in ledger.postings(MINE, org_id=None, project_id=None, most=99)
    ]
    assert (kinds.count("charge"), kinds.count("correction")) == (7, 3)
    assert zero_sum(pool)


def test_a_charge_names_the_digest_of_all_requests_of_its_hour(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices, pool: Pool
) -> None:
    sell_at(prices, a_sheet())

    def digests() -> list[str]:
        rows = ledger.postings(MINE, org_id=None, project_id=None, most=99)
        charges = [row.posting.about for row in rows if row.posting.kind == "charge"]
        return [about.rpartition("/")[2] for about in charges if about.startswith("output")]

    def of_rows() -> str:
        with pool.transaction(EVERY_TENANT) as connection:
            row = connection.execute(
                "SELECT bit_xor(usage_mark(request_id, input_uncached, input_cached, output))::text"
                " FROM usage"
            ).fetchone()
        assert row is not None
        return f"{int(row[0], 2):032x}"

    told = [a_report(number) for number in range(5)]
    book.book_usage(told, now=1)
    charge_all(ledger, START + HOUR_NS)
    first = of_rows()
    assert digests() == [first]
    book.book_usage([*told[::-1], a_report(9)], now=2)
    charge_all(ledger, START + HOUR_NS)
    assert digests() == [first, of_rows()]
    assert first != of_rows()


def test_a_better_report_takes_back_what_the_worse_one_was_charged(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices
) -> None:
    sell_at(prices, a_sheet())
    worse = replace(a_report(1, output=50), reporter="recovered")
    book.book_usage([worse], now=1)
    charge_all(ledger, START + HOUR_NS)
    nothing = replace(a_report(1), tokens=Tokens(), outcome="refused", serving_site=None)
    book.book_usage([nothing], now=2)
    assert charge_all(ledger, START + HOUR_NS) == 2
    assert (at(ledger, REVENUE), spent_pico(ledger)) == (0, 0)
    assert book.wrong_hours(since=0, until=2**62) == 0


def test_what_is_once_a_period_is_charged_when_it_is_over(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices
) -> None:
    sell_at(
        prices, a_sheet(recurring=(Recurring(name="support", amount_pico=30 * PICO),),
                        fees=(Fee(name="service", of=frozenset(), basis_points=1000),)),
    )
    book.book_usage([a_report(1, output=10_000)], now=1)
    charge_all(ledger, NOVEMBER.end - HOUR_NS)
    usage = at(ledger, REVENUE)
    assert charge_all(ledger, NOVEMBER.end) == 2
    assert at(ledger, REVENUE) == usage + 30 * PICO + round(usage / 10)
    assert ledger.due(before=NOVEMBER.end, now=NOVEMBER.end) == []
    # Late usage after the end shifts the fee as well.
    book.book_usage([a_report(2, output=10_000)], now=2)
    assert charge_all(ledger, NOVEMBER.end + HOUR_NS) == 3
    (spent,) = ledger.spent(MINE, NOVEMBER, now=NOVEMBER.end, org_id=None, project_id=None)
    assert isinstance(spent, Spent)
    assert at(ledger, REVENUE) == spent.rated.total_pico == spent.charged_pico


def test_charging_now_in_the_last_hour_ends_no_period(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices
) -> None:
    """What is once a period was charged at once, unwound when late usage came, and never again."""
    sell_at(prices, a_sheet(recurring=(Recurring(name="support", amount_pico=300 * PICO),)))
    book.book_usage([a_report(1)], now=1)
    charge_now(ledger, now=NOVEMBER.end - HOUR_NS // 2)
    assert 0 < at(ledger, REVENUE) < PICO
    book.book_usage([a_report(2)], now=1)
    charge_all(ledger, NOVEMBER.end - HOUR_NS)
    assert 0 < at(ledger, REVENUE) < PICO
    charge_all(ledger, NOVEMBER.end)
    assert at(ledger, REVENUE) > 300 * PICO


def test_a_copy_whose_clock_is_behind_opens_the_period_again(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices
) -> None:
    sell_at(prices, a_sheet(recurring=(Recurring(name="support", amount_pico=300 * PICO),)))
    book.book_usage([a_report(1)], now=1)
    charge_all(ledger, NOVEMBER.end)
    book.book_usage([a_report(2)], now=1)
    charge_all(ledger, NOVEMBER.end - HOUR_NS)
    charge_all(ledger, NOVEMBER.end)
    assert at(ledger, REVENUE) > 300 * PICO
    assert charge_all(ledger, NOVEMBER.end) == 0


def test_unpriced_usage_is_told_and_charged_once_it_has_a_price(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices
) -> None:
    book.book_usage([a_report(1)], now=1)
    assert charge_all(ledger, START + HOUR_NS) == 0
    (spent,) = ledger.spent(MINE, NOVEMBER, now=START, org_id=None, project_id=None)
    assert isinstance(spent, Spent)
    assert {each.facts.meter: each.amount for each in spent.rated.unpriced} == {
        "requests": 1, "input_uncached_tokens": 5, "output_tokens": 3,
    }
    sell_at(prices, a_sheet())
    assert charge_all(ledger, START + HOUR_NS) == 2


def test_an_own_sheet_counts_from_its_first_hour_on(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices, pool: Pool
) -> None:
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("INSERT INTO organisations VALUES ('org', 'org', 1)")
    flat = PerUnit(price_pico=PICO, per=1)
    sell_at(prices, a_sheet())
    own = a_sheet(
        id="contract", valid_from=START + HOUR_NS,
        prices=(Price(name="all", when=When(meters=frozenset(("output_tokens",))), charge=flat),),
    )
    sell_at(prices, own, ORG)
    assert prices.sheets(Scope(org_id=OrgId("other")))[-1].sheet.id == "standard"
    book.book_usage([a_report(1, output=5), a_report(2, hour=1, output=7)], now=1)
    charge_all(ledger, START + 2 * HOUR_NS)
    assert at(ledger, REVENUE) == spent_pico(ledger) == (
        5 * 2 * PICO // 10**6 + 5 * PICO // 2 // 10**6 + 7 * PICO
    )


def test_sheets_are_versions_that_never_change(prices: PostgresPrices) -> None:
    once = Once(caller="me", key="k", body_sha256="a")
    new = StoredSheet(sheet=a_sheet(), only_for=None, created_at=START)
    first = prices.add_sheet(EVERY_TENANT, new, once=once)
    assert prices.add_sheet(EVERY_TENANT, new, once=once) == first == new
    later = replace(new, sheet=a_sheet(valid_from=START + 48 * HOUR_NS))
    second = prices.add_sheet(EVERY_TENANT, later, once=None)
    assert second.sheet.version == 2
    assert prices.sheets(EVERY_TENANT) == [first, second]
    assert [each.version for each in prices.applying(ORG)] == [1, 2]
    with pytest.raises(Conflict, match="EUR"):
        prices.add_sheet(
            EVERY_TENANT, replace(new, sheet=a_sheet(currency="USD")), once=None
        )
    with pytest.raises(InvalidInput, match="before this month"):
        prices.add_sheet(EVERY_TENANT, replace(new, sheet=a_sheet(valid_from=0)), once=None)
    with pytest.raises(Conflict, match="same organisation"):
        prices.add_sheet(EVERY_TENANT, replace(later, only_for=ORG), once=None)
    lost = replace(later, sheet=replace(later.sheet, id="own"), only_for=OrgId("lost"))
    with pytest.raises(NotFound):
        prices.add_sheet(EVERY_TENANT, lost, once=None)


def test_two_chargers_and_two_bookers_at_once_end_with_the_right_amount(
    database: str, prices: PostgresPrices
) -> None:
    """Real connections: no deadlock, no charge twice, whatever is settled while usage comes in."""
    sell_at(prices, a_sheet())
    pools = [open_pool(database) for _ in range(4)]
    ledgers = [PostgresLedger(each) for each in pools[:2]]
    books = [PostgresBook(each) for each in pools[2:]]
    batches = [
        [
            replace(
                a_report(number * 50 + each, hour=each % 4, output=100),
                project_id=ProjectId(f"p{each % 5}"),
            )
            for each in range(50)
        ]
        for number in range(8)
    ]
    end = START + 4 * HOUR_NS

    def book_all(book: PostgresBook, order: list[list[UsageEvent]]) -> None:
        for batch in order:
            book.book_usage(batch, now=1)

    with ThreadPoolExecutor(4) as workers:
        booking = [
            workers.submit(book_all, books[0], batches),
            workers.submit(book_all, books[1], [batch[::-1] for batch in batches[::-1]]),
        ]
        charging = [workers.submit(charge_all, ledger, end) for ledger in ledgers * 3]
        for each in booking:
            each.result(timeout=60)
        for done in charging:
            done.result(timeout=60)
    charge_all(ledgers[0], end)
    assert books[0].wrong_hours(since=0, until=2**62) == 0
    assert at(ledgers[0], REVENUE) == spent_pico(ledgers[0]) > 0
    assert zero_sum(pools[0])
    for each_pool in pools:
        each_pool.close()


def test_sums_are_made_again_to_the_same_bytes(book: PostgresBook, pool: Pool) -> None:
    book.book_usage([a_report(number, hour=number % 3) for number in range(20)], now=1)

    def kept() -> list[tuple[object, ...]]:
        with pool.transaction(EVERY_TENANT) as connection:
            return connection.execute("SELECT * FROM request_hours ORDER BY hour_at").fetchall()

    right = kept()
    with pool.transaction(EVERY_TENANT) as connection:
        connection.execute("UPDATE request_hours SET output = output + 1 WHERE hour_at = %s",
                           (START,))
        connection.execute("UPDATE request_hours SET digest = 0::bit(128) WHERE hour_at > %s",
                           (START + HOUR_NS,))
    assert book.wrong_hours(since=0, until=2**62) == 2
    assert book.wrong_hours(since=START + HOUR_NS, until=2**62) == 1
    assert book.make_hours_again(since=0, until=2**62) == 2
    assert kept() == right


def test_holds_in_the_store_follow_the_core(ledger: PostgresLedger, pool: Pool) -> None:
    ledger.record(MINE, a_credit(), now=1)
    hold = Hold(
        id="r1", org_id=ORG, project_id=PROJECT, currency="EUR", amount_pico=3 * PICO,
        opened_at=1, expires_at=100,
    )
    assert ledger.open_hold(hold, now=1) == "recorded"
    assert ledger.open_hold(hold, now=2) == "duplicate"
    assert ledger.open_hold(replace(hold, amount_pico=1), now=2) == "conflict"
    assert ledger.expire_holds(now=99) == 0
    assert ledger.expire_holds(now=100) == 1
    assert ledger.expire_holds(now=100) == 0
    assert at(ledger, CREDIT) == 10 * PICO
    settled = ledger.step_hold(ORG, "r1", Settle(used_pico=PICO), now=150)
    assert (settled.state, at(ledger, CREDIT), at(ledger, OWED)) == ("settled", 9 * PICO, PICO)
    assert ledger.step_hold(ORG, "r1", "void", now=160) == settled
    with pytest.raises(NotFound):
        ledger.step_hold(ORG, "r2", "void", now=160)
    with pytest.raises(NotFound):
        ledger.step_hold(OrgId("other"), "r1", "void", now=160)
    assert zero_sum(pool)


def test_a_period_without_usage_owes_nothing(ledger: PostgresLedger) -> None:
    due = Due(
        payer=Payer(org_id=ORG, project_id=PROJECT), period=Period(begin=0, end=24 * HOUR_NS)
    )
    assert ledger.charge(due, before=HOUR_NS, now=1) == 0


def owed(project: str) -> Account:
    return Account(kind="owed", org_id=ORG, project_id=ProjectId(project))


class At:
    """A clock that stands."""

    def wall_ns(self) -> int:
        return START + 3 * HOUR_NS

    def monotonic_ns(self) -> int:
        return self.wall_ns()


async def directly(call: Callable[[], T]) -> T:
    return call()


def test_a_project_that_comes_to_too_much_keeps_nobody_else_from_being_charged(
    ledger: PostgresLedger, book: PostgresBook, prices: PostgresPrices
) -> None:
    """A slip in a sheet of an earlier release, which took any amount."""
    dear = Price(
        name="output", when=When(meters=frozenset[Meter](("output_tokens",))),
        charge=PerUnit(price_pico=LARGEST // 4),
    )
    sell_at(prices, a_sheet(prices=(dear,)))
    for number, (project, output) in enumerate((("p", 5), ("q", 1), ("r", 5))):
        report = replace(a_report(number, output=output), project_id=ProjectId(project))
        book.book_usage([report], now=START)
    charging = Charging(ledger, clock=At(), offload=directly)
    assert asyncio.run(charging.charge_due()) == 1
    with pytest.raises(TooMuchMoney, match=r"project '[pr]' of 'org'"):
        charge_now(ledger, now=START)
    with pytest.raises(TooMuchMoney, match="project 'p' of 'org'"):
        spent_by(ledger, ProjectId("p"))
    told = ledger.spent(EVERY_TENANT, NOVEMBER, now=START, org_id=None, project_id=None)
    dear_p, right, dear_r = told
    assert isinstance(right, Spent)
    assert right.rated.total_pico == LARGEST // 4
    for each in (dear_p, dear_r):
        assert isinstance(each, Unrated)
        assert (each.currency, each.charged_pico) == ("EUR", 0)
        assert each.reason.startswith(f"project '{each.payer.project_id}' of 'org': an amount")
    assert spent_by(ledger, ProjectId("q"), now=START) == [right]
    sell_at(prices, a_sheet(id="mended", valid_from=NOVEMBER.begin))
    assert asyncio.run(charging.charge_due()) == 6, "input and output of each"
    assert at(ledger, owed("p")) == at(ledger, owed("r")) < at(ledger, owed("q")) < 0
    assert at(ledger, REVENUE) == spent_pico(ledger)
