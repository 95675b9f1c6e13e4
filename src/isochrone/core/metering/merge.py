"""Decides which of two reports of the same request stands in the book.

Reports may arrive in any order and any number of times, so the rule is commutative, associative and
idempotent: the ingress saw the whole request and outranks the serving gateway's evidence, which
outranks what a crashed ingress found in its journal. Equal ranks: the larger token total, then the
later end, then a fixed order over the whole content, so that every reader picks the same one.
"""

from isochrone.core.metering.event import Reporter, UsageEvent

RANK: dict[Reporter, int] = {"recovered": 0, "evidence": 1, "ingress": 2}


def _order(event: UsageEvent) -> tuple[int, int, int, str]:
    return (RANK[event.reporter], event.tokens.total, event.finished_at, repr(event))


def better(one: UsageEvent, other: UsageEvent) -> UsageEvent:
    """The report to keep. Raises ValueError when the two are of different requests."""
    if one.request_id != other.request_id:
        raise ValueError(f"not one request: {one.request_id} and {other.request_id}")
    return one if _order(one) >= _order(other) else other
