"""Reconciliation of engines, usage and charges: of any day as the book is now, and kept reports."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.instants import day_at
from isochrone.control.api.paging import Listed
from isochrone.control.api.shapes import Body
from isochrone.control.reconciling import report_of
from isochrone.core.billing.period import DAY_NS, day_name, day_of
from isochrone.core.errors import InvalidInput, NotFound


class ReportShape(BaseModel):
    """`findings` is empty where all agrees, `explained` where that is to the token. The fields are
    those of docs/metering.md."""

    day_at: int
    agrees: bool
    findings: list[str]
    explained: list[str]
    replicas: list[dict[str, Any]]
    meters: list[dict[str, Any]]
    wrong_sums: int
    parked: int
    unmetered: int
    late: int


class Mending(Body):
    """`day`: as 2026-11-20, UTC; by default today."""

    day: str | None = None


class Mended(BaseModel):
    """How many sums were wrong."""

    wrong: int


class KeptShape(BaseModel):
    """A day's report as it was made, an hour after the day."""

    day_at: int
    agrees: bool
    made_at: int
    findings: list[str]


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/reconciliation", tags=["money"])
    store = context.registry.reconciling
    may = access(context)

    @router.get("")
    def reconciliation(
        caller: Annotated[Caller, may("reconcile")],
        day: Annotated[str | None, Query(max_length=40)] = None,
    ) -> ReportShape:
        """Compare what engines counted, what was booked and what was charged on a day (2026-11-20,
        UTC; by default today), as the book is now."""
        at = _asked(context, day)
        # Requests that ended on the day may have come on the one before.
        away = context.registry.usage_days.detached(
            since=day_of(at) - DAY_NS, until=day_of(at) + DAY_NS
        )
        if away:
            name = day_name(away[-1].day_at)
            raise NotFound(
                f"{day_name(day_of(at))} cannot be compared: requests of {name} were detached from"
                f" the book; bring them back with `isochrone days attach {name}`, or read the"
                " report that was made then (GET /api/v1/reconciliation/reports)"
            )
        report = report_of(store, day_of(at))
        return ReportShape(agrees=report.agrees, **msgspec.to_builtins(report))

    @router.post("/sums")
    def mend(body: Mending, caller: Annotated[Caller, may("reconcile")]) -> Mended:
        """Make the sums by hour of a day again, from the requests and events that they are sums of.
        What was charged by wrong ones is charged anew."""
        since = day_of(_asked(context, body.day))
        until = since + DAY_NS
        wrong = context.book.make_hours_again(since=since, until=until)
        wrong += context.registry.meters.make_hours_again(since=since, until=until)
        return Mended(wrong=wrong)

    @router.get("/reports")
    def reports(
        caller: Annotated[Caller, may("reconcile")],
        limit: Annotated[int, Query(ge=1, le=1000)] = 31,
    ) -> Listed[KeptShape]:
        """The reports that were made day by day, the latest first."""
        rows = [
            KeptShape(
                day_at=each.day_at, agrees=each.agrees, made_at=each.made_at,
                findings=msgspec.json.decode(each.report)["findings"],
            )
            for each in store.reports(most=limit)
        ]
        return Listed(items=rows, next=None)

    return router


def _asked(context: Context, day: str | None) -> int:
    """An instant of the day that is asked for; now where none is named."""
    now = context.now()
    at = now if day is None else day_at(day)
    if at > now:
        raise InvalidInput([f"day: {day} has not begun"])
    return at
