"""Checks a whole book: entries sum to zero, projections are what they are projections of.

For backups and their restoration; works on one connection that sees every tenant's rows.
"""

from collections import defaultdict
from typing import LiteralString

import psycopg
from psycopg.rows import TupleRow

from isochrone.adapters.postgres.hours import count_wrong
from isochrone.adapters.postgres.meters import wrong_meter_hours
from isochrone.wire.backup import BookTotals, LedgerSum

EVER = 1 << 62

_Connection = psycopg.Connection[TupleRow]

# What is said of it -> how many there are of it.
_COUNTS: dict[str, LiteralString] = {
    "postings whose entries do not sum to zero":
        "SELECT count(*) FROM (SELECT 1 FROM postings LEFT JOIN entries USING (org_id, key)"
        " GROUP BY org_id, key HAVING sum(amount_pico) IS DISTINCT FROM 0) AS wrong",
    "entries of no posting":
        "SELECT count(*) FROM entries e WHERE NOT EXISTS ("
        " SELECT FROM postings p WHERE p.org_id = e.org_id AND p.key = e.key)",
    "projects whose open holds are not what is held for them":
        "SELECT count(*) FROM ("
        " SELECT org_id, project_id, currency, sum(amount_pico) AS held"
        " FROM entries JOIN postings USING (org_id, key) WHERE account = 'held' GROUP BY 1, 2, 3"
        ") AS entered FULL JOIN ("
        " SELECT org_id, project_id, currency, sum(amount_pico) AS held FROM holds"
        " WHERE state = 'open' GROUP BY 1, 2, 3"
        ") AS opened USING (org_id, project_id, currency)"
        " WHERE coalesce(entered.held, 0) <> coalesce(opened.held, 0)",
    "organisations whose charges are not their revenue":
        "SELECT count(*) FROM ("
        " SELECT org_id, currency, sum(amount_pico) AS amount"
        " FROM entries JOIN postings USING (org_id, key) WHERE account = 'revenue' GROUP BY 1, 2"
        ") AS entered FULL JOIN ("
        " SELECT org_id, currency, sum(amount_pico) AS amount FROM standing_charges GROUP BY 1, 2"
        ") AS charged USING (org_id, currency)"
        " WHERE coalesce(entered.amount, 0) <> coalesce(charged.amount, 0)",
}


def problems_of_book(connection: _Connection) -> list[str]:
    """What is wrong with the book, one line each; none where all agrees."""
    counts = {what: _number(connection, query) for what, query in _COUNTS.items()}
    counts["sums by hour that are not those of the requests"] = count_wrong(connection, 0, EVER)
    counts["sums by hour that are not those of the events"] = len(
        wrong_meter_hours(connection, 0, EVER)
    )
    return [f"{count} {what}" for what, count in counts.items() if count]


def totals_of_book(connection: _Connection) -> BookTotals:
    """What all hours and all accounts come to."""
    row = connection.execute(
        "SELECT coalesce(sum(requests), 0), coalesce(sum(input_uncached), 0),"
        " coalesce(sum(input_cached), 0), coalesce(sum(output), 0) FROM request_hours"
    ).fetchone()
    assert row is not None, "a sum is always a row"
    ledger: defaultdict[tuple[str, str], int] = defaultdict(int)
    for account, currency, amount in connection.execute(
        "SELECT account, currency, sum(amount_pico) FROM entries JOIN postings USING (org_id, key)"
        " GROUP BY 1, 2"
    ):
        ledger[account, currency] += int(amount)
    requests, uncached, cached, output = (str(int(each)) for each in row)
    return BookTotals(
        requests=requests, input_uncached=uncached, input_cached=cached, output=output,
        ledger=tuple(
            LedgerSum(account=account, currency=currency, amount_pico=str(amount))
            for (account, currency), amount in sorted(ledger.items())
        ),
    )


def _number(connection: _Connection, query: LiteralString) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None, "a count is always a row"
    return int(row[0])
