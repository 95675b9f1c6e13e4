"""Power that the accelerators of a site draw, estimated from what they are and how busy they are.

Nothing here is a reading. The table is data (`isochrone/data/hardware.csv`); boards alone are
counted, not hosts, network and cooling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isochrone.core.world.site import Hardware

PowerTable = Mapping[str, float]  # kind of hardware -> most watts of one

IDLE_SHARE = 0.15  # of the most; an assumption, inference servers are seen between 0.1 and 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """`most_w`: with every slot in use."""

    watts: float
    most_w: float


def estimated_power(
    hardware: Sequence[Hardware], table: PowerTable, *, running: int, slots: int
) -> Power | None:
    """From idle to the most, in a straight line by the share of `slots` that are in use. None when
    a kind is not in the table, or there is no hardware."""
    if not hardware or any(each.kind not in table for each in hardware):
        return None
    most_w = sum(each.count * table[each.kind] for each in hardware)
    busy = min(running / slots, 1.0) if slots > 0 else 0.0
    return Power(watts=most_w * (IDLE_SHARE + (1.0 - IDLE_SHARE) * busy), most_w=most_w)
