"""Usage that no request tells: events of meters, each with its own result."""

from collections.abc import Sequence
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.instants import instant_of
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier
from isochrone.control.api.whose import whose
from isochrone.core.billing.meter_event import (
    AGGREGATIONS,
    OF_REQUESTS,
    Aggregation,
    MeterEvent,
    Outcome,
    Verdict,
)
from isochrone.core.billing.sheet import Facts, Meter
from isochrone.core.errors import InvalidInput, NotFound
from isochrone.core.ids import ModelName, OrgId, ProjectId, RequestId, SiteName
from isochrone.core.world.tenant import Class
from isochrone.ports.meters import EventFilter, StoredEvent

Filter = Annotated[str | None, Query(max_length=100)]


class NewEvent(Body):
    """`id` is the event's own, for ever: the same again changes nothing. `at` is when it was used
    (RFC 3339 with an offset, or wall nanoseconds); of meters by time `until` is when that ended.
    `replaces` names an event that no longer counts; with `request_id` the event says anew how much
    of a meter a request used."""

    id: Identifier
    org_id: Identifier = "default"
    project_id: Identifier = "default"
    meter: Identifier
    amount: int
    at: str
    until: str | None = None
    subject: Annotated[str, Field(max_length=200)] = ""
    model: Annotated[str | None, Field(max_length=400)] = None
    class_: Class | None = Field(default=None, alias="class")
    site: Annotated[str | None, Field(max_length=100)] = None
    kind: Annotated[str | None, Field(max_length=100)] = None
    replaces: Identifier | None = None
    request_id: Identifier | None = None


class NewEvents(Body):
    """At most 1,000 events; each is taken or not on its own merits."""

    events: Annotated[list[NewEvent], Field(min_length=1, max_length=1000)]


class ResultShape(BaseModel):
    """accepted, duplicate, conflicting, unmetered (kept, but of no meter) or refused."""

    id: str
    result: Verdict
    reason: str


class MeterShape(BaseModel):
    """`aggregation`: how events of an hour come to its quantity. `of_requests`: gateways tell it,
    and an event only says anew what one request used."""

    meter: str
    aggregation: Aggregation
    of_requests: bool


class EventShape(BaseModel):
    """`at`, `until` and `arrived_at` are wall ns UTC; what fits nothing in particular is null.
    `counts`: it is of a known meter, and no other event replaces it."""

    id: str
    org_id: str
    project_id: str
    meter: str
    amount: int
    at: int
    until: int | None
    subject: str
    model: str | None
    class_: str | None = Field(serialization_alias="class")
    site: str | None
    kind: str | None
    replaces: str | None
    request_id: str | None
    arrived_at: int
    counts: bool


class UnmeteredShape(BaseModel):
    id: str
    org_id: str
    project_id: str
    meter: str
    amount: int
    at: int


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/meters", tags=["usage"])
    meters = context.registry.meters
    may = access(context)

    @router.post("/events")
    def add_events(
        body: NewEvents, caller: Annotated[Caller, may("usage.write")]
    ) -> Listed[ResultShape]:
        """Add events of usage; the results come in the same order."""
        outcomes = _add(context, caller, [_event(each) for each in body.events])
        rows = [
            ResultShape(id=each.id, result=each.verdict, reason=each.reason) for each in outcomes
        ]
        return Listed(items=rows, next=None)

    @router.get("")
    def list_meters(
        _: Annotated[Caller, may("prices.read")]
    ) -> Listed[MeterShape]:
        """What is measured, and how events come to the quantity of an hour."""
        rows = [
            MeterShape(meter=meter, aggregation=how, of_requests=meter in OF_REQUESTS)
            for meter, how in AGGREGATIONS.items()
        ]
        return Listed(items=rows, next=None)

    @router.get("/events")
    def list_events(
        caller: Annotated[Caller, may("ledger.read")],
        page: Annotated[Paging, Depends(paging)],
        chosen: Annotated[EventFilter, Depends(_chosen)],
    ) -> Listed[EventShape]:
        """Events by organisation and id, those that count no more, too."""
        whose(context, caller, chosen.org_id, chosen.project_id)
        rows = meters.events(
            caller.scope, chosen, most=page.page.most, after=_after(page.after)
        )
        return page.listed(
            rows, _event_shape, lambda row: f"{row.event.org_id}/{row.event.id}"
        )

    @router.get("/unmetered")
    def unmetered(
        caller: Annotated[Caller, may("ledger.read")],
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Listed[UnmeteredShape]:
        """Events of no known meter, the latest first."""
        rows = [
            UnmeteredShape(
                id=each.id, org_id=each.org_id, project_id=each.project_id,
                meter=each.facts.meter, amount=each.amount, at=each.from_at,
            )
            for each in meters.unmetered(caller.scope, most=limit)
        ]
        return Listed(items=rows, next=None)

    return router


def _add(
    context: Context, caller: Caller, events: Sequence[MeterEvent]
) -> Sequence[Outcome]:
    """One outcome for each event; those of nobody that there is are refused, the rest is added."""
    lost: dict[tuple[OrgId, ProjectId], str] = {}
    for of in {(each.org_id, each.project_id) for each in events}:
        try:
            whose(context, caller, *of)
        except NotFound as error:
            lost[of] = error.message
    known = [each for each in events if (each.org_id, each.project_id) not in lost]
    added = iter(context.registry.meters.add_events(caller.scope, known, now=context.now()))
    return [
        next(added) if (each.org_id, each.project_id) not in lost else Outcome(
            id=each.id, verdict="refused", reason=lost[each.org_id, each.project_id]
        )
        for each in events
    ]


def _chosen(
    org_id: Filter = None, project_id: Filter = None, meter: Filter = None, since: Filter = None,
    until: Filter = None,
) -> EventFilter:
    """The dependency that reads which events are asked for."""
    return EventFilter(
        org_id=None if org_id is None else OrgId(org_id),
        project_id=None if project_id is None else ProjectId(project_id), meter=meter,
        since=instant_of("since", since), until=instant_of("until", until),
    )


def _after(cursor: str | None) -> tuple[str, str] | None:
    if cursor is None:
        return None
    org, _, id_ = cursor.partition("/")
    return org, id_


def _event_shape(row: StoredEvent) -> EventShape:
    event = row.event
    facts = event.facts
    return EventShape(
        id=event.id, org_id=event.org_id, project_id=event.project_id, meter=facts.meter,
        amount=event.amount, at=event.from_at, until=event.until_at, subject=event.subject,
        model=facts.model, class_=facts.class_, site=facts.site, kind=facts.kind,
        replaces=event.replaces, request_id=event.request_id, arrived_at=row.arrived_at,
        counts=row.counts,
    )


def _event(body: NewEvent) -> MeterEvent:
    """What is empty fits nothing in particular, as what is left out. Raises InvalidInput."""
    from_at = instant_of("at", body.at)
    assert from_at is not None, "the field is needed"
    if abs(body.amount) >= 1 << 63:
        raise InvalidInput([f"{body.id}: the amount is beyond 64 bits"])
    return MeterEvent(
        id=body.id, org_id=OrgId(body.org_id), project_id=ProjectId(body.project_id),
        amount=body.amount, from_at=from_at, until_at=instant_of("until", body.until),
        subject=body.subject, replaces=body.replaces,
        request_id=None if body.request_id is None else RequestId(body.request_id),
        facts=Facts(
            # Any text: what is no meter is kept and reported.
            meter=cast("Meter", body.meter),
            model=ModelName(body.model) if body.model else None, class_=body.class_,
            site=SiteName(body.site) if body.site else None, kind=body.kind or None,
        ),
    )
