"""Rates to assume for a kind of hardware until a replica has been measured.

The table is data (`isochrone/data/hardware.csv`); a measured rate always replaces a seed.
"""

from collections.abc import Mapping, Sequence

from isochrone.core.estimate.service import Rates
from isochrone.core.world.site import Hardware

HardwareTable = Mapping[str, Rates]

# A site that states no known hardware is assumed to be slower than every entry of the packaged
# table, so that a site whose rate is known is tried first.
SLOW = Rates(prefill_tok_s=200.0, decode_tok_s=10.0)


def seed_of(hardware: Sequence[Hardware], table: HardwareTable) -> tuple[str, Rates]:
    """The slowest stated kind (a replica may land on any of them) and its rates; no kind, and
    `SLOW`, when none is known."""
    known = [(each.kind, table[each.kind]) for each in hardware if each.kind in table]
    return min(
        known, key=lambda each: (each[1].prefill_tok_s, each[1].decode_tok_s), default=("", SLOW)
    )


def seed_rates(hardware: Sequence[Hardware], table: HardwareTable) -> Rates:
    """As `seed_of`, the rates alone."""
    return seed_of(hardware, table)[1]
