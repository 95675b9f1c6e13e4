"""Frames the journal's records: marker, kind, length and checksum, so that damage is seen.

Layout: MARK (4 bytes), kind (1), length of the body (4, little endian), checksum (4), body
(MessagePack). The checksum is crc32 of the body, begun with kind and length as its value. MARK
starts with a byte that cannot occur in UTF-8, so that scanning can find the next record behind
damaged bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal
from zlib import crc32

MARK: Final = b"\xf5IJ1"
_HEAD = struct.Struct("<4scII")
_pack: Final = _HEAD.pack
HEAD_BYTES: Final = _HEAD.size

Kind = Literal[b"O", b"P", b"C", b"E", b"G", b"B", b"S"]
OPENED: Final[Kind] = b"O"     # Opening
PROGRESS: Final[Kind] = b"P"   # Progress
CLOSED: Final[Kind] = b"C"     # UsageRecord
EVIDENCE: Final[Kind] = b"E"   # UsageRecord of a request that came from another site
GROUND: Final[Kind] = b"G"     # Ground: what decisions of the batch in which it stands refer to
BATCH: Final[Kind] = b"B"      # empty: what was closed since the last BATCH of this segment is one
SHIPPED: Final[Kind] = b"S"    # Shipped
ENDS = frozenset((CLOSED, EVIDENCE))
IN_BATCHES = frozenset((CLOSED, EVIDENCE, GROUND))
_KINDS: dict[bytes, Kind] = {
    k: k for k in (OPENED, PROGRESS, CLOSED, EVIDENCE, GROUND, BATCH, SHIPPED)
}


@dataclass(frozen=True, slots=True)
class Record:
    """One whole record; `offset` is where it starts in its segment."""

    offset: int
    kind: Kind
    body: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record. `torn`: no record follows, so they are the torn end of a write."""

    offset: int
    size_bytes: int
    torn: bool


def frame(kind: Kind, body: bytes) -> bytes:
    """The bytes of one record."""
    size_bytes = len(body)
    checksum = crc32(body, (size_bytes << 8 | kind[0]) & 0xFFFF_FFFF)
    return _pack(MARK, kind, size_bytes, checksum) + body


def _record_at(data: bytes, offset: int) -> Record | None:
    if not data.startswith(MARK, offset) or offset + HEAD_BYTES > len(data):
        return None
    _, kind, size, expected = _HEAD.unpack_from(data, offset)
    begin = offset + HEAD_BYTES
    body = data[begin : begin + size]
    known = _KINDS.get(kind)
    if known is None or len(body) != size:
        return None
    if crc32(body, (size << 8 | kind[0]) & 0xFFFF_FFFF) != expected:
        return None
    return Record(offset, known, body)


def scan(data: bytes) -> Iterator[Record | Damage]:
    """Every record of a segment in order, and every stretch that is none. Zeros at the end are
    reserved space and are not reported."""
    end = len(data.rstrip(b"\0"))  # may cut zeros of the last body: slices below use all of `data`
    at = 0
    while at < end:
        record = _record_at(data, at)
        if record is not None:
            yield record
            at += HEAD_BYTES + len(record.body)
            continue
        next_at = data.find(MARK, at + 1)
        while next_at >= 0 and _record_at(data, next_at) is None:
            next_at = data.find(MARK, next_at + 1)
        if next_at < 0:
            yield Damage(at, end - at, True)
            return
        yield Damage(at, next_at - at, False)
        at = next_at
