"""The fast twin: a fleet in virtual time, under one routing policy.

An event heap over the live policies and the engines' physics. What happens at one instant happens
in the order in which it was found out, so the same inputs give the same run to the last bit.
"""

import gc
from collections.abc import Iterable
from math import inf
from typing import Final

from isochrone.core.rng import stream
from isochrone.twin.fast.arrivals import Arrival, Arrivals
from isochrone.twin.fast.faults import OPERATE, Faults
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.fast.news import Digests
from isochrone.twin.fast.plan import SILENT_S, Plan
from isochrone.twin.fast.policy import (
    AT_INGRESS,
    AT_REPLICA,
    AT_SITE,
    DONE,
    ON_ITS_WAY,
    OVER,
    Flight,
    Router,
    Setting,
)
from isochrone.twin.fast.replica import Job
from isochrone.twin.fast.residency import Tables
from isochrone.twin.fast.site_state import Running, SiteState
from isochrone.twin.fast.summary import ANSWER_BYTES_TOKEN, Summary, Tally
from isochrone.twin.fast.timeline import Timeline
from isochrone.twin.fast.ways import Ways

# What is due, as the second item of an event.
ARRIVED: Final = 0
REPLICA: Final = 1
ENDED: Final = 2
REFUSED: Final = 3
LOST: Final = 4
BROKE: Final = 5
DIGEST: Final = 6
WAKE: Final = 7

MOST_HOPS: Final = 64  # of one request between ingress and sites: more is a policy that circles


class BrokenRule(Exception):
    """A policy did what none may, or the simulation lost count: a bug, with what happened."""


class Simulation:
    """One run. A `Router` gets it as its `Actions`."""

    def __init__(self, fleet: Fleet, router: Router, plan: Plan) -> None:
        problems = fleet.problems()
        if problems:
            raise ValueError("; ".join(problems))
        self.fleet = fleet
        self.router = router
        self.plan = plan
        self.now_s = 0.0
        self.ways = Ways(fleet, stream(plan.seed, "jitter"))
        self.news = Digests(len(fleet.sites), self.ways)
        self.tables = Tables(fleet)
        self.tally = Tally(len(fleet.sites), len(fleet.tenants), plan.warm_s)
        self.replicas = [
            Running(number, spec, f"{fleet.sites[spec.site].name}-{number}")
            for number, spec in enumerate(fleet.replicas)
        ]
        self.sites = [
            SiteState(number, fleet, [each for each in self.replicas if each.spec.site == number])
            for number in range(len(fleet.sites))
        ]
        self.open = 0
        self._kept: dict[int, Flight] = {}  # at a site and not at a replica, longer than an instant
        self._due = Timeline()
        self._allowed: dict[int, int] = {}  # by ingress, tenant and model: sites as bits
        self._tenants, self._models = len(fleet.tenants), len(fleet.models)
        self._began = 0
        self._last_s = 0.0
        self._come = False  # all requests have
        self._countries = (
            [site.country for site in fleet.ingresses], [site.country for site in fleet.sites]
        )
        self._most_tokens = [
            [max([fleet.replicas[number].physics.kv_tokens for number in numbers], default=0)
             for numbers in models]
            for models in fleet.at
        ]
        self.faults = Faults(self, stream(plan.seed, "faults"))
        rng = stream(plan.seed, f"router {router.name}")
        self.setting = Setting(fleet, self, self.tables, self.news, rng)

    def run(self, chunks: Iterable[Arrivals]) -> Summary:
        """Simulate until all that come have ended. Raises BrokenRule."""
        self._start()
        coming = Coming(chunks)
        row = coming.next()
        due = self._due
        end_s = inf
        while row is not None or (self.open and self.now_s <= end_s):
            next_s = due.next_s()
            if row is not None and row.at_s <= next_s:
                self.now_s = self._last_s = row.at_s
                self._begin(row)
                row = coming.next()
                if row is None:
                    self._come = True
                    end_s = self._last_s + self.plan.drain_s
                continue
            if next_s == inf:
                break
            at_s, _, kind, number, flight = due.take()
            self.now_s = at_s
            if kind == REPLICA:
                self._advance(self.replicas[number], at_s)
            elif flight is None:
                self._happen(kind, number, at_s)
            else:
                self._tell(kind, number, flight, at_s)
        self._check()
        return self._summary()

    # -- what a router can have done -------------------------------------------------------------

    def go(self, flight: Flight, site: int, now_s: float, extra_s: float = 0.0) -> None:
        """See `policy.Actions`."""
        arrival = flight.arrival
        flight.hops += 1
        if flight.hops > MOST_HOPS:
            raise BrokenRule(f"request {flight.ident} circles: {flight.hops} hops")
        if flight.stage == AT_INGRESS:
            delay_s = self.ways.send_s(
                arrival.ingress, site, flight.ident, flight.hops, arrival.body_bytes
            )
            cut = not self.ways.is_up(arrival.ingress, site)
            country = self._countries[0][arrival.ingress]
        elif flight.stage == AT_SITE:
            if not self.sites[flight.site].up:
                return  # whoever says so is dead
            if flight.ident in self._kept:
                del self._kept[flight.ident]
            delay_s = self.ways.between_s(flight.site, site, flight.ident, flight.hops)
            cut = False
            country = self._countries[1][flight.site]
        else:
            raise BrokenRule(f"request {flight.ident} cannot be sent on: stage {flight.stage}")
        if country != self._countries[1][site] and not cut:
            self.tally.crossed(arrival.at_s, arrival.body_bytes)
        flight.site = site
        flight.stage = ON_ITS_WAY
        if cut:
            self._later(now_s + SILENT_S, LOST, site, flight)
        elif delay_s + extra_s > 0.0:
            self._later(now_s + delay_s + extra_s, ARRIVED, site, flight)
        else:
            self._arrive(flight, site, now_s)

    def serve(self, flight: Flight, replica: int, now_s: float) -> None:
        """See `policy.Actions`."""
        if flight.stage != AT_SITE:
            raise BrokenRule(f"request {flight.ident} is not at a site: stage {flight.stage}")
        running, arrival = self.replicas[replica], flight.arrival
        site = running.site
        if not self.sites[flight.site].up:
            return
        if site != flight.site or not running.ready or running.model != arrival.model:
            raise BrokenRule(f"request {flight.ident} cannot be served by replica {replica}")
        if not self._may_process(arrival, site):
            raise BrokenRule(f"request {flight.ident} may not be processed at site {site}")
        flight.replica = replica
        flight.stage = AT_REPLICA
        if flight.ident in self._kept:
            del self._kept[flight.ident]
        job = Job(
            flight.ident, arrival.prompt_tokens, arrival.output_tokens, arrival.blocks, flight
        )
        running.sim.offer(job, now_s)
        self._schedule(running)

    def _may_process(self, arrival: Arrival, site: int) -> bool:
        key = (arrival.ingress * self._tenants + arrival.tenant) * self._models + arrival.model
        allowed = self._allowed.get(key, -1)
        if allowed < 0:
            allowed = 0
            for each in self.tables.allowed(arrival.ingress, arrival.tenant, arrival.model):
                allowed |= 1 << each
            self._allowed[key] = allowed
        return allowed >> site & 1 == 1

    def refuse(self, flight: Flight, now_s: float) -> None:
        """See `policy.Actions`."""
        if flight.stage != AT_SITE:
            raise BrokenRule(f"request {flight.ident} is not at a site: stage {flight.stage}")
        if self.sites[flight.site].up:
            self._send_back(flight, REFUSED, now_s)

    def give_up(self, flight: Flight, now_s: float) -> None:
        """See `policy.Actions`."""
        if flight.stage != AT_INGRESS:
            raise BrokenRule(f"request {flight.ident} is not at its ingress")
        flight.stage = OVER
        self.open -= 1
        arrival = flight.arrival
        self.tally.refuse(arrival.at_s, arrival.class_, arrival.tenant)
        self.tally.trace.add(flight.ident, -1, -1, 0, -1.0, now_s)

    def wake(self, place: int, at_s: float) -> None:
        """See `policy.Actions`."""
        self._later(max(at_s, self.now_s), WAKE, place, None)

    # -- a request's way ---------------------------------------------------------------------------

    def _begin(self, arrival: Arrival) -> None:
        flight = Flight(self._began, arrival)
        self._began += 1
        self.open += 1
        self.tally.began(arrival.at_s, arrival.class_, arrival.tenant)
        self.router.began(flight, arrival.at_s)

    def _tell(self, kind: int, number: int, flight: Flight, now_s: float) -> None:
        if kind == ARRIVED:
            self._arrive(flight, number, now_s)
        elif kind == ENDED:
            self._end(flight, now_s)
        elif kind == BROKE:
            flight.stage = OVER
            self.open -= 1
            arrival = flight.arrival
            self.tally.break_off(arrival.at_s, arrival.class_, arrival.tenant)
            self.tally.trace.add(
                flight.ident, flight.site, flight.replica, 0, flight.first_s, now_s
            )
            self.router.broke(flight, now_s)
        else:
            flight.stage = AT_INGRESS
            flight.tried = [*flight.tried, flight.site]
            flight.replica = -1
            if flight.arrival.at_s >= self.tally.warm_s:
                self.tally.retried += 1
            self.router.refused(flight, now_s, kind == LOST)

    def _arrive(self, flight: Flight, site: int, now_s: float) -> None:
        if not self.sites[site].up:
            self._later(now_s + SILENT_S, LOST, site, flight)
            return
        arrival = flight.arrival
        flight.stage = AT_SITE
        flight.reached_s = now_s
        if arrival.prompt_tokens + arrival.output_tokens > self._most_tokens[site][arrival.model]:
            self._send_back(flight, REFUSED, now_s)
            return
        self.router.arrived(flight, site, now_s)
        if flight.stage == AT_SITE:
            self._kept[flight.ident] = flight

    def _send_back(self, flight: Flight, kind: int, now_s: float) -> None:
        """To the ingress, which hears of it half a round trip later."""
        self._kept.pop(flight.ident, None)
        flight.stage = DONE
        arrival = flight.arrival
        delay_s = self.ways.one_way_s(arrival.ingress, flight.site, flight.ident, 3 + kind)
        if kind in (LOST, BROKE):
            delay_s = SILENT_S
        self._later(now_s + delay_s, kind, flight.site, flight)

    def _advance(self, running: Running, now_s: float) -> None:
        """A replica's event is due, unless another has taken its place since."""
        if now_s != running.due_s:
            return
        running.due_s = inf
        sim = running.sim
        if sim.next_s <= now_s:
            for job in sim.advance(now_s):
                self._progress(running, job, now_s)
        self._schedule(running)

    def _progress(self, running: Running, job: Job, now_s: float) -> None:
        flight = job.owner
        assert isinstance(flight, Flight), "each job is a flight's"
        site = running.site
        if flight.first_s < 0.0:
            flight.first_s = now_s
            self.router.first_token(flight, site, now_s)
        if job.ended_s >= 0.0:
            flight.done_s = now_s
            flight.cached_tokens = job.cached_tokens
            flight.stage = DONE
            back_s = self.ways.one_way_s(flight.arrival.ingress, site, flight.ident, 1)
            if not self.ways.is_up(flight.arrival.ingress, site):
                self._later(now_s + SILENT_S, BROKE, site, flight)
                self.router.served(flight, site, now_s)
                return
            self.router.served(flight, site, now_s)
            if back_s > 0.0:
                self._later(now_s + back_s, ENDED, site, flight)
            else:
                self._end(flight, now_s)

    def _end(self, flight: Flight, now_s: float) -> None:
        arrival, site = flight.arrival, flight.site
        flight.stage = OVER
        self.open -= 1
        back_s = self.ways.one_way_s(arrival.ingress, site, flight.ident, 0)
        if self._countries[0][arrival.ingress] != self._countries[1][site]:
            self.tally.crossed(arrival.at_s, arrival.output_tokens * ANSWER_BYTES_TOKEN)
        self.tally.answer(
            arrival.at_s, arrival.class_, arrival.tenant,
            1000.0 * (flight.first_s + back_s - arrival.at_s),
            1000.0 * (now_s - arrival.at_s), arrival.slo_ms, site, arrival.prompt_tokens,
            flight.cached_tokens, arrival.output_tokens,
        )
        self.tally.trace.add(
            flight.ident, site, flight.replica, flight.cached_tokens, flight.first_s, now_s
        )
        self.router.ended(flight, now_s)

    def _schedule(self, running: Running) -> None:
        """See to it that the replica is looked at when it has something to tell."""
        next_s = running.sim.next_s
        if next_s < running.due_s:
            running.due_s = next_s
            self._later(next_s, REPLICA, running.number, None)

    # -- everything else ---------------------------------------------------------------------------

    def _happen(self, kind: int, number: int, now_s: float) -> None:
        if kind == DIGEST:
            self._digest(number, now_s)
        elif kind == WAKE:
            self.router.woken(number, now_s)
        elif kind == OPERATE:
            self.faults.operate(now_s)
        else:
            self.faults.happen(kind, number, now_s)

    def _digest(self, number: int, now_s: float) -> None:
        self._say(number, now_s)
        if not self._come or self.open:
            self._later(now_s + self.router.digest_s, DIGEST, number, None)

    def _say(self, number: int, now_s: float) -> None:
        site = self.sites[number]
        if site.up:
            digest = site.digest(now_s, self.setting.waiting)
            for running in site.replicas:
                self._schedule(running)
            self.news.tell(number, digest, now_s)
            self.router.told(number, digest, now_s)

    def _later(self, at_s: float, kind: int, number: int, flight: Flight | None) -> None:
        self._due.put(at_s, kind, number, flight)

    def later(self, at_s: float, kind: int, number: int) -> None:
        """For faults: something else is due then."""
        self._later(at_s, kind, number, None)

    @property
    def goes_on(self) -> bool:
        """Whether requests are still to come or to end."""
        return self.open > 0 or not self._come

    def lose(self, running: Running, now_s: float) -> None:
        """A replica dies with all that it had. What had not begun to be answered is at its site
        again, if that is up; else its ingress notices."""
        jobs = running.sim.fail()
        running.due_s = inf
        up = self.sites[running.spec.site].up
        again: list[Flight] = []
        for job in jobs:
            flight = job.owner
            assert isinstance(flight, Flight), "each job is a flight's"
            self.router.served(flight, running.spec.site, now_s)
            begun = flight.first_s >= 0.0
            flight.stage = AT_SITE
            flight.replica = running.number if begun else -1
            if begun:
                self._send_back(flight, BROKE, now_s)
            elif not up:
                self._send_back(flight, LOST, now_s)
            else:
                self._kept[flight.ident] = flight
                again.append(flight)
        for flight in again:
            if flight.stage == AT_SITE:
                self.router.arrived(flight, running.spec.site, now_s)

    def lose_site(self, site: int, now_s: float) -> None:
        """The requests that a site's gateway had and no replica did."""
        lost = [flight for flight in self._kept.values() if flight.site == site]
        for flight in sorted(lost, key=lambda each: each.reached_s):
            self._send_back(flight, LOST, now_s)

    def _start(self) -> None:
        digest_s = self.router.digest_s
        self.router.start(self.setting)
        self.faults.start()
        for site in self.sites:
            self.router.replicas_changed(site.number, site.ready(), 0.0)
        for number in range(len(self.sites)):
            self._say(number, -1.0)  # all have been heard of when the first request comes
            self._later(digest_s * (number + 1) / len(self.sites), DIGEST, number, None)

    def _check(self) -> None:
        """Raises BrokenRule where requests or tokens were lost count of."""
        tally = self.tally
        there = len(self._kept) + sum([each.sim.open_jobs for each in self.replicas])
        if not self.open and there:
            raise BrokenRule(f"{there} requests are at sites, and none is open")
        known = tally.answered + tally.refused + tally.broken
        if tally.requests - known > self.open or known > tally.requests:
            raise BrokenRule(f"{tally.requests} began, {known} ended, {self.open} are open")
        for each in self.replicas:
            if each.sim.kv_used > each.spec.physics.kv_tokens or each.sim.kv_used < 0:
                raise BrokenRule(f"replica {each.number} uses {each.sim.kv_used} tokens of memory")
            if not each.sim.open_jobs and each.sim.kv_used:
                raise BrokenRule(f"replica {each.number} is idle and holds memory")

    def _summary(self) -> Summary:
        now_s = self.now_s
        busy_s = sum([each.busy_s for each in self.replicas])
        return self.tally.summary(
            policy=self.router.name, seed=self.plan.seed, gpus=self.fleet.gpus, now_s=now_s,
            last_s=self._last_s, busy_share=busy_s / (now_s * len(self.replicas) or 1.0),
        )


class Coming:
    """The requests of some chunks, one by one. Raises ValueError where one comes too late."""

    def __init__(self, chunks: Iterable[Arrivals]) -> None:
        self._chunks = iter(chunks)
        self._rows: list[Arrival] = []
        self._at = 0
        self._before_s = 0.0

    def next(self) -> Arrival | None:
        """None after the last one."""
        while self._at == len(self._rows):
            chunk = next(self._chunks, None)
            if chunk is None:
                return None
            self._rows, self._at = chunk.rows(), 0
        row = self._rows[self._at]
        self._at += 1
        if row.at_s < self._before_s:
            raise ValueError(f"a request at {row.at_s} s comes after one at {self._before_s} s")
        self._before_s = row.at_s
        return row


def run(
    fleet: Fleet, arrivals: Iterable[Arrivals], router: Router, plan: Plan | None = None
) -> Summary:
    """Simulate a fleet under one policy. Raises ValueError for what does not fit together, and
    BrokenRule where the policy did what none may.

    Nothing that a run makes refers to itself, so the collector of cycles, which would look at a
    million objects again and again, rests meanwhile.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return Simulation(fleet, router, plan or Plan()).run(arrivals)
    finally:
        if was_on:
            gc.enable()
