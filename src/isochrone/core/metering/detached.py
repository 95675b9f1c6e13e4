"""Requests whose rows have left the book: who they are, and whether a later report is a better one.

A detached day leaves, for each of its requests, a record of 33 bytes: the id (16), the rank of the
report that stands (1), its token total (8) and its end (8), big-endian, in the order of ids. That
is what `core/metering/merge.py` orders reports by, but for the last tie, so a report can be judged
without its row. The database writes these records, and this reads them.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal
from uuid import UUID

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import UsageEvent
from isochrone.core.metering.merge import RANK

DAY_NS = 86_400_000_000_000
RECORD_BYTES = 33
EVIDENCE_BYTES = 40

# fresh: not among the detached; known: no better than what was detached; better: it would stand.
Lateness = Literal["fresh", "known", "better"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some records of a detached day, in the order of their ids."""

    first_id: RequestId
    last_id: RequestId
    marks: bytes


def day_of_request(request_id: RequestId) -> int:
    """The day (UTC, its first nanosecond) in which an id was made, by the id itself."""
    made_ms = int(request_id[:8] + request_id[9:13], 16)
    return made_ms * 1_000_000 // DAY_NS * DAY_NS


def lateness(event: UsageEvent, chunk: Chunk) -> Lateness:
    """What a report is to the records of `chunk`. Equal rank, total and end is the same report."""
    if not chunk.first_id <= event.request_id <= chunk.last_id:
        return "fresh"
    rest = _found(chunk.marks, UUID(event.request_id).bytes, RECORD_BYTES)
    if rest is None:
        return "fresh"
    stands = (rest[0], _number(rest[1:9]), _number(rest[9:]))
    told = (RANK[event.reporter], event.tokens.total, event.finished_at)
    return "better" if told > stands else "known"


def evidence_lateness(event: UsageEvent, chunk: Chunk) -> Lateness:
    """What a piece of evidence is to the records of `chunk`, which are of 40 bytes: the id (16),
    the beginning of the serving site's digest (8), the token total and the end (8 each)."""
    if not chunk.first_id <= event.request_id <= chunk.last_id:
        return "fresh"
    site = sha256((event.serving_site or "").encode()).digest()[:8]
    rest = _found(chunk.marks, UUID(event.request_id).bytes + site, EVIDENCE_BYTES)
    if rest is None:
        return "fresh"
    stands = (_number(rest[:8]), _number(rest[8:]))
    return "better" if (event.tokens.total, event.finished_at) > stands else "known"


def _found(marks: bytes, key: bytes, size: int) -> bytes | None:
    """What follows `key` in the record that begins with it; records of `size` lie in order."""
    low, high = 0, len(marks) // size
    while low < high:
        middle = (low + high) // 2
        if marks[middle * size : middle * size + len(key)] < key:
            low = middle + 1
        else:
            high = middle
    record = marks[low * size : (low + 1) * size]
    return record[len(key) :] if record.startswith(key) else None


def _number(eight_bytes: bytes) -> int:
    return int.from_bytes(eight_bytes, "big", signed=True)
