"""Turns what an exchange knows into its usage event: once when it opens, once when it ends."""

from typing import TYPE_CHECKING

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.metering.event import Outcome, Reporter, Tokens, UsageEvent
from isochrone.core.routing.choice import Decision

if TYPE_CHECKING:
    from isochrone.gateway.forward import Exchange


def opened_event(exchange: "Exchange") -> UsageEvent:
    """What to book should nothing more be heard of this request: the ingress died."""
    return _event(
        exchange, outcome="ingress_lost", status=0, reason=None, tokens=Tokens(),
        reporter="recovered",
    )


def closed_event(
    exchange: "Exchange", *, outcome: Outcome, status: int, reason: str | None, tokens: Tokens
) -> UsageEvent:
    """How the request ended, said by the ingress or, for a hop, by the serving gateway."""
    reporter: Reporter = "ingress" if exchange.hop is None else "evidence"
    return _event(
        exchange, outcome=outcome, status=status, reason=reason, tokens=tokens, reporter=reporter
    )


def elapsed_ms(exchange: "Exchange", at_ns: int | None) -> float | None:
    """Milliseconds since the request began to arrive."""
    return None if at_ns is None else (at_ns - exchange.received_ns) / 1e6


def _event(
    exchange: "Exchange", *, outcome: Outcome, status: int, reason: str | None, tokens: Tokens,
    reporter: Reporter,
) -> UsageEvent:
    context, request, attempt = exchange.context, exchange.parsed, exchange.attempt
    hop = exchange.hop
    now_ns = context.clock.monotonic_ns()
    total_ms = (now_ns - exchange.received_ns) / 1e6
    ingress_country = context.country
    if hop is not None:
        ingress = context.view.site(SiteName(hop.request.ingress))
        ingress_country = None if ingress is None else ingress.country
    model = None if request is None else context.view.table.view.models.get(request.model)
    serving = None if attempt is None else attempt.target
    replica = None if serving is None else serving.replica
    revision = model.revision if replica is None and model is not None else None
    return UsageEvent(
        request_id=exchange.request_id,
        org_id=exchange.key.org_id,
        project_id=exchange.key.project_id,
        key_id=exchange.key.id,
        client_request_id=exchange.client_request_id,
        endpoint=exchange.endpoint,
        stream=request is not None and request.stream,
        class_=exchange.class_,
        model=ModelName("") if request is None else request.model,
        revision=revision if replica is None else replica.revision,
        ingress_site=context.site if hop is None else SiteName(hop.request.ingress),
        ingress_country=ingress_country,
        serving_site=None if serving is None else serving.site,
        serving_country=None if serving is None else serving.country,
        replica=None if attempt is None else attempt.replica_id,
        received_at=exchange.received_at,
        finished_at=exchange.received_at + (now_ns - exchange.received_ns),
        chosen_ms=elapsed_ms(exchange, exchange.chosen_ns),
        sent_ms=elapsed_ms(exchange, exchange.sent_ns),
        first_byte_ms=elapsed_ms(exchange, exchange.first_ns),
        total_ms=total_ms,
        tokens=tokens,
        outcome=outcome,
        status=status,
        reason=reason,
        reporter=reporter,
        attempts=exchange.attempts,
        decision=_decision(exchange),
    )


def _decision(exchange: "Exchange") -> Decision | None:
    choice = exchange.choice
    if choice is None:
        return None
    policy = exchange.context.view.policy(exchange.key.policy_id)
    chosen = choice.candidates[0] if choice.candidates else None
    return Decision(
        choice=choice,
        policy_residency=() if policy is None else policy.residency,
        policy_transit=() if policy is None else policy.transit,
        plaintext_ingress=exchange.context.country or "unknown",
        predicted_ttft_ms=None if chosen is None else chosen.cost_ms - chosen.decode_ms,
        actual_ttft_ms=elapsed_ms(exchange, exchange.first_ns),
        replica=None if exchange.attempt is None else exchange.attempt.replica_id,
        tried=tuple(exchange.tried),
    )
