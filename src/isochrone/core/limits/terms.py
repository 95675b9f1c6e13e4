"""The numbers of limits: who keeps one, how long grants last, what may be used without one.

A limit is kept by its custodians, three gateways by rendezvous hash (Thaler and Ravishankar 1998):
its home first, then two successors. With fewer than three gateways only the home keeps it: two
could never outvote one another.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from isochrone.core.ids import LimitId, SiteName
from isochrone.core.world.limit import Limit

SECOND_NS: Final = 1_000_000_000
HOUR_NS: Final = 3_600 * SECOND_NS
DAY_NS: Final = 24 * HOUR_NS
TERM_NS: Final = 6 * SECOND_NS          # how long a grant is used
ASK_NS: Final = 2 * SECOND_NS           # how often one that is used is renewed
IDLE_ASK_NS: Final = 20 * SECOND_NS     # how often it is said that something was used before
RETRY_NS: Final = 400_000_000           # what is not answered is said again
SILENT_NS: Final = 900_000_000          # and then to the next custodian
MINUTE_NS: Final = 60 * SECOND_NS       # what was admitted counts for so long at most
LONGEST_NS: Final = 600 * SECOND_NS     # how long a request may run
AMNESIA_NS: Final = 70 * SECOND_NS      # a custodian that starts anew decides nothing for so long
NEW_NS: Final = 30 * SECOND_NS          # unless the limit is new itself
WAIT_NS: Final = 3 * SECOND_NS          # how long a request waits for a grant at most
HORIZON_S: Final = 5.0                  # a grant covers what is used in so long beforehand
CUSTODIANS: Final = 3
BOOTSTRAP_PART: Final = 20              # of the amount, over all gateways
MOST_AMOUNT: Final = 4_000_000_000_000_000_000


def custodians_of(limit_id: LimitId, sites: Iterable[SiteName]) -> tuple[SiteName, ...]:
    """The home, then its successors."""
    ranked = sorted(
        sites, reverse=True,
        key=lambda site: blake2b(f"{limit_id}\n{site}".encode(), digest_size=8).digest(),
    )
    return tuple(ranked[:CUSTODIANS] if len(ranked) >= CUSTODIANS else ranked[:1])


def bootstrap_of(amount: int, gateways: int) -> int:
    """What one gateway may have used, in all, while nobody has granted it anything."""
    return amount // (BOOTSTRAP_PART * max(gateways, 1))


def most_overspent(amount: int, gateways: int) -> int:
    """What all gateways together may use beyond a limit, besides what requests that run may turn
    out larger than they were estimated."""
    return gateways * bootstrap_of(amount, gateways)


def most_headroom(amount: int, gateways: int) -> int:
    """What a gateway is granted beforehand at most; 0 for a limit that is too small to divide,
    where each request asks its home."""
    return amount // (4 * max(gateways, 1))


def mark_of(limit: Limit, period_begin: int) -> tuple[int, int]:
    """(mark, spent): of a budget, since when (wall ns) gateways count, and what was spent in the
    period before; `period_begin` is the start of the present period."""
    if limit.spent_before > period_begin:
        return limit.spent_before, limit.spent_pico
    return period_begin, 0
