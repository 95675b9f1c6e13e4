"""Judges where requests ran: never outside the countries that their policy allows."""

from collections.abc import Iterator

from isochrone.twin.checks.record import Record


def kept(record: Record) -> Iterator[str]:
    """No engine computed, no answer named and no booked request says a country that was not
    allowed. A country that is not known is not allowed either."""
    asked = {one.reference: one for one in record.asked}
    for work in record.worked or ():
        one = asked.get(work.reference)
        if one is None:
            yield f"an engine at {work.site} computed {work.reference!r}, which nobody asked"
        elif one.countries is not None and work.country not in one.countries:
            yield f"request {work.reference} was computed at {work.site}, {work.country}"
    for one in record.asked:
        if one.countries is None or one.status != 200:
            continue
        if one.serving_country not in one.countries:
            yield f"the answer of request {one.reference} names {one.serving_country}"
    for event in record.booked or ():
        one = asked.get(event.client_request_id or "")
        if one is None or one.countries is None or event.serving_country is None:
            continue
        if event.serving_country not in one.countries:
            yield f"request {one.reference} is booked as served in {event.serving_country}"
