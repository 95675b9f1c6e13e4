"""How long the body of a request takes on its way to another site, beyond the round trip.

One connection has about a window of bytes under way in a round trip, so a long path is a narrow one
however wide its links are; a short one is as wide as a site's share of its uplink.
"""

from typing import Final

WINDOW_BYTES: Final = 256 * 1024  # what a warm connection has under way
UPLINK_BYTES_MS: Final = 125_000.0  # 1 Gbit/s
LEAST_BODY_BYTES: Final = 4096  # smaller bodies go with the first packets of the round trip


def byte_ms(rtt_ms: float) -> float:
    """Milliseconds that each byte of a body adds on a path; 0 within a site (`rtt_ms` 0)."""
    if rtt_ms <= 0.0:
        return 0.0
    return 1.0 / min(UPLINK_BYTES_MS, WINDOW_BYTES / rtt_ms)


def transfer_ms(body_bytes: int, rtt_ms: float) -> float:
    """What the transfer of a whole body adds."""
    return body_bytes * byte_ms(rtt_ms) if body_bytes >= LEAST_BODY_BYTES else 0.0
