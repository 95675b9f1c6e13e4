"""Decides which deadline of a request has passed; asked a few times a second of each open one."""

from dataclasses import dataclass
from typing import Literal

from isochrone.gateway.replies import Refusal
from isochrone.gateway.settings import GatewaySettings

Reason = Literal[
    "connect_timeout", "first_byte_timeout", "between_events_timeout", "total_timeout"
]

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The time-outs of the settings in nanoseconds, computed once."""

    connect_ns: int
    first_byte_ns: int
    between_events_ns: int
    total_ns: int


def deadlines_of(settings: GatewaySettings) -> Deadlines:
    return Deadlines(
        connect_ns=int(settings.connect_timeout_s * SECOND_NS),
        first_byte_ns=int(settings.first_byte_timeout_s * SECOND_NS),
        between_events_ns=int(settings.between_events_timeout_s * SECOND_NS),
        total_ns=int(settings.total_timeout_s * SECOND_NS),
    )


def expired(
    started_ns: int, first_ns: int | None, last_ns: int | None, now_ns: int, deadlines: Deadlines
) -> Reason | None:
    """The deadline that has passed, the most telling one first.

    `started_ns`: the whole request was there. `first_ns`: the first byte of its answer came.
    `last_ns`: more of it came, or the client took some after it had been slow; a client's pause is
    not the engine's silence. Whether a connection is made in time is seen where it is made.
    """
    if first_ns is None:
        if now_ns - started_ns > deadlines.first_byte_ns:
            return "first_byte_timeout"
    elif now_ns - (last_ns or first_ns) > deadlines.between_events_ns:
        return "between_events_timeout"
    if now_ns - started_ns > deadlines.total_ns:
        return "total_timeout"
    return None


def refusal(reason: Reason, deadlines: Deadlines) -> Refusal:
    """What a client is told; in a stream that has begun, its code and message in the last event."""
    if reason == "connect_timeout":
        took_s, what = deadlines.connect_ns / SECOND_NS, "No engine could be reached within"
    elif reason == "first_byte_timeout":
        took_s, what = deadlines.first_byte_ns / SECOND_NS, "No byte of an answer came within"
    elif reason == "between_events_timeout":
        took_s = deadlines.between_events_ns / SECOND_NS
        what = "The engine stopped in its answer and said nothing more for"
    else:
        took_s, what = deadlines.total_ns / SECOND_NS, "The answer was not complete after"
    return Refusal(status=504, reason=reason, message=f"{what} {took_s:g} s.")
