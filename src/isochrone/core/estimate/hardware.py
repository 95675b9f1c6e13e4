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


def seed_rates(hardware: Sequence[Hardware], table: HardwareTable) -> Rates:
    """Rates of the slowest stated kind (a replica may land on any of them), else `SLOW`."""
    known = [table[each.kind] for each in hardware if each.kind in table]
    return min(known, key=lambda rates: (rates.prefill_tok_s, rates.decode_tok_s), default=SLOW)
