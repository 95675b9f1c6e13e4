"""Decides which deadline of a request has passed; asked a few times a second of each open one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from isochrone.core.world.tenant import Class
from isochrone.gateway.replies import Refusal
from isochrone.gateway.settings import GatewaySettings

Reason = Literal[
    "connect_timeout", "first_byte_timeout", "between_events_timeout", "total_timeout"
]

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The time-outs of one class in nanoseconds, computed once. `first_byte_ns` holds from when the
    request was there, `engine_ns` for the same byte from when an engine was asked, and `turn_ns` is
    how long it may wait until then."""

    turn_ns: int
    first_byte_ns: int
    engine_ns: int
    between_events_ns: int
    total_ns: int


def deadlines_of(settings: GatewaySettings) -> Mapping[Class, Deadlines]:
    """Batch waits for its turn on top of what others may take: wherever it does, so that the
    deadline of its ingress passes after that of the site where it waits."""
    first_byte_ns = int(settings.first_byte_timeout_s * SECOND_NS)
    usual = Deadlines(
        turn_ns=first_byte_ns,
        first_byte_ns=first_byte_ns,
        engine_ns=first_byte_ns,
        between_events_ns=int(settings.between_events_timeout_s * SECOND_NS),
        total_ns=int(settings.total_timeout_s * SECOND_NS),
    )
    wait_ns = int(settings.batch_wait_s * SECOND_NS)
    patient = replace(
        usual, turn_ns=max(wait_ns, first_byte_ns), first_byte_ns=first_byte_ns + wait_ns,
        total_ns=usual.total_ns + wait_ns,
    )
    return {"reserved": usual, "on_demand": usual, "batch": patient}


def expired(
    started_ns: int, asked_ns: int | None, first_ns: int | None, last_ns: int | None, now_ns: int,
    deadlines: Deadlines,
) -> Refusal | None:
    """What to say of the deadline that has passed, the most telling one first.

    `started_ns`: the whole request was there. `asked_ns`: an engine of this site was asked, None
    while none was. `first_ns`: the first byte of its answer came. `last_ns`: more of it came, or
    the client took some after it had been slow; a client's pause is not the engine's silence.
    Whether a connection is made in time is seen where it is made.
    """
    if first_ns is None:
        if asked_ns is not None and now_ns - asked_ns > deadlines.engine_ns:
            return refusal("first_byte_timeout", deadlines.engine_ns / SECOND_NS)
        if now_ns - started_ns > deadlines.first_byte_ns:
            return refusal("first_byte_timeout", deadlines.first_byte_ns / SECOND_NS)
    elif now_ns - (last_ns or first_ns) > deadlines.between_events_ns:
        return refusal("between_events_timeout", deadlines.between_events_ns / SECOND_NS)
    if now_ns - started_ns > deadlines.total_ns:
        return refusal("total_timeout", deadlines.total_ns / SECOND_NS)
    return None


def refusal(reason: Reason, took_s: float) -> Refusal:
    """What a client is told; in a stream that has begun, its code and message in the last event."""
    if reason == "connect_timeout":
        what = "No engine could be reached within"
    elif reason == "first_byte_timeout":
        what = "No byte of an answer came within"
    elif reason == "between_events_timeout":
        what = "The engine stopped in its answer and said nothing more for"
    else:
        what = "The answer was not complete after"
    return Refusal(status=504, reason=reason, message=f"{what} {took_s:g} s.")
