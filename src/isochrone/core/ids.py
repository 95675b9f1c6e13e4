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


def uuid7(wall_ns: int, random_bits: int) -> str:
    """Canonical UUIDv7 text: milliseconds of `wall_ns`, then 74 random bits (RFC 9562, 5.7)."""
    millis = (wall_ns // 1_000_000) & 0xFFFF_FFFF_FFFF
    text = (millis << 80 | random_bits).to_bytes(16, "big").hex()
    variant = "89ab89ab89ab89ab"[int(text[16], 16)]
    return f"{text[:8]}-{text[8:12]}-7{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


def is_uuid7(text: str) -> bool:
    """True for the canonical lower-case form of a UUID of version 7."""
    try:
        parsed = UUID(text)
    except ValueError:
        return False
    return parsed.version == 7 and str(parsed) == text
