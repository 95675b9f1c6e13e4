"""What each gateway of our own policy knows in the simulation, and what it keeps of a request."""

from array import array
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final

from isochrone.core.admission.classes import ON_DEMAND
from isochrone.core.admission.fair_order import Ticket
from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.admission.sent_back import begins_in_ms
from isochrone.core.admission.site_queue import SiteQueue
from isochrone.core.estimate.hardware import SLOW
from isochrone.core.estimate.room import room
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.rng import Random
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.loads import Dispatch, Loads
from isochrone.core.routing.patience import MARGIN_MS
from isochrone.core.routing.pick import Standing, soonest_ms
from isochrone.core.routing.prefix import (
    BLOCK_BYTES,
    BLOCK_ENDS,
    UNKNOWN,
    Belief,
    Prefixes,
    Sighting,
)
from isochrone.core.routing.sessions import Sessions
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.digest import ReplicaLoad
from isochrone.core.world.model import Replica
from isochrone.core.world.tenant import Class
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.news import Digests, Told
from isochrone.twin.fast.policy import Flight

RETRY_RATIO: Final = 0.1    # as the gateway's settings
RETRIES_PER_S: Final = 10.0
NOT_TRIED: Final[tuple[ReplicaId, ...]] = ()
_LOOKED_AT: Final[list[int]] = [end // BLOCK_BYTES - 1 for end in BLOCK_ENDS]


def gateway_blocks(blocks: Sequence[int]) -> Sequence[int]:
    """Of the hashes of a prompt's blocks of one size those at which a gateway's larger ones end:
    each covers all before it, so these are the gateway's hashes."""
    found: list[int] = []
    count = len(blocks)
    for at in _LOOKED_AT:
        if at >= count:
            break
        found.append(blocks[at])
    return found


class Gateway:
    """What the gateway of one place knows. `site` is the number of the site there, -1 for none."""

    __slots__ = (
        "delays_s", "ingress", "late", "loads", "name", "next_news", "prefixes", "retries", "rng",
        "sessions", "site", "table",
    )

    def __init__(
        self, name: SiteName, ingress: int, site: int, table: RoutingTable, rng: Random,
        delays_s: "array[float]",
    ) -> None:
        self.name = name
        self.ingress = ingress
        self.site = site
        self.table = table
        self.rng = rng
        self.delays_s = delays_s  # of each site's digests
        self.loads = Loads()
        self.prefixes = Prefixes()
        self.sessions = Sessions()
        self.retries = RetryBudget(RETRY_RATIO, RETRIES_PER_S)
        self.next_news = 0
        self.late: list[Told] = []  # that were made and have not arrived

    def listen(self, news: Digests, now_s: float) -> None:
        """Hear what has arrived since somebody last asked here; and those who recover, recover."""
        if self.loads.health.ailing:
            self.loads.health.sweep(int(now_s * 1e9))
        late = self.late
        if late:
            first = late[0]
            if len(late) > 4 or first.made_s + self.delays_s[first.site] <= now_s:
                self.late = [told for told in late if not self._hear(told, news, now_s)]
        made = news.made
        if self.next_news < made:
            for number in range(news.first_since(self.next_news), made):
                told = news.numbered(number)
                if not self._hear(told, news, now_s):
                    self.late.append(told)
            self.next_news = made

    def _hear(self, told: Told, news: Digests, now_s: float) -> bool:
        at_s = told.made_s + self.delays_s[told.site]
        if at_s > now_s:
            return False
        if self.ingress >= 0 and not news.passes(told.site, self.ingress):
            return True  # it is lost on its way
        self.loads.take(told.report, int(at_s * 1e9))
        self.prefixes.heard(told.said)
        return True


def replica_of(fleet: Fleet, number: int, ident: ReplicaId, generation: int) -> Replica:
    """A replica of the fleet as its site's gateway knows it."""
    spec = fleet.replicas[number]
    model = fleet.models[spec.model].name
    return Replica(
        id=ident, site=fleet.sites[spec.site].name, model=model, revision=None,
        generation=generation, state="ready", engine="openai", base_url="", engine_key=None,
        credential=None, upstream_model="", slots=spec.physics.slots, pid=None, started_at=0,
    )


class Sent:
    """What the ingress keeps of a request that it sent. `blocks`: as gateways hash its prompt."""

    __slots__ = (
        "belief", "blocks", "bounced", "claimed", "gateway", "patience_ms", "pushed", "rank",
        "refusals", "seen", "ticket", "tries",
    )

    def __init__(self, gateway: Gateway, blocks: Sequence[int]) -> None:
        self.gateway = gateway
        self.blocks = blocks
        self.belief: Belief | None = None
        self.seen: Sighting | None = None
        self.ticket: Dispatch | None = None
        self.refusals: list[Refused] | None = None
        self.pushed = False
        self.tries = 0
        self.rank = ON_DEMAND  # of the class in which it is served
        self.claimed = 0       # tokens of what was sold to its tenant
        self.patience_ms = inf
        self.bounced = False  # by the site that it was sent to last

    def is_impatient(self, place: "Place", class_: Class, tenant: str, now_ns: int) -> bool:
        """Whether it wants to be sent back, as the gateway's `SiteQueues.enter` finds."""
        engines_ms = soonest_ms(place.standings)
        wait_ms = begins_in_ms(place.queue, class_, tenant, engines_ms, now_ns)
        return wait_ms > MARGIN_MS and wait_ms > self.patience_ms


class Served:
    """What the serving site's gateway keeps of it. `tried`: the replicas that had it before."""

    __slots__ = (
        "belief", "expected_tokens", "queue", "seen", "standing", "ticket", "tried", "turn",
        "unread_tokens",
    )

    def __init__(self, queue: "Place", turn: Ticket) -> None:
        self.queue = queue
        self.turn = turn
        self.belief: Belief | None = None
        self.seen: Sighting | None = None
        self.standing: Standing | None = None
        self.ticket: Dispatch | None = None
        self.tried = NOT_TRIED
        self.unread_tokens = 0
        self.expected_tokens = 0

    def tried_now(self) -> tuple[ReplicaId, ...]:
        """The replicas that had it, the present one included."""
        standing = self.standing
        return self.tried if standing is None else (*self.tried, standing.replica.id)


class Place:
    """The queue and the replicas of one model at one site. `flights` are those that wait in the
    queue. `pushed`: how many requests came past a nearer site."""

    __slots__ = (
        "flights", "numbers", "output_weight", "pushed", "queue", "rates", "standings",
    )

    def __init__(self, queue: SiteQueue) -> None:
        self.queue = queue
        self.output_weight = queue.policy.output_weight
        self.standings: list[Standing] = []
        self.numbers: dict[ReplicaId, int] = {}
        self.flights: dict[Ticket, Flight] = {}
        self.pushed = 0
        self.rates: Rates | None = None

    def engines_read(self) -> None:
        """Tell the queue how fast they do, as far as that is known."""
        names: list[str] = [each.replica.id for each in self.standings]
        self.queue.engines_read(names, 0.0 if self.rates is None else self.rates.prefill_tok_s)

    def crowd(self, replicas: Sequence[ReplicaLoad], usual: Mapping[ModelName, float]) -> None:
        """What engines said of how full they are."""
        said_of = {each.id: each for each in replicas}
        for standing in self.standings:
            own = said_of.get(standing.replica.id)
            if own is not None and own.generation == standing.generation:
                holds = room(standing.slots, own, usual[own.model])
                standing.crowd(own.running, own.waiting, holds)

    def held(self, beliefs: dict[ReplicaId, Belief], generations: list[int]) -> dict[
        ReplicaId, float
    ]:
        """Leading tokens by replica, of those that run as they did."""
        held: dict[ReplicaId, float] = {}
        for replica, belief in beliefs.items():
            at = self.numbers.get(replica, -1)
            if at >= 0 and belief.sighting.generation in (generations[at], UNKNOWN):
                held[replica] = belief.tokens
        return held


def places_of(fleet: Fleet) -> list[list[Place | None]]:
    """By site and model: empty ones, as a gateway opens them, where there are replicas."""
    slot_ns = 1e9 / (fleet.admission.output_weight * SLOW.decode_tok_s)
    return [
        [
            Place(SiteQueue(fleet.admission, 0, slot_ns, guessed=True)) if numbers else None
            for numbers in models
        ]
        for models in fleet.at
    ]


def replica_ids(fleet: Fleet) -> list[ReplicaId]:
    """By the number of the replica."""
    return [
        ReplicaId(f"{fleet.sites[spec.site].name}-{number}")
        for number, spec in enumerate(fleet.replicas)
    ]
