"""Traffic over time, and where the latest requests went: for pages that people watch."""

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.instants import instant_of
from isochrone.core.ids import ModelName, OrgId, SiteName
from isochrone.core.metering.event import Outcome
from isochrone.core.world.tenant import Class
from isochrone.ports.traffic import Flow, Span, TrafficFilter, TrafficGroup

NS_PER_S = 1_000_000_000
MOST_SPANS = 240
USUAL_SPANS = 60
USUAL_S = 3_600
TARGET_MS = 200.0  # what gateways aim at unless told otherwise
MOST_SPILLS = 50
LATEST_S = 120  # longer requests are counted, but no more drawn
FIRST_S = 5


class SpanShape(BaseModel):
    """Requests of one group in the span that begins at `at` (wall ns UTC). `is_sample`: counts are
    scaled from the first requests of the span. `good` finished, with a first byte by the target;
    `spilled` were served elsewhere than where they entered."""

    at: int
    name: str
    is_sample: bool
    requests: float
    finished: float
    refused: float
    failed: float
    good: float
    spilled: float
    output_tokens: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


class ReasonShape(BaseModel):
    outcome: Outcome
    reason: str
    requests: float


class SpillShape(BaseModel):
    ingress: str
    site: str
    requests: float


class TrafficShape(BaseModel):
    """`spans` by time and group, those without requests left out; `reasons` and `spills` are of the
    whole time."""

    since: int
    span_s: int
    target_ms: float
    spans: list[SpanShape]
    reasons: list[ReasonShape]
    spills: list[SpillShape]


class FlowShape(BaseModel):
    """Requests that entered at `ingress` and were served at `site`, null for nowhere."""

    ingress: str
    site: str | None
    model: str
    class_: Class = Field(serialization_alias="class")
    outcome: Outcome
    requests: float


class FlowsShape(BaseModel):
    """`until` is what `after` wants the next time."""

    until: str
    flows: list[FlowShape]


def routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["usage"])
    may = access(context)

    @router.get("/traffic")
    def traffic(
        caller: Annotated[Caller, may("traffic.read")],
        since: str | None = None,
        span_s: Annotated[int, Query(ge=1, le=86_400)] = USUAL_S // USUAL_SPANS,
        spans: Annotated[int, Query(ge=1, le=MOST_SPANS)] = USUAL_SPANS,
        by: TrafficGroup = "all",
        target_ms: Annotated[float, Query(gt=0, le=600_000)] = TARGET_MS,
        model: Annotated[str | None, Query(max_length=400)] = None,
        class_: Annotated[Class | None, Query(alias="class")] = None,
        site: Annotated[str | None, Query(max_length=100)] = None,
        org_id: Annotated[str | None, Query(max_length=100)] = None,
    ) -> TrafficShape:
        """Requests received in `spans` spans of `span_s` seconds, from `since` on, or until now."""
        if org_id is not None:
            caller.need("traffic.read", org_id)
        chosen = TrafficFilter(
            since=_begin(context, since, span_s, spans), span_ns=span_s * NS_PER_S, spans=spans,
            target_ms=target_ms, model=None if model is None else ModelName(model), class_=class_,
            org_id=None if org_id is None else OrgId(org_id),
            site=None if site is None else SiteName(site),
        )
        stored, scope = context.registry.traffic, caller.scope
        return TrafficShape(
            since=chosen.since, span_s=span_s, target_ms=target_ms,
            spans=[_span(each) for each in stored.spans(scope, chosen, by)],
            reasons=[
                ReasonShape(outcome=each.outcome, reason=each.reason, requests=each.requests)
                for each in stored.reasons(scope, chosen)
            ],
            spills=[
                SpillShape(ingress=each.ingress, site=each.site or "", requests=each.requests)
                for each in stored.spills(scope, chosen, most=MOST_SPILLS)
            ],
        )

    @router.get("/flows")
    def flows(
        caller: Annotated[Caller, may("traffic.read")],
        after: Annotated[str | None, Query(pattern=r"^\d{1,19}$")] = None,
        org_id: Annotated[str | None, Query(max_length=100)] = None,
    ) -> FlowsShape:
        """Where requests went that were booked after `after`, or in the last seconds."""
        now, scope = context.now(), caller.scope
        if org_id is not None:
            caller.need("traffic.read", org_id)
            scope = replace(scope, org_id=OrgId(org_id))
        found = context.registry.traffic.flows(
            scope, since=now - LATEST_S * NS_PER_S,
            after=now - FIRST_S * NS_PER_S if after is None else int(after),
        )
        return FlowsShape(until=str(found.until), flows=[_flow(each) for each in found.flows])

    return router


def _begin(context: Context, since: str | None, span_s: int, spans: int) -> int:
    """Where the first span begins: as asked for, else so that the present one is the last."""
    said = instant_of("since", since)
    if said is not None:
        return said
    span_ns = span_s * NS_PER_S
    return (context.now() // span_ns + 1 - spans) * span_ns


def _span(each: Span) -> SpanShape:
    return SpanShape(
        at=each.at, name=each.name, is_sample=each.requests > each.looked_at + 0.5,
        requests=round(each.requests, 1), finished=round(each.finished, 1),
        refused=round(each.refused, 1), failed=round(each.failed, 1), good=round(each.good, 1),
        spilled=round(each.spilled, 1), output_tokens=round(each.output_tokens, 1),
        p50_ms=each.p50_ms, p90_ms=each.p90_ms, p99_ms=each.p99_ms,
    )


def _flow(each: Flow) -> FlowShape:
    return FlowShape(
        ingress=each.ingress, site=each.site, model=each.model, class_=each.class_,
        outcome=each.outcome, requests=each.requests,
    )
