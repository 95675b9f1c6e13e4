"""Which replica of the chosen site: of those that may be asked, the least share of slots taken, or
one with a free slot that has computed the prompt's beginning.

The decision runs over records that the gateway keeps up to date, so that a request builds nothing.
"""

from collections.abc import Collection, Iterable, Mapping
from math import inf

from isochrone.core.ids import ReplicaId
from isochrone.core.lifecycle.breaker import Breaker, may_ask
from isochrone.core.rng import Random
from isochrone.core.world.model import Endpoint, Replica


class Standing:
    """One replica as its gateway sees it now. `running` may exceed its slots: the rest queues;
    `share` is running / slots, and has to be kept so. `breaker` None is a closed one without
    failures; `listed` False once nobody speaks of it."""

    __slots__ = ("breaker", "listed", "ready", "replica", "running", "share", "slots")

    def __init__(self, replica: Replica) -> None:
        self.running = 0
        self.share = 0.0
        self.breaker: Breaker | None = None
        self.listed = True
        self.take(replica)

    def take(self, replica: Replica) -> None:
        """What is said of the replica now."""
        self.replica = replica
        self.ready = replica.state == "ready"
        self.slots = max(replica.slots, 1)
        self.share = self.running / self.slots

    def count(self, change: int) -> None:
        """Requests that were sent to it, or came to their end."""
        self.running += change
        self.share = self.running / self.slots


def pick(
    standings: Iterable[Standing],
    tried: Collection[ReplicaId],
    *,
    now_ns: int,
    rng: Random,
    revision: str | None = None,
    endpoint: Endpoint = "chat.completions",
    cached: Mapping[ReplicaId, float] | None = None,
) -> Standing | None:
    """The least loaded replica that is ready, untried and let through by its breaker, equals by
    chance; None when there is none. `revision`: only replicas of exactly these weights;
    `endpoint`: only replicas whose engine has it. `cached`: leading tokens of the prompt that
    replicas are believed to have; with a slot free the one with the most goes first, since what it
    need not compute is worth more than an emptier engine."""
    best: Standing | None = None
    least, equals = inf, 1
    for each in standings:
        share = each.share
        if cached is not None and share < 1.0:
            share -= cached.get(each.replica.id, 0.0)
        if share > least or not each.ready:
            continue
        replica = each.replica
        if (
            endpoint not in replica.endpoints
            or (tried and replica.id in tried)
            or (revision is not None and replica.revision != revision)
            or (each.breaker is not None and not may_ask(each.breaker, now_ns))
        ):
            continue
        if share == least:
            equals += 1
            if rng.random() * equals >= 1:
                continue
        else:
            least, equals = share, 1
        best = each
    return best
