"""Judges what clients saw: every request ends, with an answer or a refusal that says why."""

from collections.abc import Iterator

from isochrone.twin.checks.record import Asked, Down, Record

LISTENS_S = 8.0  # so long after its start a gateway listens, with a view or without one


def ended(record: Record) -> Iterator[str]:
    """Every request came to an end."""
    for one in record.asked:
        if one.ended_s is None:
            yield f"request {one.reference} at {one.ingress} never ended"


def answered_or_told(record: Record) -> Iterator[str]:
    """A request that ended was answered whole, refused with a typed reason, ended with an error
    event, or lost with the gateway that its client was connected to."""
    for one in record.asked:
        if one.ended_s is None or one.left or one.whole or one.told_error:
            continue
        if one.status >= 400:
            if one.code is None or one.reason is None:
                yield (
                    f"request {one.reference} at {one.ingress}: status {one.status} without a"
                    f" typed reason (code {one.code}, reason {one.reason})"
                )
        elif not _lost_with_its_ingress(one, record.downs):
            yield (
                f"request {one.reference} at {one.ingress}: status {one.status} and neither an"
                f" end, an error event, nor a death of its gateway"
            )


def recovered(record: Record) -> Iterator[str]:
    """After the faults had ended, requests that somebody may serve were answered."""
    for one in record.asked:
        if one.must_succeed and not one.whole:
            yield (
                f"request {one.reference} at {one.ingress}, after the faults ended: status"
                f" {one.status}, {one.reason or one.code or 'not whole'}"
            )


def _lost_with_its_ingress(one: Asked, downs: tuple[Down, ...]) -> bool:
    assert one.ended_s is not None
    return any(
        down.site == one.ingress and down.at_s <= one.ended_s
        and one.began_s <= down.back_s + (0.0 if down.lives else LISTENS_S)
        for down in downs
    )
