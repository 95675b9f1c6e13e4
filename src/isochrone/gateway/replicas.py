"""The replicas of this gateway's own site: what the agent says of them, and what they run now.

Running counts are this gateway's own: whatever the site serves passes through here. A replica whose
connection failed is left out for a moment, until the agent has noticed or it answers again.
"""

from collections.abc import Container

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.rng import Random
from isochrone.core.routing.replica import ReplicaSlots, choose_replica
from isochrone.core.world.model import Replica

LOST_HOLD_NS = 1_000_000_000


class Replicas:
    """By the key of their bucket entry, so that a deletion finds its replica."""

    def __init__(self) -> None:
        self._by_entry: dict[str, Replica] = {}
        self._by_model: dict[ModelName, dict[ReplicaId, Replica]] = {}
        self._running: dict[ReplicaId, int] = {}
        self._lost: dict[ReplicaId, tuple[int, int]] = {}  # generation, until (monotonic ns)

    def put(self, entry: str, replica: Replica) -> bool:
        """Take the agent's word; False for a generation older than the one known."""
        known = self._by_entry.get(entry)
        if known is not None:
            if replica.generation < known.generation:
                return False
            self.drop(entry)
        self._by_entry[entry] = replica
        self._by_model.setdefault(replica.model, {})[replica.id] = replica
        return True

    def drop(self, entry: str) -> None:
        replica = self._by_entry.pop(entry, None)
        if replica is not None:
            of_model = self._by_model[replica.model]
            of_model.pop(replica.id, None)
            if not of_model:
                del self._by_model[replica.model]

    def reaches(self, site: SiteName) -> bool:
        """Whether this gateway holds replicas of the site."""
        return any(replica.site == site for replica in self._by_entry.values())

    def pick(
        self, site: SiteName, model: ModelName, tried: Container[ReplicaId], *, now_ns: int,
        rng: Random,
    ) -> Replica | None:
        """The ready replica with the smallest share of its slots taken; None when none is."""
        of_model = self._by_model.get(model)
        if not of_model:
            return None
        slots = [
            ReplicaSlots(
                id=replica.id,
                ready=replica.state == "ready"
                and replica.id not in tried
                and not self._is_lost(replica, now_ns),
                running=self._running.get(replica.id, 0),
                slots=replica.slots,
            )
            for replica in of_model.values()
        ]
        chosen = choose_replica(slots, rng)
        return None if chosen is None else of_model[chosen]

    def started(self, replica: ReplicaId) -> None:
        """A request was sent to it."""
        self._running[replica] = self._running.get(replica, 0) + 1

    def finished(self, replica: ReplicaId) -> None:
        """A request that was sent to it is over."""
        left = self._running.get(replica, 0) - 1
        if left > 0:
            self._running[replica] = left
        else:
            self._running.pop(replica, None)

    def lost(self, replica: Replica, now_ns: int) -> None:
        """A connection to it failed."""
        self._lost[replica.id] = (replica.generation, now_ns + LOST_HOLD_NS)

    def _is_lost(self, replica: Replica, now_ns: int) -> bool:
        mark = self._lost.get(replica.id)
        if mark is None:
            return False
        generation, until_ns = mark
        if replica.generation == generation and now_ns < until_ns:
            return True
        del self._lost[replica.id]
        return False
