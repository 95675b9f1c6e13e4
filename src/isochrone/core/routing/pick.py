"""Which replica of the chosen site: of those that may be asked, the one that answers soonest.

The second level of the same cost: the work ahead at each replica, in tokens over its rates, less
what it need not compute of the prompt. There is no way between them, and the rates of one site's
replicas are alike until it is said otherwise.

The decision runs over records that the gateway keeps up to date, so that a request builds nothing.
"""

from collections.abc import Collection, Mapping
from math import ceil, inf
from typing import Final

from isochrone.core.estimate.service import Rates, Servers, Work, queue_ms
from isochrone.core.ids import ReplicaId
from isochrone.core.lifecycle.health import HELD_BACK_MS, Health, HealthRules
from isochrone.core.rng import Random
from isochrone.core.world.model import Endpoint, Replica

# Before anything is known: only their relation matters among replicas that are alike.
USUAL: Final = Rates(prefill_tok_s=1000.0, decode_tok_s=50.0)


class Standing:
    """One replica as its gateway sees it now. `running` may exceed its slots: the rest queues;
    of these its memory `holds` so many, and it has `room` for fewer while it lets some wait.
    `ahead` is what they have to compute still. `wait_ms` is how long that keeps a newcomer, and the
    share of slots taken besides, by less than any wait: it has to be kept so. `health` is what its
    requests say of it; `spared` are those of its slots that it is not to fill until it has
    recovered; `listed` False once nobody speaks of it; `rated` True once its speed is known."""

    __slots__ = (
        "ahead", "generation", "health", "holds", "listed", "rated", "ready", "replica", "room",
        "running", "servers", "slots", "spared", "wait_ms",
    )

    def __init__(self, replica: Replica) -> None:
        self.running = self.spared = 0
        self.slots = self.holds = self.room = self.generation = 0
        self.ahead = Work()
        self.wait_ms = 0.0
        self.health = Health()
        self.listed = True
        self.rated = False
        self.servers = Servers(ready=1, slots=1, rates=USUAL)
        self.take(replica)

    def take(self, replica: Replica) -> None:
        """What is said of the replica now."""
        self.replica = replica
        self.ready = replica.state == "ready"
        slots = max(replica.slots, 1)
        if slots != self.slots or replica.generation != self.generation:
            self.generation, self.slots = replica.generation, slots
            self.holds = self.room = slots
            self.servers = Servers(ready=1, slots=slots, rates=self.servers.rates)
        self.weigh()

    def rate(self, rates: Rates) -> None:
        """What is known of its speed."""
        self.rated = True
        if rates != self.servers.rates:
            self.servers = Servers(ready=1, slots=self.room, rates=rates)
            self.weigh()

    def spare(self, share: float) -> bool:
        """Whether it is to fill more or fewer of its slots than before, at this share of work."""
        before, self.spared = self.spared, self.holds - ceil(share * self.holds)
        return self.spared != before

    def crowd(self, running: int, waiting: int, holds: int) -> None:
        """What its engine said of itself: how many requests its memory `holds`; and while it lets
        some wait, it takes no more than it runs, whatever else it says."""
        self.holds = min(max(holds, 1), self.slots)
        room = min(max(running, 1), self.holds) if waiting > 0 else self.holds
        if room != self.room:
            self.room = room
            self.servers = Servers(ready=1, slots=room, rates=self.servers.rates)
            self.weigh()

    def count(self, change: int, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """`change` requests that were sent to it, below 0: that ended; and their tokens, which it
        has to compute now, or (below 0) no more."""
        self.running += change
        ahead = self.ahead
        ahead.requests += change
        ahead.prompt_tokens += prompt_tokens
        ahead.output_tokens += output_tokens
        self.weigh()

    def expected_ms(self, prompt_tokens: int) -> float:
        """When a prompt that is sent now should be answered first."""
        return self.wait_ms + 1000.0 * prompt_tokens / self.servers.rates.prefill_tok_s

    def weigh(self) -> None:
        """Work out `wait_ms` anew."""
        share = self.running / self.slots
        self.wait_ms = queue_ms(self.servers, self.ahead) + share if self.running else 0.0


def soonest_ms(standings: Collection[Standing]) -> float:
    """When the first of the ready ones has read what it was sent; 0 where none is ready, and while
    nobody knows how fast one of them is: it may be as fast as it likes. Who is left out has nothing
    to read, and takes nothing."""
    soonest = inf
    for each in standings:
        if not each.ready or (each.health.ailing and each.health.is_out):
            continue
        if not each.rated:
            return 0.0
        if each.wait_ms < soonest:
            soonest = each.wait_ms
    return soonest if soonest < inf else 0.0


def pick(
    standings: Collection[Standing],
    tried: Collection[ReplicaId],
    *,
    now_ns: int,
    rng: Random,
    rules: HealthRules,
    revision: str | None = None,
    endpoint: Endpoint = "chat.completions",
    cached: Mapping[ReplicaId, float] | None = None,
    organisation: str = "",
) -> Standing | None:
    """The replica with the shortest wait that is ready, untried and trusted to be asked by this
    `organisation`, equals by chance; None when there is none. One that recovers waits longer for
    all but its share of the requests, unless nobody is sound, or all who are have their slots full
    and it has not its share of them.

    `revision`: only replicas of exactly these weights; `endpoint`: only replicas whose engine has
    it. `cached`: leading tokens of the prompt that replicas are believed to have; with a slot free,
    what it need not compute shortens the wait."""
    best: Standing | None = None
    least, equals = inf, 1
    for each in standings:
        wait_ms, health = each.wait_ms, each.health
        if (
            health.ailing
            and health.state == "recovering"
            and rng.random() >= health.weight(now_ns, rules)
            and _is_spared(each, standings, health.weight(now_ns, rules))
        ):
            wait_ms += HELD_BACK_MS
        if cached is not None and each.running < each.room:
            tokens = cached.get(each.replica.id, 0.0)
            wait_ms -= 1000.0 * tokens / each.servers.rates.prefill_tok_s
        if wait_ms > least or not each.ready:
            continue
        replica = each.replica
        if (
            endpoint not in replica.endpoints
            or (tried and replica.id in tried)
            or (revision is not None and replica.revision != revision)
            or (health.ailing and not health.may_ask(now_ns, organisation))
        ):
            continue
        if wait_ms == least:
            equals += 1
            if rng.random() * equals >= 1:
                continue
        else:
            least, equals = wait_ms, 1
        best = each
    return best


def _is_spared(one: Standing, standings: Collection[Standing], share: float) -> bool:
    """Whether somebody sound takes what this one is spared: while its own share of its slots is not
    used, only who has a slot free."""
    has_more = one.running < share * one.room
    for each in standings:
        if each.ready and not each.health.ailing and not (has_more and each.running >= each.room):
            return True
    return False
