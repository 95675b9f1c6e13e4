"""Settlement under disorder and kill -9: what is booked and charged equals an oracle."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from random import Random
from typing import TypeVar

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.migrate import migrate
from isochrone.adapters.postgres.pool import Pool, open_pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.core.billing.rate import Quantity, rate
from isochrone.core.billing.sheet import Facts, Meter
from isochrone.core.errors import StoreUnavailable
from isochrone.core.ids import RequestId
from isochrone.core.metering.event import UsageEvent
from isochrone.core.metering.merge import better
from isochrone.core.world.tenant import EVERY_TENANT
from tests.contract.test_ledger import NOVEMBER, a_sheet, sell_at, zero_sum
from tests.contract.test_postgres_server import Server, server  # noqa: F401 - a fixture
from tests.fixtures.postgres import wait_until
from tests.fixtures.settling_worker import BATCH, charge_all, reports, settle

T = TypeVar("T")

EVENTS = int(os.environ.get("ISOCHRONE_EVENTS", "3000"))


def oracle(told: Sequence[UsageEvent]) -> dict[str, int]:
    """What each project has to be charged in the end, from the reports alone."""
    best: dict[RequestId, UsageEvent] = {}
    for event in told:
        known = best.get(event.request_id)
        best[event.request_id] = event if known is None else better(known, event)
    usage: defaultdict[str, defaultdict[Meter, int]] = defaultdict(lambda: defaultdict(int))
    for event in best.values():
        sums, tokens = usage[event.project_id], event.tokens
        sums["input_uncached_tokens"] += tokens.input_uncached
        sums["input_cached_tokens"] += tokens.input_cached
        sums["output_tokens"] += tokens.output
    sheet = a_sheet()
    return {
        project: rate(
            [
                Quantity(facts=Facts(meter=meter), hour_at=NOVEMBER.begin, amount=amount)
                for meter, amount in sums.items()
            ],
            [sheet], NOVEMBER,
        ).total_pico
        for project, sums in usage.items()
    }


def charged(pool: Pool) -> dict[str, int]:
    ledger = PostgresLedger(pool)
    charge_all(ledger)
    found = ledger.balances(EVERY_TENANT, org_id=None, project_id=None)
    return {
        account.project_id: -amount for (account, _), amount in found.items()
        if account.kind == "owed" and account.project_id is not None
    }


def check(pool: Pool, told: Sequence[UsageEvent]) -> None:
    assert charged(pool) == oracle(told)
    assert PostgresBook(pool).wrong_hours(since=0, until=2**62) == 0
    assert zero_sum(pool)
    with pool.transaction(EVERY_TENANT) as connection:
        row = connection.execute("SELECT count(*) FROM usage").fetchone()
    assert row == (len({event.request_id for event in told}),)


def test_disordered_repeated_and_late_events_equal_the_oracle(pool: Pool) -> None:
    sell_at(PostgresPrices(pool), a_sheet())
    told = reports(EVENTS, Random(3))
    settle(pool, told)
    check(pool, told)


def test_kill_9_in_the_middle_of_settling_loses_and_doubles_nothing(database: str) -> None:
    pool = open_pool(database)
    sell_at(PostgresPrices(pool), a_sheet())
    chance = Random(5)
    for _ in range(3):
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.fixtures.settling_worker", database, "9", "1500"],
            stdout=subprocess.PIPE,
        )
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"booking\n"
            time.sleep(chance.uniform(0.0, 0.4))  # anywhere within its work
            worker.send_signal(signal.SIGKILL)
        finally:
            worker.kill()
            worker.communicate()
        assert zero_sum(pool)
        assert PostgresBook(pool).wrong_hours(since=0, until=2**62) == 0
    told = reports(1500, Random(9))
    settle(pool, told)
    check(pool, told)
    pool.close()


def test_kill_9_of_postgres_in_the_middle_of_settling_loses_and_doubles_nothing(
    server: Server,  # noqa: F811
) -> None:
    """What was not acknowledged is told again, as the durable stream does, though it may have been
    committed before the reply was lost."""
    migrate(server.plan.conninfo)
    pool = open_pool(server.plan.conninfo)
    sell_at(PostgresPrices(pool), a_sheet())
    book, ledger, told = PostgresBook(pool), PostgresLedger(pool), reports(3000, Random(13))
    batches = [told[first : first + BATCH] for first in range(0, len(told), BATCH)]
    acknowledged: list[int] = []
    lost: list[StoreUnavailable] = []

    def insist(call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                lost.append(error)

    def run(order: Sequence[list[UsageEvent]]) -> None:
        for number, batch in enumerate(order):
            insist(partial(book.book_usage, batch, now=1))
            acknowledged.append(number)
            if number % 4 == 0:
                insist(partial(charge_all, ledger))

    with ThreadPoolExecutor(2) as workers:
        middle = len(batches) // 2 + 1
        settling = [workers.submit(run, half) for half in (
            batches[:middle], batches[: middle - 2 : -1],
        )]
        for kills in range(1, 4):
            wait_until(partial(reached, acknowledged, 7 * kills), "more was acknowledged")
            server.process.kill()
            server.process.wait()
            server.again()
        for each in settling:
            each.result(timeout=60)
    assert len(lost) >= 3, "each time somebody was in the middle of it"
    check(pool, told)
    pool.close()


def reached(acknowledged: list[int], count: int) -> bool:
    return len(acknowledged) >= count
