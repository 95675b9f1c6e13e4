"""Which reports can be booked at all: those whose numbers a request can have.

A report is the word of one site. A count or an instant beyond these bounds is no request's, and in
the book it would stand in the way of what others report: sums by hour would leave the range of
their columns, and a day that no calendar has could never be parted.
"""

from collections.abc import Iterator

from isochrone.core.ids import is_uuid7
from isochrone.core.metering.detached import day_of_request
from isochrone.core.metering.event import UsageEvent

LARGEST_COUNT = 2**40  # of all choices together; millions of such requests fit the sum of an hour
BEYOND_INSTANTS = 1 << 62  # ns, in the year 2116


def problems_of(event: UsageEvent) -> Iterator[str]:
    """Why a report is none of a request; nothing when it may be booked."""
    if not is_uuid7(event.request_id):
        yield f"request_id: {event.request_id!r} is not a UUID of version 7"
    elif day_of_request(event.request_id) >= BEYOND_INSTANTS:
        yield f"the id {event.request_id} is of no day"
    tokens = event.tokens
    for name, count in (
        ("input_uncached", tokens.input_uncached), ("input_cached", tokens.input_cached),
        ("output", tokens.output),
    ):
        if count > LARGEST_COUNT:  # those below zero are no row of any table
            yield f"{name}: {count} is a count that no request has"
    for name, at in (("received_at", event.received_at), ("finished_at", event.finished_at)):
        if not 0 <= at < BEYOND_INSTANTS:
            yield f"{name}: {at} is not an instant"
