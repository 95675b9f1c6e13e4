"""Explains one request: where it entered, who was considered and refused, what came of it."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.core.billing.of_request import price_of_request
from isochrone.core.billing.period import day_name
from isochrone.core.billing.sheet import PriceSheet
from isochrone.core.errors import NotFound
from isochrone.core.ids import RequestId, is_uuid7
from isochrone.core.metering.detached import DAY_NS, day_of_request
from isochrone.core.metering.event import Endpoint, Outcome, Reporter, TokenSource, UsageEvent
from isochrone.core.money import written
from isochrone.core.routing.bond import Bond, HomeVerdict
from isochrone.core.routing.choice import (
    Because,
    Candidate,
    Decision,
    Foretold,
    Ground,
    Refused,
    Rule,
    Stopped,
    UnpaidBecause,
)
from isochrone.core.routing.explain import DIGITS
from isochrone.core.routing.explain import explain as explanation_of
from isochrone.core.world.site import RttSource
from isochrone.core.world.tenant import Class
from isochrone.ports.book import Booked

BodyRead = Literal["read", "in_part", "unread"]


class Ingress(BaseModel):
    """`body` says how much of the request's body the ingress read; `plaintext` says in words what
    clear text it saw. A request that its head alone refuses is `unread`."""

    site: str
    country: str | None
    body: BodyRead
    plaintext: str


class Serving(BaseModel):
    site: str | None
    country: str | None
    replica: str | None


class Timings(BaseModel):
    """Milliseconds since the request was received; null where the step was not reached."""

    chosen_ms: float | None
    sent_ms: float | None
    first_byte_ms: float | None
    total_ms: float


class TokenCounts(BaseModel):
    """Disjoint classes; `source` says how they were obtained."""

    input_uncached: int
    input_cached: int
    output: int
    source: TokenSource


class CandidateShape(BaseModel):
    """An eligible site; `cost_ms` is the sum of the terms. `digest_age_ms` is kept for the chosen
    site only."""

    site: str
    cost_ms: float
    rtt_ms: float
    rtt_source: RttSource
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    digest_age_ms: float | None
    transfer_ms: float


class RefusedShape(BaseModel):
    """A site that was not eligible, by which rule, and the fact that decided."""

    site: str
    rule: Rule
    detail: str


class BondShape(BaseModel):
    """Of `prompt_tokens` (estimated) `cached_tokens` were believed to be cached where the request
    was sent. `verdict` says what became of `home`, the home of its session, which could be
    `limit_ms` dearer than another site."""

    cached_tokens: int
    prompt_tokens: int
    verdict: HomeVerdict
    home: str | None
    limit_ms: float


class RunnerUpShape(BaseModel):
    """The cheapest site beside the chosen one."""

    site: str
    cost_ms: float


class ForetoldShape(BaseModel):
    """A site where the stream began, or went on, before it was lost there: its first token as
    expected and as it came, from `since_ms` after the request was received."""

    site: str
    since_ms: float
    predicted_ttft_ms: float
    actual_ttft_ms: float


class DecisionShape(BaseModel):
    """Candidates cheapest first (the first was chosen, and `because` says what decided); `refused`
    are the other sites that serve the model, `elsewhere` counts those that do not. `tried` lists
    earlier tries that failed, in order, `queued_ms` is how long it waited for its turn at the sites
    that it was sent to. `eligible` counts the sites that could take the request; where `is_full` is
    false, only the chosen one of them was recorded as a candidate: the header
    `x-isochrone-explain: full` has all of them recorded. `ground` is a digest of policy, sites and
    round trips that were chosen from. The axes are the policy's; `narrowed` and `narrowed_transit`
    are what the request's own headers allowed beyond it, `any` where they said nothing. Predicted
    and actual time to the first token are the chosen site's, from `since_ms` after the request was
    received; `foretold` has those of the sites where a stream was before it was lost. `bond` is
    null for a short request of no session, and where the ingress may remember nothing."""

    policy_id: str
    ground: str
    residency: list[str]
    transit: list[str]
    caches: list[str] | None
    logs: list[str]
    narrowed: list[str]
    narrowed_transit: list[str]
    is_full: bool
    eligible: int
    runner_up: RunnerUpShape | None
    candidates: list[CandidateShape]
    refused: list[RefusedShape]
    allowed_exists: bool
    elsewhere: int
    predicted_ttft_ms: float | None
    actual_ttft_ms: float | None
    since_ms: float
    foretold: list[ForetoldShape]
    tried: list[RefusedShape]
    bond: BondShape | None
    queued_ms: float
    because: Because | None


class ClassShape(BaseModel):
    """The class that the request asked for, what its key `allowed` of that, and, where it was
    `served` (or refused) in another one, why nothing that was sold paid for it."""

    wanted: Class
    allowed: Class
    served: Class
    because: UnpaidBecause | None


class StoppedShape(BaseModel):
    """The request gave its slot back at `site`, because the floor of `for_class` lacked one,
    `since_ms` after it had come to that site, with so many tokens of `output` delivered (null:
    before the first byte). `after_ms` later it was sent on, to `at` (null: nowhere), or `refused`
    by the queue in which it waited, for this reason; null: it ended while it waited."""

    site: str
    replica: str | None
    for_class: Class
    since_ms: float
    output: int | None
    after_ms: float | None
    at: str | None
    refused: str | None


class PriceLine(BaseModel):
    """`amount` is a decimal text in units of the currency."""

    name: str
    quantity: int
    adjustments: list[str]
    amount: str


class PriceShape(BaseModel):
    """What the request costs by itself: tiers begin at nothing, and what is once a period is left
    out. `unpriced` are meters that no sheet prices."""

    currency: str
    amount: str
    lines: list[PriceLine]
    unpriced: list[str]


class Explanation(BaseModel):
    """Everything that is kept of one request; instants are wall ns UTC of the ingress. `decision`
    is null when no site was considered, or when what the decision rests on was not reported;
    `classes` when no site was considered, or a gateway of an earlier release took the request in;
    `stops` are in order where one site had them, and those of the ingress come first;
    `price` where the caller may not see prices, or there is none."""

    id: str
    org_id: str
    project_id: str
    key_id: str
    client_request_id: str | None
    endpoint: Endpoint
    stream: bool
    class_: Class = Field(serialization_alias="class")
    classes: ClassShape | None
    model: str
    revision: str | None
    received_at: int
    finished_at: int
    ingress: Ingress
    serving: Serving
    timings: Timings
    tokens: TokenCounts
    outcome: Outcome
    status: int
    reason: str | None
    reporter: Reporter
    attempts: int
    booked_at: int
    stops: list[StoppedShape]
    decision: DecisionShape | None
    price: PriceShape | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/requests", tags=["usage"])
    may = access(context)

    @router.get("/{request_id}")
    def explain(request_id: str, caller: Annotated[Caller, may("usage.read")]) -> Explanation:
        """Why this request went where it went. It is known a moment after its end."""
        booked = None
        if is_uuid7(request_id):
            booked = context.book.request(caller.scope, RequestId(request_id))
        if booked is None or caller.key_id not in (None, booked.event.key_id):
            raise NotFound(_unknown(context, request_id))
        price = None
        if caller.may("prices.read"):
            price = _price(booked, context.registry.prices.applying(booked.event.org_id))
        return _explanation(booked, price)

    return router


def _price(booked: Booked, sheets: Sequence[PriceSheet]) -> PriceShape | None:
    rated = price_of_request(booked.event, sheets, bound=booked.bound)
    if rated.currency is None:
        return None
    return PriceShape(
        currency=rated.currency, amount=written(rated.total_pico),
        lines=[
            PriceLine(
                name=line.name, quantity=line.quantity, adjustments=list(line.adjustments),
                amount=written(line.amount_pico),
            )
            for line in rated.lines if line.amount_pico
        ],
        unpriced=[each.facts.meter for each in rated.unpriced],
    )


def _unknown(context: Context, request_id: str) -> str:
    """Why there is nothing to show: of a day that was detached any request may be away."""
    said = f"no request {request_id!r} is booked (it takes a moment after its end)"
    if not is_uuid7(request_id):
        return said
    day_at = day_of_request(RequestId(request_id))
    if not context.registry.usage_days.detached(since=day_at, until=day_at + DAY_NS):
        return said
    return (
        f"no request {request_id!r} is in the book: requests of {day_name(day_at)} were detached to"
        f" the archive; an operator can bring them back with `isochrone days attach"
        f" {day_name(day_at)}`"
    )


def _explanation(booked: Booked, price: PriceShape | None = None) -> Explanation:
    event, ground = booked.event, booked.ground
    return Explanation(
        id=event.request_id,
        org_id=event.org_id,
        project_id=event.project_id,
        key_id=event.key_id,
        client_request_id=event.client_request_id,
        endpoint=event.endpoint,
        stream=event.stream,
        class_=event.class_,
        classes=_classes(event),
        model=event.model,
        revision=event.revision,
        received_at=event.received_at,
        finished_at=event.finished_at,
        ingress=_ingress(event, ground),
        serving=Serving(
            site=event.serving_site, country=event.serving_country, replica=event.replica
        ),
        timings=Timings(
            chosen_ms=event.chosen_ms, sent_ms=event.sent_ms, first_byte_ms=event.first_byte_ms,
            total_ms=event.total_ms,
        ),
        tokens=TokenCounts(
            input_uncached=event.tokens.input_uncached, input_cached=event.tokens.input_cached,
            output=event.tokens.output, source=event.tokens.source,
        ),
        outcome=event.outcome,
        status=event.status,
        reason=event.reason,
        reporter=event.reporter,
        attempts=event.attempts,
        booked_at=booked.booked_at,
        stops=[_stopped(each) for each in booked.stops],
        decision=_decision(ground, event.decision, event.stream),
        price=price,
    )


def _classes(event: UsageEvent) -> ClassShape | None:
    decision = event.decision
    if decision is None or decision.wanted_class is None:
        return None
    return ClassShape(
        wanted=decision.wanted_class, allowed=decision.key_class or decision.wanted_class,
        served=event.class_, because=decision.unpaid_because,
    )


def _ingress(event: UsageEvent, ground: Ground | None) -> Ingress:
    country = ground.plaintext_ingress if ground else event.ingress_country
    who = f"ingress {country or 'of unstated country'}"
    body = _body_read(event)
    said: dict[BodyRead, str] = {
        "read": f"{who} saw plaintext",
        "in_part": f"the body was not read to its end: {who} may have seen plaintext",
        "unread": f"the body was not read: {who} saw no plaintext",
    }
    return Ingress(
        site=event.ingress_site, country=event.ingress_country, body=body, plaintext=said[body]
    )


def _body_read(event: UsageEvent) -> BodyRead:
    """How much of the body the ingress read. The model is known once a body was understood, unless
    it is one that nobody serves; of the other refusals only these come from the head alone, and
    only `bad_request` from a whole body."""
    if event.model or event.reason in ("bad_request", "model_not_found"):
        return "read"
    is_from_head = event.status == 403 or event.reason == "residency_header"
    return "unread" if event.outcome == "refused" and is_from_head else "in_part"


def _decision(
    ground: Ground | None, decision: Decision | None, stream: bool
) -> DecisionShape | None:
    explained = None
    if ground is not None and decision is not None:
        explained = explanation_of(ground, decision)
    if ground is None or decision is None or explained is None:
        return None
    next_best = explained.runner_up
    return DecisionShape(
        policy_id=ground.policy_id,
        ground=ground.id,
        is_full=explained.is_full,
        eligible=explained.eligible,
        runner_up=None if next_best is None else RunnerUpShape(
            site=next_best.site, cost_ms=next_best.cost_ms
        ),
        residency=list(ground.residency),
        transit=list(ground.transit),
        caches=list(ground.caches) or None,
        logs=list(ground.logs),
        narrowed=list(ground.narrowed),
        narrowed_transit=list(ground.narrowed_transit),
        candidates=[_candidate(each) for each in explained.candidates],
        refused=[_refused(each) for each in explained.refused],
        allowed_exists=explained.allowed_exists,
        elsewhere=explained.elsewhere,
        predicted_ttft_ms=decision.predicted_ttft_ms,
        actual_ttft_ms=decision.actual_ttft_ms if stream else None,
        since_ms=round(decision.since_ms, DIGITS),
        foretold=[_foretold(each) for each in decision.foretold],
        tried=[_refused(each) for each in decision.tried],
        because=decision.because,
        bond=None if decision.bond is None else _bond(decision.bond),
        queued_ms=decision.queued_ms,
    )


def _foretold(each: Foretold) -> ForetoldShape:
    return ForetoldShape(
        site=each.site, since_ms=round(each.since_ms, DIGITS),
        predicted_ttft_ms=round(each.predicted_ttft_ms, DIGITS),
        actual_ttft_ms=round(each.actual_ttft_ms, DIGITS),
    )


def _stopped(each: Stopped) -> StoppedShape:
    return StoppedShape(
        site=each.site, replica=each.replica, for_class=each.for_class,
        since_ms=round(each.since_ms, DIGITS), output=each.output,
        after_ms=None if each.after_ms is None else round(each.after_ms, DIGITS),
        at=each.at, refused=each.refused,
    )


def _bond(bond: Bond) -> BondShape:
    return BondShape(
        cached_tokens=bond.cached_tokens, prompt_tokens=bond.prompt_tokens, verdict=bond.verdict,
        home=bond.home, limit_ms=round(bond.limit_ms, DIGITS),
    )


def _candidate(each: Candidate) -> CandidateShape:
    return CandidateShape(
        site=each.site, cost_ms=each.cost_ms, rtt_ms=each.rtt_ms, rtt_source=each.rtt_source,
        queue_ms=each.queue_ms, prefill_ms=each.prefill_ms, decode_ms=each.decode_ms,
        digest_age_ms=each.digest_age_ms, transfer_ms=each.transfer_ms,
    )


def _refused(each: Refused) -> RefusedShape:
    return RefusedShape(site=each.site, rule=each.rule, detail=each.detail)
