"""Which replica of the chosen site: of those that may be asked, the least share of slots taken.

The decision runs over records that the gateway keeps up to date, so that a request builds nothing.
"""

from collections.abc import Container, Iterable

from isochrone.core.ids import ReplicaId
from isochrone.core.lifecycle.breaker import Breaker, may_ask
from isochrone.core.rng import Random
from isochrone.core.world.model import Endpoint, Replica


class Standing:
    """One replica as its gateway sees it now. `running` may exceed its slots: the rest queues.
    `breaker` None is a closed one without failures; `listed` False once nobody speaks of it."""

    __slots__ = ("breaker", "listed", "replica", "running")

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.running = 0
        self.breaker: Breaker | None = None
        self.listed = True


def pick(
    standings: Iterable[Standing],
    tried: Container[ReplicaId],
    *,
    now_ns: int,
    rng: Random,
    revision: str | None = None,
    endpoint: Endpoint = "chat.completions",
) -> Standing | None:
    """The least loaded replica that is ready, untried and let through by its breaker, equals by
    chance; None when there is none. `revision`: only replicas of exactly these weights;
    `endpoint`: only replicas whose engine has it."""
    best: Standing | None = None
    running, slots, equals = 0, 1, 1
    for each in standings:
        replica = each.replica
        if replica.state != "ready" or replica.id in tried:
            continue
        if each.breaker is not None and not may_ask(each.breaker, now_ns):
            continue
        if endpoint not in replica.endpoints:
            continue
        if revision is not None and replica.revision != revision:
            continue
        ours, theirs = each.running * slots, running * (replica.slots or 1)  # shares, as integers
        if best is None or ours < theirs:
            equals = 1
        elif ours > theirs:
            continue
        else:
            equals += 1
            if rng.random() * equals >= 1:
                continue
        best, running, slots = each, each.running, replica.slots or 1
    return best
