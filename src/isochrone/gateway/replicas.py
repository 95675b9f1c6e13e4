"""The replicas that this gateway asks itself: what is said of them, what runs, who is left out.

Running counts are this gateway's own. A replica that fails is left out by its breaker, until a
probe succeeds or the agent has started it anew; `core/routing/pick.py` chooses among the rest.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

from isochrone.core.admission.classes import UNBOUNDED_SLOTS
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.lifecycle.breaker import CLOSED, BreakerRules, BreakerState, Sign, step
from isochrone.core.metering.event import Outcome
from isochrone.core.rng import Random
from isochrone.core.routing.pick import Standing, pick
from isochrone.core.routing.prefix import UNKNOWN
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.model import Endpoint, Replica

DEFAULT_RULES = BreakerRules()


class Replicas:
    """By the key of their bucket entry, so that a deletion finds its replica. Of the own site, and
    of any other that this gateway reaches without a hop. `on_change` hears of every change of what
    is said of a site's replicas of a model."""

    def __init__(self, rules: BreakerRules = DEFAULT_RULES) -> None:
        self.rules = rules
        self.on_change: Callable[[SiteName, ModelName], None] | None = None
        self._by_entry: dict[str, Replica] = {}
        self._by_id: dict[ReplicaId, Standing] = {}
        self._by_model: dict[tuple[SiteName, ModelName], list[Standing]] = {}
        self._sites: dict[SiteName, int] = {}  # how many replicas each has here

    def put(self, entry: str, replica: Replica) -> bool:
        """Take the agent's word; False for a generation older than the one known. A new generation
        begins with a closed breaker."""
        known = self._by_entry.get(entry)
        if known is not None:
            if replica.generation < known.generation:
                return False
            self._take_out(known)
        self._by_entry[entry] = replica
        standing = self._by_id.get(replica.id)
        if standing is None:
            standing = self._by_id[replica.id] = Standing(replica)
        elif standing.replica.generation != replica.generation:
            standing.breaker = None
        standing.take(replica)
        standing.listed = True
        self._by_model.setdefault((replica.site, replica.model), []).append(standing)
        self._sites[replica.site] = self._sites.get(replica.site, 0) + 1
        self._changed(replica)
        return True

    def drop(self, entry: str) -> None:
        """Nobody speaks of it any more; what runs there is still counted to its end."""
        replica = self._by_entry.pop(entry, None)
        if replica is not None:
            self._take_out(replica)
            self._forget_unused(self._by_id[replica.id])
            self._changed(replica)

    def reaches(self, site: SiteName) -> bool:
        """Whether this gateway holds replicas of the site."""
        return site in self._sites

    def are_several(self, site: SiteName, model: ModelName) -> bool:
        """Whether there is more than one to pick from."""
        return len(self._by_model.get((site, model), ())) > 1

    def generation_of(self, replica: ReplicaId) -> int:
        """Of a replica that is spoken of; `UNKNOWN` of others."""
        standing = self._by_id.get(replica)
        return UNKNOWN if standing is None else standing.replica.generation

    def slots(self, site: SiteName, model: ModelName) -> int:
        """How many requests its ready replicas take at once; `UNBOUNDED_SLOTS` where nobody says
        of one of them."""
        slots = 0
        for standing in self._by_model.get((site, model), ()):
            if standing.ready:
                slots += standing.slots if standing.replica.slots_stated else UNBOUNDED_SLOTS
        return min(slots, UNBOUNDED_SLOTS)

    def pick(
        self,
        site: SiteName,
        model: ModelName,
        tried: Collection[ReplicaId],
        *,
        now_ns: int,
        rng: Random,
        revision: str | None = None,
        endpoint: Endpoint = "chat.completions",
        cached: Mapping[ReplicaId, float] | None = None,
    ) -> Replica | None:
        """The replica to ask now; None when none may be asked. `revision`: only these weights;
        `cached`: the tokens of the prompt that replicas are believed to have.

        Of a replica that was left out, the request becomes the probe.
        """
        standings = self._by_model.get((site, model))
        if standings is None:
            return None
        standing = pick(
            standings, tried, now_ns=now_ns, rng=rng, revision=revision, endpoint=endpoint,
            cached=cached,
        )
        if standing is None:
            return None
        if standing.breaker is not None:
            self._judge(standing, "asked", now_ns, rng)
        return standing.replica

    def started(
        self, replica: ReplicaId, prompt_tokens: int = 0, output_tokens: int = 0
    ) -> None:
        """A request was sent to it, with so much to compute."""
        standing = self._by_id.get(replica)
        if standing is not None:
            standing.count(1, prompt_tokens, output_tokens)

    def answered(
        self, replica: ReplicaId, now_ns: int, rng: Random, prompt_tokens: int = 0
    ) -> None:
        """The first byte of a good answer came: it works, however long the rest may take, and has
        read the prompt."""
        standing = self._by_id.get(replica)
        if standing is not None:
            if prompt_tokens:
                standing.count(0, -prompt_tokens)
            if standing.breaker is not None:
                self._judge(standing, "succeeded", now_ns, rng)

    def finished(
        self, replica: ReplicaId, ok: bool | None, now_ns: int, rng: Random,
        prompt_tokens: int = 0, output_tokens: int = 0,
    ) -> None:
        """A request that was sent to it is over, of which it had so much to compute still, as far
        as was known. `ok` False: it failed (its own error, a time-out,
        a stream that broke); None: this says nothing of the replica (the client left)."""
        standing = self._by_id.get(replica)
        if standing is None:
            return
        standing.count(-1, -prompt_tokens, -output_tokens)
        if ok is False:
            self._judge(standing, "failed", now_ns, rng)
        elif standing.breaker is not None:
            self._judge(standing, "succeeded" if ok else "abandoned", now_ns, rng)
        if not standing.listed:
            self._forget_unused(standing)

    def lost(self, replica: Replica, now_ns: int, rng: Random) -> None:
        """It could not be reached, or closed before a byte of its answer came."""
        standing = self._by_id.get(replica.id)
        if standing is not None and standing.replica.generation == replica.generation:
            self._judge(standing, "lost", now_ns, rng)

    def heard(self, digest: SiteDigest) -> None:
        """How fast the replicas of a site are, by its agent's measurements."""
        for said in digest.loads:
            standings = self._by_model.get((digest.site, said.model))
            if standings is None or not (said.prefill_tok_s > 0 and said.decode_tok_s > 0):
                continue
            rates = Rates(prefill_tok_s=said.prefill_tok_s, decode_tok_s=said.decode_tok_s)
            for standing in standings:
                standing.rate(rates)

    def breaker_states(self) -> Iterator[BreakerState]:
        """Of every replica that is spoken of."""
        for standing in self._by_id.values():
            if standing.listed:
                yield "closed" if standing.breaker is None else standing.breaker.state

    def _changed(self, replica: Replica) -> None:
        if self.on_change is not None:
            self.on_change(replica.site, replica.model)

    def _judge(self, standing: Standing, sign: Sign, now_ns: int, rng: Random) -> None:
        before = standing.breaker or CLOSED
        after = step(before, sign, now_ns, rng=rng, rules=self.rules)
        standing.breaker = None if after == CLOSED else after

    def _take_out(self, replica: Replica) -> None:
        standing, place = self._by_id[replica.id], (replica.site, replica.model)
        standing.listed = False
        self._by_model[place].remove(standing)
        if not self._by_model[place]:
            del self._by_model[place]
        self._sites[replica.site] -= 1
        if not self._sites[replica.site]:
            del self._sites[replica.site]

    def _forget_unused(self, standing: Standing) -> None:
        if standing.running <= 0 and not standing.listed:
            self._by_id.pop(standing.replica.id, None)


def verdict(outcome: Outcome, status: int, reason: str | None) -> bool | None:
    """Whether the end of a request speaks for its replica, against it, or not of it at all."""
    if outcome == "finished":
        return True
    if outcome == "engine_lost":
        return False
    if outcome == "engine_error":
        return 400 <= status < 500  # the request's own fault; an error within a stream has 200
    if outcome == "timed_out":
        return False if reason in ("first_byte_timeout", "between_events_timeout") else None
    return None
