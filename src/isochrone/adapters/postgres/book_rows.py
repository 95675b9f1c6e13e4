"""Usage events as rows of the tables `usage` and `evidence`, grounds as JSON, and back."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from isochrone.core.errors import InvalidInput
from isochrone.core.ids import is_uuid7
from isochrone.core.metering.event import UsageEvent
from isochrone.core.routing.choice import Decision, Ground, Stopped

# Columns in the order of `values_of`; those of the token counts and of `class` are named apart.
PLAIN = (
    "request_id", "org_id", "project_id", "key_id", "client_request_id", "endpoint", "stream",
    "model", "revision", "ingress_site", "ingress_country", "serving_site", "serving_country",
    "replica", "received_at", "finished_at", "chosen_ms", "sent_ms", "first_byte_ms", "total_ms",
    "outcome", "status", "reason", "reporter", "attempts",
)
COLUMNS = (
    *PLAIN, "class", "input_uncached", "input_cached", "output", "token_source", "decision",
)
_DURATIONS = ("chosen_ms", "sent_ms", "first_byte_ms", "total_ms")


def values_of(event: UsageEvent) -> tuple[object, ...]:
    """The values of `COLUMNS`; raises InvalidInput for what cannot be stored and read back."""
    problems = []
    if not is_uuid7(event.request_id):
        problems.append(f"the request id {event.request_id!r} is not a UUID of version 7")
    for name in _DURATIONS:
        duration = getattr(event, name)
        if duration is not None and not math.isfinite(duration):
            problems.append(f"{name} is {duration}, not a finite number")
    decision = None
    if event.decision is not None:
        try:
            decision = _json(event.decision)
        except msgspec.ValidationError as error:
            problems.append(f"the decision cannot be kept: {error}")
    if problems:
        raise InvalidInput(problems)
    tokens = event.tokens
    return (
        *(getattr(event, name) for name in PLAIN),
        event.class_, tokens.input_uncached, tokens.input_cached, tokens.output, tokens.source,
        decision,
    )


def ground_text(ground: Ground) -> str:
    """A ground as JSON; raises InvalidInput for what cannot be stored and read back."""
    try:
        return _json(ground)
    except msgspec.ValidationError as error:
        raise InvalidInput([f"the ground {ground.id} cannot be kept: {error}"]) from error


def ground_of(stored: object) -> Ground:
    """The ground of a value of its column."""
    return msgspec.convert(stored, Ground)


def stops_of(stored: object) -> tuple[Stopped, ...]:
    """Those of a decision, of the value of its field."""
    return msgspec.convert(stored or (), tuple[Stopped, ...])


def _json(noun: Decision | Ground) -> str:
    """Text that reads back; ValidationError where a number that is not finite became null."""
    text = msgspec.json.encode(noun).decode()
    msgspec.json.decode(text, type=type(noun))
    return text


def event_of(row: Sequence[Any]) -> UsageEvent:
    """The event of a row of `COLUMNS`."""
    fields = dict(zip(COLUMNS, row, strict=True))
    fields["request_id"] = str(fields["request_id"])
    fields["class_"] = fields.pop("class")
    if fields["decision"] is not None and "ground" not in fields["decision"]:
        fields["decision"] = None  # of a shape that we no longer show; the row keeps it
    fields["tokens"] = {
        "input_uncached": fields.pop("input_uncached"),
        "input_cached": fields.pop("input_cached"),
        "output": fields.pop("output"),
        "source": fields.pop("token_source"),
    }
    return msgspec.convert(fields, UsageEvent)
