"""Identifiers: typed strings, and UUIDv7 from a given instant and given random bits.

The request id is made by the ingress gateway from its clock and chance ports and is never taken
from a client; it keys usage, evidence, decision and charge. No clock or chance is read here.
"""

from typing import Final, NewType
from uuid import UUID

RequestId = NewType("RequestId", str)
OrgId = NewType("OrgId", str)
ProjectId = NewType("ProjectId", str)
KeyId = NewType("KeyId", str)
PolicyId = NewType("PolicyId", str)
SiteName = NewType("SiteName", str)
ModelName = NewType("ModelName", str)
ReplicaId = NewType("ReplicaId", str)
HostName = NewType("HostName", str)
EntitlementId = NewType("EntitlementId", str)
LimitId = NewType("LimitId", str)

RANDOM_BITS: Final = 76  # two of them make room for the variant


_VARIANTS: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def uuid7(wall_ns: int, random_bits: int) -> str:
    """Canonical UUIDv7 text: milliseconds of `wall_ns`, then 74 random bits (RFC 9562, 5.7)."""
    return uuid7_of(uuid7_begin(wall_ns // 1_000_000), random_bits)


def uuid7_begin(wall_ms: int) -> str:
    """What all UUIDv7 of one millisecond begin with."""
    text = (wall_ms & 0xFFFF_FFFF_FFFF).to_bytes(6, "big").hex()
    return f"{text[:8]}-{text[8:]}-7"


def uuid7_of(begin: str, random_bits: int) -> str:
    """The UUIDv7 with these RANDOM_BITS of the millisecond that `begin` was made of."""
    text = random_bits.to_bytes(10, "big").hex()
    return f"{begin}{text[1:4]}-{_VARIANTS[text[4]]}{text[5:8]}-{text[8:]}"


def is_uuid7(text: str) -> bool:
    """True for the canonical lower-case form of a UUID of version 7."""
    try:
        parsed = UUID(text)
    except ValueError:
        return False
    return parsed.version == 7 and str(parsed) == text
