"""Usage: what requests used, one by one or summed by key, model, site, country, class or day."""

from typing import Annotated, Generic, Literal, TypeVar

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.instants import instant_of
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.core.billing.period import day_name
from isochrone.core.errors import NotFound
from isochrone.core.ids import KeyId, ModelName, SiteName
from isochrone.core.metering.event import Outcome, Reporter, TokenSource
from isochrone.core.world.tenant import Class
from isochrone.ports.book import Booked, UsageFilter, UsageTotal

S = TypeVar("S", bound=BaseModel)


class RequestRow(BaseModel):
    """One request. Token classes are disjoint; `site` is null when no site served it; instants are
    wall ns UTC of the ingress, durations count from `received_at`."""

    id: str
    received_at: int
    finished_at: int
    first_byte_ms: float | None
    total_ms: float
    model: str
    site: str | None
    country: str | None
    ingress: str
    ingress_country: str | None
    org_id: str
    project_id: str
    key_id: str
    client_request_id: str | None
    class_: Class = Field(serialization_alias="class")
    input_uncached: int
    input_cached: int
    output: int
    source: TokenSource
    outcome: Outcome
    status: int
    reason: str | None
    reporter: Reporter
    attempts: int
    booked_at: int


class TotalRow(BaseModel):
    """Sums of one key, model, serving site, serving country, class or UTC day, which `name` names
    ('' is none).
    `unmeasured` counts processed requests whose tokens are not the engine's own final count."""

    name: str
    requests: int
    finished: int
    unmeasured: int
    input_uncached: int
    input_cached: int
    output: int
    first_at: int
    last_at: int


class DetachedShape(BaseModel):
    """A day of which requests are in a file and not in this list; how many of all organisations'
    is null for all but operators."""

    day: str
    requests: int | None


class UsageListed(Listed[S], Generic[S]):
    """A page; `detached` are days of the time asked for whose requests left the book, whosever they
    are: an operator can attach them."""

    detached: list[DetachedShape]


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/usage", tags=["usage"])
    may = access(context)

    @router.get("")
    def usage(
        caller: Annotated[Caller, may("usage.read")],
        page: Annotated[Paging, Depends(paging)],
        by: Literal["request", "key", "model", "site", "country", "class", "day"] = "request",
        since: str | None = None,
        until: str | None = None,
        key_id: Annotated[str | None, Query(max_length=100)] = None,
        model: Annotated[str | None, Query(max_length=400)] = None,
        site: Annotated[str | None, Query(max_length=100)] = None,
        ingress: Annotated[str | None, Query(max_length=100)] = None,
        order: Literal["oldest", "newest"] = "oldest",
    ) -> UsageListed[RequestRow] | UsageListed[TotalRow]:
        """Usage that `site` served, or that entered at `ingress`, received from `since` until
        before `until`. `order` is that of requests; groups come in the order of their names."""
        chosen = UsageFilter(
            since=instant_of("since", since),
            until=instant_of("until", until),
            key_id=_key(caller, key_id),
            model=None if model is None else ModelName(model),
            site=None if site is None else SiteName(site),
            ingress=None if ingress is None else SiteName(ingress),
        )
        most, after = page.page.most, page.after
        files = context.registry.usage_days.detached(since=chosen.since, until=chosen.until)
        sees_all = caller.scope.org_id is None
        away = [
            DetachedShape(day=day_name(each.day_at), requests=each.rows if sees_all else None)
            for each in files
        ]
        if by == "request":
            booked = context.book.requests(
                caller.scope, chosen, most=most, after=after, newest=order == "newest"
            )
            rows = page.listed(booked, _request_row, lambda row: row.event.request_id)
            return UsageListed(items=rows.items, next=rows.next, detached=away)
        totals = context.book.totals(caller.scope, chosen, by, most=most, after=after)
        sums = page.listed(totals, _total_row, lambda row: row.name)
        return UsageListed(items=sums.items, next=sums.next, detached=away)

    return router


def _key(caller: Caller, wanted: str | None) -> KeyId | None:
    """A project key sees its own requests only."""
    if caller.key_id is None:
        return None if wanted is None else KeyId(wanted)
    if wanted not in (None, caller.key_id):
        raise NotFound(f"there is no key {wanted!r}")
    return caller.key_id


def _request_row(row: Booked) -> RequestRow:
    event = row.event
    return RequestRow(
        id=event.request_id,
        received_at=event.received_at,
        finished_at=event.finished_at,
        first_byte_ms=event.first_byte_ms,
        total_ms=event.total_ms,
        model=event.model,
        site=event.serving_site,
        country=event.serving_country,
        ingress=event.ingress_site,
        ingress_country=event.ingress_country,
        org_id=event.org_id,
        project_id=event.project_id,
        key_id=event.key_id,
        client_request_id=event.client_request_id,
        class_=event.class_,
        input_uncached=event.tokens.input_uncached,
        input_cached=event.tokens.input_cached,
        output=event.tokens.output,
        source=event.tokens.source,
        outcome=event.outcome,
        status=event.status,
        reason=event.reason,
        reporter=event.reporter,
        attempts=event.attempts,
        booked_at=row.booked_at,
    )


def _total_row(row: UsageTotal) -> TotalRow:
    return TotalRow(
        name=row.name, requests=row.requests, finished=row.finished, unmeasured=row.unmeasured,
        input_uncached=row.input_uncached, input_cached=row.input_cached, output=row.output,
        first_at=row.first_at, last_at=row.last_at,
    )
