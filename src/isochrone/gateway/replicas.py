"""The replicas that this gateway asks itself: what is said of them, what runs, who is left out.

Running counts are this gateway's own. A replica that fails is ejected, until a probe succeeds or
the agent has started it anew; `core/lifecycle/health.py` judges, and `core/routing/pick.py` chooses
among the rest.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

import structlog

from isochrone.core.admission.classes import UNBOUNDED_SLOTS
from isochrone.core.estimate.room import room, usual_by_model
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.lifecycle.health import (
    LEAST_WEIGHT,
    Health,
    HealthRules,
    ShownState,
    has_room,
    is_late,
    shown,
    too_many,
    usual_pace,
)
from isochrone.core.metering.event import Outcome
from isochrone.core.rng import Random
from isochrone.core.routing.pick import Standing, pick, soonest_ms
from isochrone.core.routing.prefix import UNKNOWN
from isochrone.core.world.digest import ReplicaLoad, SiteDigest
from isochrone.core.world.model import Endpoint, Replica

DEFAULT_RULES = HealthRules()
SILENT_S: Final = 10.0  # an engine that has not answered its agent for so long is not asked

log = structlog.get_logger()


class Replicas:
    """By the key of their bucket entry, so that a deletion finds its replica. Of the own site, and
    of any other that this gateway reaches without a hop. `on_change` hears of every change of what
    is said of a site's replicas of a model, and of who is ejected. `ejections` counts."""

    def __init__(self, rules: HealthRules = DEFAULT_RULES) -> None:
        self.rules = rules
        self.ejections: Counter[ModelName] = Counter()
        self.on_change: Callable[[SiteName, ModelName], None] | None = None
        self._by_entry: dict[str, Replica] = {}
        self._by_id: dict[ReplicaId, Standing] = {}
        self._by_model: dict[tuple[SiteName, ModelName], list[Standing]] = {}
        self._sites: dict[SiteName, int] = {}  # how many replicas each has here
        self._digests: dict[SiteName, SiteDigest] = {}  # the last ones
        self._anew: list[Standing] = []  # started anew, to be eased in once they are ready

    def put(self, entry: str, replica: Replica) -> bool:
        """Take the agent's word; False for a generation older than the one known. Of a new
        generation nothing bad is known, but it has to be eased in."""
        known = self._by_entry.get(entry)
        if known is not None:
            if replica.generation < known.generation:
                return False
            self._take_out(known)
        self._by_entry[entry] = replica
        standing = self._by_id.get(replica.id)
        if standing is None:
            standing = self._by_id[replica.id] = Standing(replica)
            rates = self._rates_of(replica)
            if rates is not None:
                standing.rate(rates)
        elif standing.replica.generation != replica.generation:
            standing.health = Health()
            if standing not in self._anew:
                self._anew.append(standing)
        standing.take(replica)
        if standing in self._anew:
            standing.spare(LEAST_WEIGHT)
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
        """How many requests its ready replicas take at once, but for the ejected ones, and of those
        that recover beside others only their share; `UNBOUNDED_SLOTS` where nobody says of one of
        them."""
        slots, spared, have_others = 0, 0, False
        for standing in self._by_model.get((site, model), ()):
            health = standing.health
            if not standing.ready or (health.ailing and health.is_out):
                continue
            slots += standing.holds if standing.replica.slots_stated else UNBOUNDED_SLOTS
            spared += min(standing.spared, standing.holds - 1)
            if not standing.spared and health.state != "recovering":
                have_others = True
        if slots >= UNBOUNDED_SLOTS:
            return UNBOUNDED_SLOTS
        return slots - spared if have_others else slots

    def read(self, site: SiteName, model: ModelName) -> tuple[list[str], float]:
        """Its ready replicas, and how many prompt tokens/s each reads: the rate of a site is one
        for all; 0.0 while that is not known of one of them."""
        names: list[str] = []
        tok_s, rated = 0.0, True
        for standing in self._by_model.get((site, model), ()):
            if standing.ready and not (standing.health.ailing and standing.health.is_out):
                names.append(standing.replica.id)
                rated = rated and standing.rated
                tok_s = standing.servers.rates.prefill_tok_s
        return names, tok_s if rated else 0.0

    def soonest_ms(self, site: SiteName, model: ModelName) -> float:
        """When the first of its ready replicas has read what was sent there, see `pick`."""
        return soonest_ms(self._by_model.get((site, model), ()))

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
        organisation: str = "",
        last_resort: bool = False,
    ) -> Replica | None:
        """The replica to ask now; None when none may be asked. `revision`: only these weights;
        `cached`: the tokens of the prompt that replicas are believed to have. `last_resort`: nobody
        else serves this request, so one that is ejected for what came of requests is asked before
        none is.

        Of a replica that was left out, the request becomes the probe.
        """
        standings = self._by_model.get((site, model))
        if standings is None:
            return None
        if self._anew:
            self._ease_in(now_ns)
        standing = pick(
            standings, tried, now_ns=now_ns, rng=rng, rules=self.rules, revision=revision,
            endpoint=endpoint, cached=cached, organisation=organisation,
        )
        if standing is None and last_resort:
            standing = self._last_resort(standings, tried, revision, endpoint)
        if standing is None:
            return None
        if standing.health.ailing:
            standing.health.asked(now_ns, self.rules)
        return standing.replica

    def started(
        self, replica: ReplicaId, prompt_tokens: int = 0, output_tokens: int = 0
    ) -> float:
        """A request was sent to it, with so much to compute; when its first byte should come, in
        milliseconds, 0.0 if that is not known."""
        standing = self._by_id.get(replica)
        if standing is None:
            return 0.0
        expected_ms = standing.expected_ms(prompt_tokens)
        standing.count(1, prompt_tokens, output_tokens)
        return expected_ms

    def answered(
        self, replica: ReplicaId, now_ns: int, prompt_tokens: int = 0, *, organisation: str = "",
        expected_ms: float = 0.0, waited_ms: float = 0.0,
    ) -> None:
        """The first byte of a good answer came: it works, however long the rest may take, and has
        read the prompt."""
        standing = self._by_id.get(replica)
        if standing is not None:
            if prompt_tokens:
                standing.count(0, -prompt_tokens)
            health = standing.health
            health.kept_pace(expected_ms, waited_ms)
            was_out = health.ailing and health.is_out
            health.answered(organisation, now_ns)
            if was_out and not health.is_out:
                standing.spare(health.weight(now_ns, self.rules))
                log.info("replica_recovers", replica=replica, model=standing.replica.model)
                self._changed(standing.replica)

    def finished(
        self, replica: ReplicaId, ok: bool | None, now_ns: int, rng: Random,
        prompt_tokens: int = 0, output_tokens: int = 0, *, organisation: str = "",
        why: str = "a request failed", sent_ns: int = 0,
    ) -> None:
        """A request that was sent to it is over, of which it had so much to compute still, as far
        as was known. `ok` False: it failed, and `why` (its own error, a time-out, a stream that
        broke); None: this says nothing of the replica (the client left, its request was wrong).
        `sent_ns`: when it was sent, 0 if it was not, or nobody knows."""
        standing = self._by_id.get(replica)
        if standing is None:
            return
        standing.count(-1, -prompt_tokens, -output_tokens)
        if ok is None:
            if standing.health.ailing:
                standing.health.abandoned(now_ns, sent_ns)
        elif ok:
            self.answered(replica, now_ns, organisation=organisation)
        else:
            self._failed(standing, why, organisation, now_ns, rng, sent_ns)
        if not standing.listed:
            self._forget_unused(standing)

    def lost(
        self, replica: Replica, now_ns: int, rng: Random, *, organisation: str = "",
        why: str = "it could not be connected to", under_request: bool = False,
        sent_ns: int = 0,
    ) -> None:
        """It could not be reached; or, `under_request`, it closed before a byte of its answer came,
        which may be the request's fault."""
        standing = self._by_id.get(replica.id)
        if standing is None or standing.replica.generation != replica.generation:
            return
        if under_request:
            self._failed(standing, why, organisation, now_ns, rng, sent_ns, lost=True)
            return
        was_out = standing.health.is_out
        standing.health.lost(why, now_ns, rng=rng, rules=self.rules)
        self._note(standing, was_out)

    def late(
        self, replica: ReplicaId, waited_ms: float, expected_ms: float, now_ns: int, rng: Random,
        *, organisation: str = "", sent_ns: int = 0,
    ) -> bool:
        """Whether a request that waits for its first byte does so for far too long, by the measure
        of the others; that counts as a failure, unless there are no others."""
        standing = self._by_id.get(replica)
        if standing is None or not is_late(waited_ms, expected_ms, 1.0):
            return False
        group = self._group(standing)
        if len(group) < 2 or not is_late(waited_ms, expected_ms, usual_pace(group)):
            return False
        why = f"no first byte after {waited_ms / 1000:.1f} s, expected {expected_ms / 1000:.1f} s"
        self._failed(standing, why, organisation, now_ns, rng, sent_ns)
        return True

    def heard(self, digest: SiteDigest, now_ns: int, rng: Random) -> None:
        """How fast the replicas of a site are, how full, and whether they answer, by its agent."""
        self._digests[digest.site] = digest
        for said in digest.loads:
            standings = self._by_model.get((digest.site, said.model))
            if standings is None or not (said.prefill_tok_s > 0 and said.decode_tok_s > 0):
                continue
            rates = Rates(prefill_tok_s=said.prefill_tok_s, decode_tok_s=said.decode_tok_s)
            for standing in standings:
                standing.rate(rates)
        usual: dict[ModelName, float] | None = None  # few of the sites are reached without a hop
        resized: dict[ModelName, Replica] = {}
        for each in digest.replicas:
            if each.silent_s > 0.0:
                self._silent(digest.site, each, now_ns, rng)
                continue
            known = self._by_id.get(ReplicaId(each.id))
            if known is None or known.replica.site != digest.site:
                continue
            if known.health.silent:
                known.health.spoke(now_ns)
            if each.generation == known.generation:
                before = known.holds
                if usual is None:
                    usual = usual_by_model(digest.replicas)
                holds = room(known.slots, each, usual[each.model])
                known.crowd(each.running, each.waiting, holds)
                if known.holds != before:
                    resized[known.replica.model] = known.replica
        for replica in resized.values():
            self._changed(replica)

    def _rates_of(self, replica: Replica) -> Rates | None:
        """What the site has said of its speed before it was spoken of."""
        digest = self._digests.get(replica.site)
        for said in () if digest is None else digest.loads:
            if said.model == replica.model and said.prefill_tok_s > 0 and said.decode_tok_s > 0:
                return Rates(prefill_tok_s=said.prefill_tok_s, decode_tok_s=said.decode_tok_s)
        return None

    def sweep(self, now_ns: int) -> None:
        """A few times a second: recoveries that end, and groups that became too small for all that
        is ejected of them."""
        self._ease_in(now_ns)
        for standings in self._by_model.values():
            if sum([each.health.ailing for each in standings]):
                for each in standings:
                    if each.health.ailing:
                        each.health.ease(now_ns, self.rules)
                group = [each.health for each in standings if each.ready]
                released = too_many(group, len(group), self.rules) if len(group) > 1 else None
                if released is not None:
                    released.returned("too few others are left", now_ns)
                changed = released is not None
                for each in standings:
                    if each.spare(each.health.weight(now_ns, self.rules)):
                        changed = True
                if changed:
                    self._changed(standings[0].replica)

    def states(self) -> Iterator[tuple[Replica, ShownState, Health]]:
        """Every replica that is spoken of."""
        for standing in self._by_id.values():
            if standing.listed:
                state = shown(standing.replica.state, standing.health.state)
                yield standing.replica, state, standing.health

    # -- inside ----------------------------------------------------------------------------------

    def _changed(self, replica: Replica) -> None:
        if self.on_change is not None:
            self.on_change(replica.site, replica.model)

    def _group(self, standing: Standing) -> list[Health]:
        """Of the ready replicas of its model at its site."""
        place = (standing.replica.site, standing.replica.model)
        return [each.health for each in self._by_model.get(place, ()) if each.ready]

    def _has_room(self, group: list[Health]) -> bool:
        """Of one alone itself: other sites may serve, and its hold is short."""
        out = sum([each.is_out for each in group])
        return len(group) < 2 or has_room(out, len(group), self.rules)

    def _failed(
        self, standing: Standing, why: str, organisation: str, now_ns: int, rng: Random,
        sent_ns: int, *, lost: bool = False,
    ) -> None:
        if standing in self._anew:
            return  # before anything was sent to its present engine
        group, was_out = self._group(standing), standing.health.is_out
        standing.health.failed(
            why, organisation, now_ns, rng=rng, rules=self.rules, alone=len(group) < 2,
            room=self._has_room(group), lost=lost, sent_ns=sent_ns,
        )
        self._note(standing, was_out)

    def _silent(self, site: SiteName, said: ReplicaLoad, now_ns: int, rng: Random) -> None:
        standing = self._by_id.get(ReplicaId(said.id))
        if standing is None or said.silent_s < SILENT_S or standing.replica.site != site:
            return
        if said.generation != standing.replica.generation or not standing.ready:
            return
        group, was_out = self._group(standing), standing.health.is_out
        standing.health.fell_silent(
            f"its agent has had no answer for {said.silent_s:.0f} s", now_ns, rng=rng,
            rules=self.rules, alone=len(group) < 2, room=self._has_room(group),
        )
        self._note(standing, was_out)

    def _note(self, standing: Standing, was_out: bool) -> None:
        """Count and say that a replica was ejected, if it was."""
        health, replica = standing.health, standing.replica
        if was_out or health.state != "ejected":
            return
        self.ejections[replica.model] += 1
        self._changed(replica)
        log.warning(
            "replica_ejected", replica=replica.id, model=replica.model, why=health.why,
            hold_s=health.hold_s,
        )

    def _last_resort(
        self, standings: list[Standing], tried: Collection[ReplicaId], revision: str | None,
        endpoint: Endpoint,
    ) -> Standing | None:
        """Of those ejected for what came of requests and that have a slot free, the one whose hold
        ends first."""
        best: Standing | None = None
        for each in standings:
            health, replica = each.health, each.replica
            if not each.ready or not health.is_out or health.outright or health.silent:
                continue
            if replica.slots_stated and each.running >= each.holds:
                continue  # no queue counts its slots now, and all at once would be its end
            if replica.id in tried or endpoint not in replica.endpoints:
                continue
            if revision is not None and replica.revision != revision:
                continue
            if best is None or health.until_ns < best.health.until_ns:
                best = each
        return best

    def _ease_in(self, now_ns: int) -> None:
        """Replicas whose engine was started anew and is ready begin with little."""
        for standing in [each for each in self._anew if each.ready or not each.listed]:
            self._anew.remove(standing)
            if standing.listed:
                standing.health.returned("its engine was started anew", now_ns)

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
        # The request's own fault says nothing; an error within a stream has status 200.
        return None if 400 <= status < 500 else False
    if outcome == "timed_out":
        return False if reason in ("first_byte_timeout", "between_events_timeout") else None
    return None
