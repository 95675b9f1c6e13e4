"""Our own policy in the simulation: the live functions of `core/`, called as gateways do.

What is done here is what `gateway/tries.py`, `affinity.py` and `site_queues.py` do around them,
without bytes: a gateway at each ingress and at each site, each with its own knowledge.
"""

from collections.abc import Sequence
from math import inf
from typing import Final

from isochrone.core.admission.class_line import NEVER_NS
from isochrone.core.admission.classes import CLASSES, weighted_tokens
from isochrone.core.admission.queue_commands import Refused as TurnedAway
from isochrone.core.admission.queue_commands import Start, Stop, TurnAway
from isochrone.core.admission.sent_back import costs_others, leave
from isochrone.core.estimate.room import usual_by_model
from isochrone.core.estimate.service import Rates, Work
from isochrone.core.ids import ModelName, PolicyId, ReplicaId
from isochrone.core.lifecycle.health import HealthRules
from isochrone.core.rng import stream
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.choose import TARGET_MS, choose
from isochrone.core.routing.loads import Dispatch
from isochrone.core.routing.patience import patience_ms
from isochrone.core.routing.pick import Standing, pick
from isochrone.core.routing.prefix import Belief
from isochrone.core.world.digest import SiteDigest
from isochrone.core.world.tenant import Class
from isochrone.twin.fast.arrivals import NO_BLOCKS, NO_SESSION
from isochrone.twin.fast.claims import Claims
from isochrone.twin.fast.gateways import (
    NOT_TRIED,
    Gateway,
    Place,
    Sent,
    Served,
    gateway_blocks,
    places_of,
    replica_ids,
    replica_of,
)
from isochrone.twin.fast.news import Digests
from isochrone.twin.fast.policy import Actions, Flight, Setting
from isochrone.twin.fast.residency import Tables

MOST_TRIES: Final = 3  # as gateway/tries.py
RULES: Final = HealthRules()  # as the gateway's
NO_TRIED: Final[tuple[Refused, ...]] = ()


class Ours:
    """See `policy.Router`. `target_ms` as the gateway's setting."""

    name = "ours"
    digest_s = 1.0

    def __init__(self, target_ms: float = TARGET_MS) -> None:
        self.target_ms = target_ms

    def start(self, setting: Setting) -> None:
        fleet = self.fleet = setting.fleet
        setting.waiting = self._waiting
        self.actions: Actions = setting.actions
        self.seed = setting.rng.getrandbits(62)
        news, tables = setting.news, setting.rules
        assert isinstance(news, Digests), "ours hears every digest, not only the last"
        assert isinstance(tables, Tables), "ours chooses by the tables themselves"
        self.news = news
        self.tables = tables
        self.gateways: list[Gateway | None] = [None] * len(fleet.ingresses)
        self.site_gateways: list[Gateway | None] = [None] * len(fleet.sites)
        self.site_names = [site.name for site in fleet.sites]
        self.site_number = {site.name: number for number, site in enumerate(fleet.sites)}
        self.ingress_at: dict[int, int] = {}
        for ingress, home in enumerate(fleet.home):
            if home >= 0:
                self.ingress_at.setdefault(home, ingress)
        self.models: list[ModelName] = [model.name for model in fleet.models]
        self.context_tokens = [model.context_tokens for model in fleet.models]
        self.policies: list[PolicyId] = [tenant.policy.id for tenant in fleet.tenants]
        self.tenants = [tenant.name for tenant in fleet.tenants]
        self.replica_ids = replica_ids(fleet)
        self.generations = [0] * len(fleet.replicas)
        self.places = places_of(fleet)
        self.watched_ns = [NEVER_NS] * len(fleet.sites)
        self.claims = Claims(fleet)

    # -- at an ingress -----------------------------------------------------------------------------

    def began(self, flight: Flight, now_s: float) -> None:
        gateway = self.gateways[flight.arrival.ingress]
        if gateway is None:
            gateway = self._gateway(flight.arrival.ingress)
        blocks = flight.arrival.blocks
        sent = flight.note = Sent(gateway, gateway_blocks(blocks) if blocks else NO_BLOCKS)
        self.claims.began(sent, flight.arrival, int(now_s * 1e9))
        gateway.retries.deposit(int(now_s * 1e9))
        self._choose(flight, gateway, now_s)

    def refused(self, flight: Flight, now_s: float, lost: bool) -> None:
        sent = flight.note
        assert isinstance(sent, Sent), "every request that began has one"
        gateway, now_ns = sent.gateway, int(now_s * 1e9)
        self._give_back(sent)
        if sent.seen is not None:
            gateway.prefixes.failed(sent.seen, sent.belief, sent.blocks)
        site = self.site_names[flight.tried[-1]]
        if lost and site != gateway.name:
            gateway.loads.lost(site, now_ns)
        if sent.bounced:  # at once and without work: it costs nothing of the budget
            sent.bounced = False
        elif sent.tries >= MOST_TRIES or not gateway.retries.try_spend(now_ns):
            self.claims.ended(sent, flight.arrival, False, now_ns)
            self.actions.give_up(flight, now_s)
            return
        refused = Refused(
            site=site, rule="unreachable" if lost else "saturated", detail="tried before"
        )
        if sent.refusals is None:
            sent.refusals = []
        sent.refusals.append(refused)
        self._choose(flight, gateway, now_s)

    def ended(self, flight: Flight, now_s: float) -> None:
        sent = flight.note
        assert isinstance(sent, Sent), "every request that began has one"
        self._give_back(sent)
        self.claims.ended(sent, flight.arrival, True, int(now_s * 1e9))
        if flight.site != sent.gateway.site:
            arrival = flight.arrival
            sent.gateway.loads.health.answered(
                self.site_names[flight.site], self.models[arrival.model],
                self.tenants[arrival.tenant], int(now_s * 1e9),
            )
        seen = sent.seen
        if seen is not None:
            belief = sent.belief
            if belief is not None and belief.sighting.cache is not seen.cache:
                belief = None
            replica = self.replica_ids[flight.replica]
            sent.gateway.prefixes.answered(seen, belief, flight.cached_tokens, replica)

    def broke(self, flight: Flight, now_s: float) -> None:
        sent = flight.note
        assert isinstance(sent, Sent), "every request that began has one"
        self._give_back(sent)
        gateway, arrival = sent.gateway, flight.arrival
        if flight.site != gateway.site:
            gateway.loads.health.failed(
                self.site_names[flight.site], self.models[arrival.model],
                "its stream broke off", self.tenants[arrival.tenant], int(now_s * 1e9),
                gateway.rng,
            )

    def _give_back(self, sent: Sent) -> None:
        if sent.ticket is not None:
            sent.gateway.loads.finished(sent.ticket)
            sent.ticket = None

    def _choose(self, flight: Flight, gateway: Gateway, now_s: float) -> None:
        arrival, sent, now_ns = flight.arrival, flight.note, int(now_s * 1e9)
        assert isinstance(sent, Sent), "every request that began has one"
        gateway.listen(self.news, now_s)
        model, policy_id = self.models[arrival.model], self.policies[arrival.tenant]
        blocks = sent.blocks
        session, home = NO_SESSION, None
        if blocks or arrival.session != NO_SESSION:
            if not gateway.table.standing(policy_id).caches:
                blocks = NO_BLOCKS
            else:
                session = arrival.session
                if session != NO_SESSION:
                    home = gateway.sessions.home(session, now_ns)
        class_ = CLASSES[sent.rank]
        choice = choose(
            gateway.table, gateway.loads, gateway.prefixes, model=model, policy_id=policy_id,
            class_=class_, prompt_tokens=arrival.prompt_tokens,
            output_tokens=arrival.expected_tokens, blocks=blocks,
            tried=NO_TRIED if sent.refusals is None else sent.refusals, now_ns=now_ns,
            rng=gateway.rng, home=home, body_bytes=arrival.body_bytes, target_ms=self.target_ms,
        )
        name = choice.site
        if name is None:
            self.claims.ended(sent, arrival, False, now_ns)
            self.actions.give_up(flight, now_s)
            return
        if session != NO_SESSION:
            verdict = "new" if home is None else choice.verdict
            gateway.sessions.went(session, name, verdict, now_ns)
        tries = sent.tries = sent.tries + 1
        sent.pushed = choice.pushed
        sent.patience_ms = inf if tries >= MOST_TRIES else patience_ms(choice, class_, tries)
        belief = sent.belief = choice.belief
        site = self.site_number[name]
        if site == gateway.site:  # it is served here: counted when its turn has come
            sent.seen = None
        else:
            prompt_tokens = arrival.prompt_tokens
            if belief is not None:
                prompt_tokens -= min(int(belief.tokens), prompt_tokens)
            if blocks:
                sent.seen = gateway.prefixes.saw(
                    name, model, blocks, now_ns, scope=arrival.tenant,
                    tokens=arrival.prompt_tokens + arrival.expected_tokens,
                )
            sent.ticket = gateway.loads.dispatched(
                name, model, prompt_tokens, arrival.expected_tokens, now_ns,
                rtt_ms=choice.rtt_ms,
            )
        self.actions.go(flight, site, now_s)

    # -- at a site -----------------------------------------------------------------------------

    def arrived(self, flight: Flight, site: int, now_s: float) -> None:
        arrival, now_ns = flight.arrival, int(now_s * 1e9)
        place = self.places[site][arrival.model]
        if place is None or not place.standings:
            self.actions.refuse(flight, now_s)
            return
        before = flight.site_note
        tried = before.tried_now() if isinstance(before, Served) else NOT_TRIED
        queue = place.queue
        tokens = weighted_tokens(
            arrival.prompt_tokens, arrival.expected_tokens, place.output_weight
        )
        sent = flight.note
        assert isinstance(sent, Sent), "every request that began has one"
        class_: Class = CLASSES[sent.rank]
        tenant = self.tenants[arrival.tenant]
        sent.bounced = before is None and sent.is_impatient(place, class_, tenant, now_ns)
        turn = None if sent.bounced and costs_others(queue, class_, tenant) else queue.offer(
            class_, tenant, tokens, most_tokens=tokens, now_ns=now_ns,
            prompt_tokens=arrival.prompt_tokens, resumable=False,
        )
        if isinstance(turn, TurnedAway):
            sent.bounced = False
        elif turn is not None and sent.bounced:
            leave(queue, turn, now_ns)
        if turn is None or sent.bounced or isinstance(turn, TurnedAway):
            flight.site_note = None
            self.actions.refuse(flight, now_s)
        else:
            place.pushed += sent.pushed
            served = flight.site_note = Served(place, turn)
            served.tried = tried
            if turn.state == "running":
                self._serve(flight, served, site, now_s)
            else:
                place.flights[turn] = flight
                served.ticket = self._count(flight, site, self._unread(flight, site), now_ns)
        if queue.outbox:
            self._obey(place, site, now_s)
        if queue.queued:
            self._watch(place, site)

    def first_token(self, flight: Flight, site: int, now_s: float) -> None:
        served = flight.site_note
        assert isinstance(served, Served), "it runs at a replica"
        place, now_ns = served.queue, int(now_s * 1e9)
        place.queue.first_byte(served.turn, now_ns=now_ns)
        standing = served.standing
        assert standing is not None, "it runs at a replica"
        standing.health.answered(self.tenants[flight.arrival.tenant], now_ns)
        if served.unread_tokens:
            standing.count(0, -served.unread_tokens)
            served.unread_tokens = 0
        if place.queue.queued:
            place.queue.tick(now_ns)
            self._obey(place, site, now_s)

    def served(self, flight: Flight, site: int, now_s: float) -> None:
        served, arrival = flight.site_note, flight.arrival
        assert isinstance(served, Served), "it runs at a replica"
        place, standing = served.queue, served.standing
        assert standing is not None, "it runs at a replica"
        standing.count(-1, -served.unread_tokens, -served.expected_tokens)
        gateway = self._site_gateway(site)
        if served.ticket is not None:
            gateway.loads.finished(served.ticket)
        failed = flight.done_s < 0.0
        if served.seen is not None:
            if failed:
                served.seen.gone = True
            else:
                gateway.prefixes.answered(
                    served.seen, served.belief, flight.cached_tokens, standing.replica.id
                )
        used = 0
        if not failed:
            uncached = arrival.prompt_tokens - flight.cached_tokens
            used = weighted_tokens(uncached, arrival.output_tokens, place.output_weight)
        place.queue.finished(served.turn, used, int(now_s * 1e9))
        if place.queue.outbox:
            self._obey(place, site, now_s)

    def replicas_changed(self, site: int, ready: Sequence[int], now_s: float) -> None:
        running = set(ready)
        for model, place in enumerate(self.places[site]):
            if place is None:
                continue
            known = {place.numbers[each.replica.id]: each for each in place.standings}
            place.standings = []
            for number in self.fleet.at[site][model]:
                if number not in running:
                    continue
                standing = known.get(number)
                if standing is None:
                    self.generations[number] += 1
                    standing = Standing(replica_of(
                        self.fleet, number, self.replica_ids[number], self.generations[number]
                    ))
                    if self.generations[number] > 1:
                        anew = "its engine was started anew"
                        standing.health.returned(anew, int(now_s * 1e9))
                    if place.rates is not None:
                        standing.rate(place.rates)
                place.numbers[standing.replica.id] = number
                place.standings.append(standing)
            self._resize(place, site, now_s)

    def told(self, site: int, digest: SiteDigest, now_s: float) -> None:
        """Its own gateway hears it at once."""
        self._site_gateway(site).listen(self.news, now_s)
        usual = usual_by_model(digest.replicas)
        for model, place in enumerate(self.places[site]):
            if place is None:
                continue
            for standing in place.standings:
                if standing.health.ailing:
                    standing.health.ease(int(now_s * 1e9), RULES)
            place.crowd(digest.replicas, usual)
            for said in digest.loads:
                if said.model == self.models[model] and said.ready:
                    place.rates = Rates(
                        prefill_tok_s=said.prefill_tok_s, decode_tok_s=said.decode_tok_s
                    )
                    for standing in place.standings:
                        standing.rate(place.rates)
                    place.engines_read()
            self._resize(place, site, now_s)
            self._obey(place, site, now_s)

    def woken(self, place: int, now_s: float) -> None:
        """Somebody at a site may have waited for too long."""
        site, now_ns = place, int(now_s * 1e9) + 1
        self.watched_ns[site] = NEVER_NS
        for each in self.places[site]:
            if each is not None and each.queue.queued:
                each.queue.tick(now_ns)
                if each.queue.outbox:
                    self._obey(each, site, now_s)
                if each.queue.queued:
                    self._watch(each, site)

    # -- inside ----------------------------------------------------------------------------------

    def _serve(self, flight: Flight, served: Served, site: int, now_s: float) -> None:
        """Its turn has come: pick a replica."""
        arrival, place, now_ns = flight.arrival, served.queue, int(now_s * 1e9)
        gateway = self._site_gateway(site)
        sent = flight.note
        assert isinstance(sent, Sent), "every request that began has one"
        blocks = sent.blocks
        beliefs: dict[ReplicaId, Belief] | None = None
        cached = None
        if blocks and not gateway.table.standing(self.policies[arrival.tenant]).caches:
            blocks = NO_BLOCKS
        if blocks and len(place.standings) > 1:
            beliefs = gateway.prefixes.cached_by_replica(gateway.name, blocks, now_ns)
            cached = place.held(beliefs, self.generations) if beliefs else None
        standing = pick(
            place.standings, served.tried, now_ns=now_ns, rng=gateway.rng, rules=RULES,
            cached=cached, organisation=self.tenants[arrival.tenant],
        )
        if standing is None:
            self._waits_no_more(served, site)
            flight.site_note = None
            place.queue.finished(served.turn, 0, now_ns)
            self.actions.refuse(flight, now_s)
            return
        replica_id = standing.replica.id
        number = place.numbers[replica_id]
        served.standing = standing
        belief = sent.belief if sent.gateway is gateway else None
        if beliefs is not None:  # another replica of the site may have what this one lacks
            belief = beliefs.get(replica_id) if cached and replica_id in cached else None
        served.belief = belief
        unread = arrival.prompt_tokens
        if belief is not None:
            unread -= min(int(belief.tokens), unread)
        model = self.models[arrival.model]
        if blocks:
            served.seen = gateway.prefixes.saw(
                gateway.name, model, blocks, now_ns, scope=arrival.tenant,
                tokens=arrival.prompt_tokens + arrival.expected_tokens, replica=replica_id,
                generation=standing.replica.generation,
            )
        served.unread_tokens, served.expected_tokens = unread, arrival.expected_tokens
        standing.count(1, unread, arrival.expected_tokens)
        place.queue.reads(served.turn, unread, replica_id, now_ns)
        if served.ticket is None:
            served.ticket = self._count(flight, site, unread, now_ns)
        self.actions.serve(flight, number, now_s)

    def _count(self, flight: Flight, site: int, unread_tokens: int, now_ns: int) -> Dispatch:
        """As work that is ahead of others at the site, in its own gateway's eyes."""
        arrival, gateway = flight.arrival, self._site_gateway(site)
        return gateway.loads.dispatched(
            gateway.name, self.models[arrival.model], unread_tokens, arrival.expected_tokens, now_ns
        )

    def _unread(self, flight: Flight, site: int) -> int:
        """Of its prompt, what its ingress expects the site to have to read, if that is the site's
        own gateway; else all of it."""
        sent, tokens = flight.note, flight.arrival.prompt_tokens
        assert isinstance(sent, Sent), "every request that began has one"
        if sent.belief is not None and sent.gateway is self._site_gateway(site):
            tokens -= min(int(sent.belief.tokens), tokens)
        return tokens

    def _waits_no_more(self, served: Served, site: int) -> None:
        if served.ticket is not None:
            self._site_gateway(site).loads.finished(served.ticket)
            served.ticket = None

    def _waiting(self, site: int, model: int) -> tuple[Work, int]:
        """What waits at a site and how many were pushed there, as its gateway tells its agent."""
        place = self.places[site][model]
        return (Work(), 0) if place is None else (place.queue.waiting(), place.pushed)

    def _obey(self, place: Place, site: int, now_s: float) -> None:
        """Carry out what the queue says."""
        queue = place.queue
        while queue.outbox:
            commands, queue.outbox = queue.outbox, []
            for command in commands:
                if isinstance(command, Stop):
                    if command.ticket.state == "stopping":
                        queue.unstoppable(command.ticket)
                    continue
                flight = place.flights.pop(command.ticket, None)
                if flight is None:
                    continue
                served = flight.site_note
                assert isinstance(served, Served), "it has a ticket"
                if isinstance(command, Start):
                    self._serve(flight, served, site, now_s)
                else:
                    assert isinstance(command, TurnAway), "there are three commands"
                    self._waits_no_more(served, site)
                    flight.site_note = None
                    self.actions.refuse(flight, now_s)

    def _watch(self, place: Place, site: int) -> None:
        due_ns = place.queue.next_tick_ns()
        if due_ns < self.watched_ns[site]:
            self.watched_ns[site] = due_ns
            self.actions.wake(site, due_ns / 1e9)

    def _resize(self, place: Place, site: int, now_s: float) -> None:
        self.claims.promise(place, site, int(now_s * 1e9))
        slots = sum([each.holds for each in place.standings])
        place.engines_read()
        place.queue.resize(slots, int(now_s * 1e9))
        if place.queue.outbox:
            self._obey(place, site, now_s)

    def _gateway(self, ingress: int) -> Gateway:
        """The gateway where clients enter; at a site, it is the site's own."""
        fleet, site = self.fleet, self.fleet.home[ingress]
        if site >= 0:
            known = self.site_gateways[site]
            if known is not None and known.ingress == ingress:
                self.gateways[ingress] = known
                return known
        name = fleet.ingresses[ingress].name if site < 0 else fleet.sites[site].name
        made = Gateway(
            name, ingress, site, self.tables.of(ingress),
            stream(self.seed, f"gateway {fleet.ingresses[ingress].name}"),
            self.news.delays_s(ingress, site),
        )
        self.gateways[ingress] = made
        return made

    def _site_gateway(self, site: int) -> Gateway:
        known = self.site_gateways[site]
        if known is None:
            ingress = self.ingress_at.get(site, -1)
            if ingress >= 0:
                known = self._gateway(ingress)
            else:
                name = self.fleet.sites[site].name
                known = Gateway(
                    name, -1, site, self.tables.of_site(site),
                    stream(self.seed, f"gateway {name}"), self.news.delays_s(-1, site),
                )
            self.site_gateways[site] = known
        return known
