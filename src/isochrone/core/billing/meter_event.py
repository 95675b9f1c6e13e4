"""Usage that no request tells: events of meters, and what they come to by the hour.

An event is known by its tenant and its id, for ever. It says when something was used, which is not
when it arrives. It is never changed: a later one names it in `replaces`, and then only that counts.
An event with a `request_id` says anew how much of a meter a request used; it counts as the
difference to what was booked (`was`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

from isochrone.core.billing.sheet import HOUR_NS, Facts, Meter
from isochrone.core.ids import OrgId, ProjectId, RequestId

SECOND_NS = 1_000_000_000
LONGEST_NS = 366 * 24 * HOUR_NS
LARGEST_AMOUNT = 10**18
Aggregation = Literal["sum", "max", "unique", "time_weighted"]
Verdict = Literal["accepted", "duplicate", "conflicting", "unmetered", "refused"]

# How events of an hour come to its quantity; a period's is the sum over its hours.
AGGREGATIONS: Mapping[Meter, Aggregation] = {
    "input_uncached_tokens": "sum",
    "input_cached_tokens": "sum",
    "output_tokens": "sum",
    "requests": "sum",
    "bytes": "sum",
    "gpu_seconds": "time_weighted",           # gpus held, from and until
    "link_megabit_seconds": "time_weighted",  # megabits a second
    "storage_gib_seconds": "time_weighted",   # GiB kept
    "peak_streams": "max",
    "active_users": "unique",                 # by subject
}
OF_REQUESTS: frozenset[str] = frozenset(
    ("input_uncached_tokens", "input_cached_tokens", "output_tokens", "requests")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterEvent:
    """`amount`: what was used, or of a time-weighted meter the level from `from_at` until before
    `until_at` (wall ns, whole seconds). `facts.meter` may be one that is not known here."""

    id: str
    org_id: OrgId
    project_id: ProjectId
    facts: Facts
    amount: int
    from_at: int
    until_at: int | None = None
    subject: str = ""
    replaces: str | None = None
    request_id: RequestId | None = None
    was: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one event, and why."""

    id: str
    verdict: Verdict
    reason: str = ""


def aggregation_of(meter: str) -> Aggregation | None:
    """None for a meter that is not known."""
    return next((how for known, how in AGGREGATIONS.items() if known == meter), None)


def problems_of(event: MeterEvent) -> list[str]:
    """Why an event may not be taken; none when it may. Whatever its meter."""
    found = []
    if not 0 <= event.amount <= LARGEST_AMOUNT:
        found.append(f"amount: must be 0..{LARGEST_AMOUNT}")
    if not 0 <= event.from_at < 2**62:
        found.append("from_at: is not an instant")
    how = aggregation_of(event.facts.meter)
    if how == "time_weighted":
        found += _span_problems(event)
    elif event.until_at is not None:
        found.append(f"until_at: {event.facts.meter} is not by time")
    if how == "unique" and not event.subject:
        found.append("subject: missing; it is what is counted")
    if (event.facts.meter in OF_REQUESTS) != (event.request_id is not None):
        found.append(
            "request_id: gateways tell what requests use; an event of these meters says anew what"
            " one request used, and no other event names one"
        )
    return found


def _span_problems(event: MeterEvent) -> Iterable[str]:
    until_at = event.until_at
    if until_at is None or not event.from_at < until_at <= event.from_at + LONGEST_NS:
        yield "until_at: must be after from_at, by at most 366 days"
    elif event.from_at % SECOND_NS or until_at % SECOND_NS:
        yield "from_at, until_at: must be whole seconds"


def hours_of(event: MeterEvent) -> range:
    """The hours that an event is about."""
    last = event.from_at if event.until_at is None else event.until_at - 1
    return range(event.from_at - event.from_at % HOUR_NS, last + 1, HOUR_NS)


def mark_of(event: MeterEvent) -> int:
    """What stands for an event in the digest of its hours: 128 bits."""
    said = (event.id, event.amount, event.from_at, event.until_at, event.subject, event.was)
    return int.from_bytes(sha256(repr(said).encode()).digest()[:16], "big")


def quantities(events: Iterable[MeterEvent], hour_at: int) -> dict[Facts, tuple[int, int]]:
    """Quantity and digest of one hour by facts, of events of one project that count."""
    amounts: defaultdict[Facts, int] = defaultdict(int)
    seen: defaultdict[Facts, set[str]] = defaultdict(set)
    digests: defaultdict[Facts, int] = defaultdict(int)
    for event in events:
        facts = event.facts
        how = aggregation_of(facts.meter)
        if how is None or hour_at not in hours_of(event):
            continue
        digests[facts] ^= mark_of(event)
        if how == "max":
            amounts[facts] = max(amounts[facts], event.amount)
        elif how == "unique":
            seen[facts].add(event.subject)
            amounts[facts] = len(seen[facts])
        elif how == "time_weighted":
            amounts[facts] += event.amount * _seconds_within(event, hour_at)
        else:
            amounts[facts] += event.amount - event.was
    return {facts: (amount, digests[facts]) for facts, amount in amounts.items()}


def _seconds_within(event: MeterEvent, hour_at: int) -> int:
    assert event.until_at is not None, "time-weighted events have an end"
    begin, end = max(event.from_at, hour_at), min(event.until_at, hour_at + HOUR_NS)
    return (end - begin) // SECOND_NS
