"""What charging reads and writes: hours of usage, charges that stand, projects that are due.

Sums of requests make four quantities each; other meters have their own table. Hours before the
first that is charged anew come summed up by facts, for each sheet apart.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg.rows import TupleRow

from isochrone.core.billing.charging import Charge, HourUsage, Payer
from isochrone.core.billing.period import DAY_NS, month_of
from isochrone.core.billing.rate import Period, Quantity
from isochrone.core.billing.sheet import Facts, PriceSheet
from isochrone.core.ids import OrgId
from isochrone.ports.ledger import Due, SpentDay

_Connection = psycopg.Connection[TupleRow]

_TOKENS: LiteralString = (
    "CROSS JOIN LATERAL (VALUES ('requests', requests),"
    " ('input_uncached_tokens', input_uncached), ('input_cached_tokens', input_cached),"
    " ('output_tokens', output)) AS of_row (meter, amount)"
)
# Quantities of all meters, hour by hour.
USED: LiteralString = (
    "SELECT org_id, project_id, hour_at, meter, model, class, site, bound, '' AS kind,"
    f" amount::numeric, due FROM request_hours {_TOKENS}"
    " UNION ALL SELECT org_id, project_id, hour_at, meter, model, class, site, bound, kind,"
    " amount, due FROM meter_hours"
)
_HOURS: LiteralString = (
    "org_id = %(org)s AND project_id = %(project)s AND hour_at >= %(since)s AND hour_at < %(until)s"
)


def due_projects(connection: _Connection, *, before: int) -> list[Due]:
    """By organisation, project and period."""
    rows = connection.execute(
        "SELECT org_id, project_id, hour_at FROM request_hours WHERE due AND hour_at < %(before)s"
        " UNION SELECT org_id, project_id, hour_at FROM meter_hours"
        " WHERE due AND hour_at < %(before)s",
        {"before": before},
    ).fetchall()
    found = {(org, project, month_of(hour_at)) for org, project, hour_at in rows}
    rows = connection.execute(
        "SELECT org_id, project_id, begin_at FROM charged_periods"
        " WHERE closed_at IS NULL AND begin_at < %s",
        (month_of(before).begin,),
    ).fetchall()
    found |= {(org, project, month_of(begin_at)) for org, project, begin_at in rows}
    return [
        Due(payer=Payer(org_id=org, project_id=project), period=period)
        for org, project, period in sorted(
            found, key=lambda each: (each[0], each[1], each[2].begin)
        )
    ]


def note_period(
    connection: _Connection, payer: Payer, period: Period, *, closed_at: int | None
) -> None:
    """The period was charged, and, unless None, all of it at `closed_at`. One that was closed by a
    clock that is ahead is opened again: what is once a period was just taken back."""
    connection.execute(
        "INSERT INTO charged_periods AS known (org_id, project_id, begin_at, closed_at)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT (org_id, project_id, begin_at)"
        " DO UPDATE SET closed_at = excluded.closed_at"
        " WHERE (known.closed_at IS NULL) <> (excluded.closed_at IS NULL)",
        (payer.org_id, payer.project_id, period.begin, closed_at),
    )


def open_periods(connection: _Connection, *, since: int, org_id: OrgId | None) -> None:
    """Those from this one on are to be charged again, of one organisation or of all: what is once
    a period may be another amount now, also where no hour is."""
    connection.execute(
        "UPDATE charged_periods SET closed_at = NULL WHERE closed_at IS NOT NULL"
        " AND begin_at >= %(since)s AND (%(org)s::text IS NULL OR org_id = %(org)s)",
        {"since": since, "org": org_id},
    )


def load_hours(
    connection: _Connection,
    payer: Payer,
    period: Period,
    sheets: Sequence[PriceSheet],
    *,
    since: int,
    until: int,
) -> tuple[list[Quantity], list[HourUsage]]:
    """What was used before `since`, summed up, and the hours from there until before `until`."""
    marks = sorted({sheet.valid_from for sheet in sheets})
    arguments = {
        **_of(payer), "begin": period.begin, "since": since, "until": until, "marks": marks,
    }
    rows = connection.execute(
        "SELECT min(hour_at), meter, model, class, site, bound, kind, sum(amount)"
        f" FROM ({USED}) AS used WHERE org_id = %(org)s AND project_id = %(project)s"
        " AND hour_at >= %(begin)s AND hour_at < %(since)s AND amount <> 0"
        " GROUP BY width_bucket(hour_at, %(marks)s::bigint[]), 2, 3, 4, 5, 6, 7",
        arguments,
    ).fetchall()
    earlier = [_quantity(row) for row in rows]
    rows = connection.execute(
        "SELECT hour_at, meter, model, class, site, bound, kind, sum(amount)"
        f" FROM ({USED}) AS used WHERE {_HOURS} GROUP BY 1, 2, 3, 4, 5, 6, 7",
        arguments,
    ).fetchall()
    by_hour: defaultdict[int, list[Quantity]] = defaultdict(list)
    for row in rows:
        by_hour[row[0]].append(_quantity(row))
    digests = connection.execute(
        "SELECT hour_at, bit_xor(digest) FROM ("
        f"  SELECT hour_at, digest FROM request_hours WHERE {_HOURS} UNION ALL"
        f"  SELECT hour_at, digest FROM meter_hours WHERE {_HOURS}) AS used GROUP BY 1 ORDER BY 1",
        arguments,
    ).fetchall()
    return earlier, [
        HourUsage(
            hour_at=hour_at, digest=f"{int(digest, 2):032x}",
            quantities=tuple(each for each in by_hour[hour_at] if each.amount),
        )
        for hour_at, digest in digests
    ]


def load_standing(
    connection: _Connection, payer: Payer, period: Period, *, since: int
) -> dict[tuple[str, int], Charge]:
    """The charges that stand of the period's hours from `since` on."""
    rows = connection.execute(
        "SELECT item, hour_at, revision, quantity, amount_pico, currency, sheet, digest"
        " FROM standing_charges WHERE org_id = %(org)s AND project_id = %(project)s"
        " AND hour_at >= %(since)s AND hour_at < %(end)s",
        {**_of(payer), "since": since, "end": period.end},
    ).fetchall()
    return {
        (item, hour_at): Charge(
            payer=payer, item=item, hour_at=hour_at, revision=revision, quantity=int(quantity),
            amount_pico=int(amount), currency=currency, sheet=sheet, digest=digest,
        )
        for item, hour_at, revision, quantity, amount, currency, sheet, digest in rows
    }


def add_charges(connection: _Connection, charges: Sequence[Charge], now: int) -> None:
    """Add new revisions."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO charges (org_id, project_id, item, hour_at, revision, quantity,"
            " amount_pico, currency, sheet, digest, charged_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            [
                (each.payer.org_id, each.payer.project_id, each.item, each.hour_at, each.revision,
                 each.quantity, each.amount_pico, each.currency, each.sheet, each.digest, now)
                for each in charges
            ],
        )


def spent_projects(
    connection: _Connection, period: Period, mine: Mapping[str, Any], *, until: int
) -> list[Payer]:
    """Projects of `mine` that used something in the period before `until`."""
    rows = connection.execute(
        f"SELECT DISTINCT org_id, project_id FROM ({USED}) AS used"
        " WHERE hour_at >= %(begin)s AND hour_at < %(until)s"
        " AND (%(org)s::text IS NULL OR org_id = %(org)s)"
        " AND (%(project)s::text IS NULL OR project_id = %(project)s) ORDER BY 1, 2",
        {**mine, "begin": period.begin, "until": until},
    ).fetchall()
    return [Payer(org_id=org, project_id=project) for org, project in rows]


def charged_days(
    connection: _Connection, period: Period, mine: dict[str, Any]
) -> list[SpentDay]:
    """Charges that stand, summed by project and day of UTC."""
    rows = connection.execute(
        "SELECT org_id, project_id, hour_at / %(day)s * %(day)s, currency, sum(amount_pico)"
        " FROM standing_charges WHERE hour_at >= %(begin)s AND hour_at < %(end)s"
        " AND (%(org)s::text IS NULL OR org_id = %(org)s)"
        " AND (%(project)s::text IS NULL OR project_id = %(project)s)"
        " GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4",
        {**mine, "begin": period.begin, "end": period.end, "day": DAY_NS},
    ).fetchall()
    return [
        SpentDay(
            payer=Payer(org_id=org, project_id=project), at=at, currency=currency,
            charged_pico=int(amount),
        )
        for org, project, at, currency, amount in rows
    ]


def _of(payer: Payer) -> dict[str, Any]:
    return {"org": payer.org_id, "project": payer.project_id}


def _quantity(row: TupleRow) -> Quantity:
    hour_at, meter, model, class_, site, bound, kind, amount = row[:8]
    return Quantity(
        facts=Facts(
            meter=meter, model=model or None, class_=class_ or None, site=site or None,
            bound=bound, kind=kind or None,
        ),
        hour_at=hour_at, amount=int(amount),
    )

