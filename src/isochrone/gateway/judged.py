"""Tells whoever computes an answer, replica or site, what came of a request, as it comes.

What is told is judged in `replicas.py` and `core/routing/site_health.py`, by the same rules.
"""

from typing import TYPE_CHECKING, Final

import structlog

from isochrone.core.world.model import COMMON_ENDPOINTS
from isochrone.gateway import admission
from isochrone.gateway.attempt import Attempt

if TYPE_CHECKING:
    from isochrone.gateway.tries import Tries

# What waits for its turn at another site, perhaps for minutes, says nothing of how that site is:
# its own gateway knows whether an engine is late.
_PATIENT: Final = "batch"

# Refusals of a site that can serve nobody, whatever its digest says.
_SERVES_NOBODY: Final = frozenset(("no_ready_replica", "journal", "gateway_stopping"))

log = structlog.get_logger()


def first_byte(exchange: "Tries", attempt: Attempt, now_ns: int) -> None:
    """A stream begins to answer: whoever computes it works."""
    context, waited_ms = exchange.context, (now_ns - attempt.last_ns) / 1e6
    attempt.praised = True
    if (replica := attempt.target.replica) is not None:
        context.view.replicas.answered(
            replica.id, now_ns, attempt.unread_tokens, organisation=exchange.key.org_id,
            expected_ms=attempt.expected_ms, waited_ms=waited_ms,
        )
        attempt.unread_tokens = 0
    else:
        expected_ms = 0.0 if exchange.class_ == _PATIENT else attempt.expected_ms
        context.loads.health.answered(
            attempt.target.site, exchange.request.model, exchange.key.org_id, now_ns,
            expected_ms=expected_ms, waited_ms=waited_ms,
        )


def look_for_lateness(exchange: "Tries", attempt: Attempt, now_ns: int) -> None:
    """A stream has not begun yet: whoever computes it may hang."""
    if attempt.late or not attempt.connected or attempt.expected_ms <= 0.0:
        return
    context, waited_ms = exchange.context, (now_ns - attempt.last_ns) / 1e6
    if (replica := attempt.target.replica) is not None:
        attempt.late = context.view.replicas.late(
            replica.id, waited_ms, attempt.expected_ms, now_ns, context.rng,
            organisation=exchange.key.org_id, sent_ns=attempt.last_ns,
        )
    elif exchange.class_ != _PATIENT:
        attempt.late = context.loads.health.late(
            attempt.target.site, exchange.request.model, waited_ms, attempt.expected_ms,
            exchange.key.org_id, now_ns, context.rng, attempt.last_ns,
        )


def is_no_fault(exchange: "Tries", attempt: Attempt, reason: str | None) -> bool:
    """Whether what ended as a failure of another site is none: its queue turned it away, or for all
    that is known has it still."""
    if attempt.turned_away:
        return True
    is_patient = exchange.class_ == _PATIENT and attempt.target.replica is None
    return is_patient and reason == "first_byte_timeout"


def said_by_refusal(exchange: "Tries", rule: str) -> bool | None:
    """What a refusal says of the site: False where it would refuse others as well, None where it
    may be the request's fault, which only some replicas can take, or goes by its key or class."""
    is_usual = exchange.wanted is None and exchange.endpoint in COMMON_ENDPOINTS
    return False if is_usual and rule in _SERVES_NOBODY else None


def peer_ended(
    exchange: "Tries", attempt: Attempt, ok: bool | None, now_ns: int, why: str
) -> None:
    """A request that was sent to another site is over; `ok` as in `Tries.release`."""
    health, site = exchange.context.loads.health, attempt.target.site
    model, organisation = exchange.request.model, exchange.key.org_id
    if ok is None:
        health.abandoned(site, model, now_ns, attempt.last_ns)
    elif ok and not attempt.praised:
        health.answered(site, model, organisation, now_ns)
    elif not ok and health.failed(
        site, model, why, organisation, now_ns, exchange.context.rng, attempt.last_ns
    ):
        log.warning("site_ejected", site=site, model=model, why=why)


def engine_is_full(exchange: "Tries", attempt: Attempt) -> None:
    """An engine answered that it takes nothing more now: what the client is told, with the engine's
    own time to come back, unless somebody else serves the request."""
    said = attempt.retry_after or ""
    after_s = int(said) if said.isascii() and said.isdigit() and len(said) < 6 else 1
    known = exchange.saturated
    if known is None or (known.retry_after_s or after_s + 1) > after_s:
        exchange.saturated = admission.engines_full(exchange.request.model, max(after_s, 1))
