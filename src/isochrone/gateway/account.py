"""Turns what an exchange knows into its records: one when it opens, one when it ends."""

import re
from typing import TYPE_CHECKING, Final

from isochrone.core.admission.classes import wanted_class
from isochrone.core.ids import ModelName
from isochrone.core.metering.event import Outcome, Tokens
from isochrone.core.routing.choice import Stopped
from isochrone.gateway.foretold import NOTHING_FORETOLD, foretold_of
from isochrone.wire.usage import DecisionRecord, Opening, UsageRecord

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,95}")

if TYPE_CHECKING:
    from isochrone.gateway.forward import Exchange
    from isochrone.gateway.tries import Tries


def references_leave(exchange: "Tries") -> bool:
    """Whether what the client wrote for its own reference may go into records that leave the site;
    the policy of logs says so."""
    table = exchange.context.view.table
    return table.standing(exchange.key.policy_id, exchange.narrowing).references_leave


def logged_reference(exchange: "Tries") -> str | None:
    """The client's own id of the request, where the log of this site may have it."""
    given = exchange.head.client_request_id
    if given is None:
        return None
    table = exchange.context.view.table
    return given if table.standing(exchange.key.policy_id, exchange.narrowing).logs else None


def _reference(exchange: "Tries") -> str | None:
    """The client's own id of the request, where records that leave the site may have it."""
    given = exchange.head.client_request_id
    return given if given is not None and references_leave(exchange) else None


def opening_of(exchange: "Tries") -> Opening:
    """What to book should nothing more be heard of this request: the ingress died."""
    context, key, attempt = exchange.context, exchange.key, exchange.attempt
    assert attempt is not None, "opened for a target"
    target = attempt.target
    return Opening(
        exchange.request_id,
        key.org_id,
        key.project_id,
        key.id,
        _reference(exchange),
        exchange.endpoint,
        exchange.request.stream,
        exchange.class_,
        exchange.request.model,
        _revision(exchange),
        context.site,
        context.country,
        target.site,
        target.country,
        attempt.replica_id,
        exchange.received_at,
        exchange.attempts + 1,
    )


def closing_of(
    exchange: "Exchange", now_ns: int, *, outcome: Outcome, status: int, reason: str | None,
    tokens: Tokens,
) -> UsageRecord:
    """How the request ended now, said by the ingress or, for a hop, by the serving gateway."""
    context, key, attempt, hop = (
        exchange.context, exchange.key, exchange.attempt, exchange.reply.hop
    )
    request = exchange.parsed
    received_ns = exchange.received_ns
    spent_ns = now_ns - received_ns
    if hop is None:
        ingress, ingress_country = context.site, context.country
    else:
        ingress = hop.entrant.ingress.name
        site = context.view.site(ingress)
        ingress_country = None if site is None else site.country
    target = None if attempt is None else attempt.target
    serving, serving_country = None, None
    if target is not None:
        serving, serving_country = target.site, target.country
    elif hop is not None:  # it ended while it waited here for a replica
        serving, serving_country = context.site, context.country
    chosen_ns, sent_ns, first_ns = exchange.chosen_ns, exchange.sent_ns, exchange.first_ns
    return UsageRecord(
        exchange.request_id,
        key.org_id,
        key.project_id,
        key.id,
        _reference(exchange),
        exchange.endpoint,
        request is not None and request.stream,
        exchange.class_,
        _model(exchange),
        _revision(exchange),
        ingress,
        ingress_country,
        serving,
        serving_country,
        None if attempt is None else attempt.replica_id,
        exchange.received_at,
        exchange.received_at + spent_ns,
        None if chosen_ns is None else (chosen_ns - received_ns) / 1e6,
        None if sent_ns is None else (sent_ns - received_ns) / 1e6,
        None if first_ns is None else (first_ns - received_ns) / 1e6,
        spent_ns / 1e6,
        tokens.input_uncached,
        tokens.input_cached,
        tokens.output,
        tokens.source,
        outcome,
        status,
        reason,
        "ingress" if hop is None else "evidence",
        exchange.attempts,
        _decision(exchange, outcome),
    )


def _model(exchange: "Exchange") -> ModelName:
    """The model that was asked for. A name that nobody serves is the client's own text, and only
    kept where it looks like one."""
    request = exchange.parsed
    if request is None:
        return ModelName("")
    if exchange.context.view.table.is_served(request.model):
        return request.model
    plain = _PLAIN_NAME.fullmatch(request.model) is not None and references_leave(exchange)
    return request.model if plain else ModelName("")


def _revision(exchange: "Tries") -> str | None:
    """The revision of the weights that serve: the replica's own, else what the model's entry says.
    """
    attempt = exchange.attempt
    if attempt is not None and attempt.target.replica is not None:
        return attempt.target.replica.revision
    if exchange.parsed is None:
        return None
    model = exchange.context.view.table.view.models.get(exchange.parsed.model)
    return None if model is None else model.revision


def _decision(exchange: "Exchange", outcome: Outcome) -> DecisionRecord | None:
    choice, first_ns = exchange.choice, exchange.first_ns
    if choice is None:
        return _stops_alone(exchange.stops) if exchange.stops else None
    since_ns, foretold = exchange.choice_since_ns, NOTHING_FORETOLD
    if exchange.began:
        first_ns, foretold = foretold_of(exchange, choice)
    is_full = exchange.context.detail.is_kept(exchange, outcome)
    other = -1 if is_full else choice.runner_up()
    wanted, claim = wanted_class(exchange.request.service_tier), exchange.claim
    allowed = exchange.class_ if claim is None else claim.asked
    return DecisionRecord(
        choice.ground.id,
        choice.index,
        choice.costs_ms() if is_full else b"",
        choice.queues_ms() if is_full else b"",
        choice.prefill_ms,
        choice.decode_ms,
        choice.digest_age_ms,
        choice.predicted_ttft_ms,
        # An answer that comes whole does not show when its first token was there.
        (first_ns - since_ns) / 1e6 if first_ns is not None and exchange.request.stream else None,
        choice.refused,
        tuple(exchange.tried),
        choice.decodes_ms() if is_full else b"",
        None if exchange.affinity is None else exchange.affinity.bond(),
        exchange.queued_ns / 1e6,
        choice.because,
        choice.body_bytes,
        choice.queue_ms,
        choice.eligible,
        other,
        0.0 if other < 0 else choice.costs.item(other),
        wanted,
        None if allowed == wanted else allowed,
        None if claim is None else claim.unpaid_because,
        (since_ns - exchange.received_ns) / 1e6,
        foretold,
        exchange.stops,
    )


def _stops_alone(stops: tuple[Stopped, ...]) -> DecisionRecord:
    """Of a hop, for which this gateway chose nothing."""
    return DecisionRecord(
        "", -1, b"", b"", 0.0, 0.0, 0.0, None, None, (), stops=stops,
    )
