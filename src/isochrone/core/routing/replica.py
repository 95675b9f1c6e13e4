"""Which replica of the chosen site: the ready one with the smallest share of its slots taken.

Decided by the serving gateway, which alone knows its replicas exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from isochrone.core.ids import ReplicaId
from isochrone.core.rng import Random


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSlots:
    """One replica as its gateway sees it now. `running` may exceed `slots`: the rest queues."""

    id: ReplicaId
    ready: bool
    running: int
    slots: int


def choose_replica(replicas: Sequence[ReplicaSlots], rng: Random) -> ReplicaId | None:
    """The least loaded ready replica, equals by chance; None when none is ready."""
    best: list[ReplicaSlots] = []
    best_share = float("inf")
    for replica in replicas:
        if not replica.ready:
            continue
        share = replica.running / max(replica.slots, 1)
        if share < best_share:
            best, best_share = [replica], share
        elif share == best_share:
            best.append(replica)
    if not best:
        return None
    return best[0].id if len(best) == 1 else best[int(rng.random() * len(best))].id
