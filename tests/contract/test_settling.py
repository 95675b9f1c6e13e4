"""Settlement under disorder and kill -9: what is booked and charged equals an oracle."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from random import Random

from isochrone.adapters.postgres.book import PostgresBook
from isochrone.adapters.postgres.ledger import PostgresLedger
from isochrone.adapters.postgres.pool import Pool, open_pool
from isochrone.adapters.postgres.prices import PostgresPrices
from isochrone.core.billing.rate import Quantity, rate
from isochrone.core.billing.sheet import Facts, Meter
from isochrone.core.ids import RequestId
from isochrone.core.metering.event import UsageEvent
from isochrone.core.metering.merge import better
from isochrone.core.world.tenant import EVERY_TENANT
from tests.contract.test_ledger import NOVEMBER, a_sheet, sell_at, zero_sum
from tests.fixtures.settling_worker import charge_all, reports, settle

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
