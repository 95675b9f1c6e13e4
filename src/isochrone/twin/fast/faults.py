"""What fails and comes back, and who scales: changes of which replicas and ways there are."""

from typing import Final, Protocol

from isochrone.core.rng import Random
from isochrone.twin.fast.plan import Observed, Outage, Plan
from isochrone.twin.fast.policy import Router
from isochrone.twin.fast.site_state import Running, SiteState
from isochrone.twin.fast.ways import Ways

FAULT: Final = 8
READY: Final = 9
OPERATE: Final = 10


class Stage(Protocol):
    """The simulation, as faults change it."""

    plan: Plan
    router: Router
    ways: Ways
    replicas: list[Running]
    sites: list[SiteState]

    @property
    def goes_on(self) -> bool: ...

    def later(self, at_s: float, kind: int, number: int) -> None: ...

    def lose(self, running: Running, now_s: float) -> None: ...

    def lose_site(self, site: int, now_s: float) -> None: ...


class Faults:
    """Mutable, of one run. Each fault is two events, its beginning and its end."""

    def __init__(self, stage: Stage, rng: Random) -> None:
        self._stage = stage
        self._rng = rng
        self._due: dict[int, tuple[Outage, bool, int]] = {}  # outage, begins, chance or -1
        self._number = 0
        self._starts: dict[int, tuple[int, int]] = {}
        self._down: dict[tuple[str, int, int], int] = {}  # how many outages each is in

    def start(self) -> None:
        """At the start of the run: what runs, what is planned, what comes by chance."""
        stage, plan = self._stage, self._stage.plan
        for running in stage.replicas:
            running.wanted = running.number not in plan.off
            if running.wanted and running.spec.starts_cold:
                self._launch(running, 0.0)
            elif running.wanted:
                running.ready = True
                running.generation = 1
        for outage in plan.outages:
            self._put(outage, begins=True, chance=-1)
        for at, chance in enumerate(plan.chances):
            count = len(stage.replicas) if chance.what == "replica" else len(stage.sites)
            for number in range(count):
                self._next(at, number, 0.0)
        if plan.operator is not None:
            stage.later(plan.operator.every_s, OPERATE, 0)

    def happen(self, kind: int, number: int, now_s: float) -> None:
        """One of ours is due."""
        if kind == READY:
            self._launched(number, now_s)
            return
        outage, begins, chance = self._due.pop(number)
        if begins:
            self._begin(outage, now_s)
            self._put(outage, begins=False, chance=chance)
        else:
            self._end(outage, now_s)
            if chance >= 0 and self._stage.goes_on:
                self._next(chance, outage.number, now_s)

    def operate(self, now_s: float) -> None:
        """Ask the operator what should run."""
        stage, operator = self._stage, self._stage.plan.operator
        assert operator is not None, "somebody must have asked for this"
        seen = [
            Observed(
                number=each.number, site=each.spec.site, model=each.spec.model, wanted=each.wanted,
                ready=each.ready, running=each.sim.reading + each.sim.streams,
                waiting=each.sim.waiting,
            )
            for each in stage.replicas
        ]
        for order in operator.operate(seen, now_s):
            running = stage.replicas[order.replica]
            if order.start and not running.wanted:
                running.wanted = True
                if self._may_run(running):
                    self._launch(running, now_s)
            elif not order.start and running.wanted:
                running.wanted = running.ready = False
                running.serial += 1
                self._changed(running.spec.site, now_s)
        if stage.goes_on:
            stage.later(now_s + operator.every_s, OPERATE, 0)

    # -- inside ----------------------------------------------------------------------------------

    def _put(self, outage: Outage, *, begins: bool, chance: int) -> None:
        self._number += 1
        self._due[self._number] = outage, begins, chance
        self._stage.later(outage.from_s if begins else outage.until_s, FAULT, self._number)

    def _next(self, at: int, number: int, now_s: float) -> None:
        chance = self._stage.plan.chances[at]
        from_s = now_s + self._rng.expovariate(1.0 / chance.between_s)
        until_s = from_s + self._rng.expovariate(1.0 / chance.repair_s)
        outage = Outage(what=chance.what, number=number, from_s=from_s, until_s=until_s)
        self._put(outage, begins=True, chance=at)

    def _begin(self, outage: Outage, now_s: float) -> None:
        stage, number = self._stage, outage.number
        key = outage.what, number, outage.ingress
        self._down[key] = self._down.get(key, 0) + 1
        if self._down[key] > 1:
            return
        if outage.what == "link":
            stage.ways.cut(outage.ingress, number, now_s)
        elif outage.what == "replica":
            self._kill([stage.replicas[number]], stage.replicas[number].spec.site, now_s)
        else:
            stage.sites[number].up = False
            self._kill(stage.sites[number].replicas, number, now_s)
            stage.lose_site(number, now_s)

    def _end(self, outage: Outage, now_s: float) -> None:
        stage, number = self._stage, outage.number
        key = outage.what, number, outage.ingress
        self._down[key] -= 1
        if self._down[key]:
            return
        if outage.what == "link":
            stage.ways.mend(outage.ingress, number)
            return
        if outage.what == "site":
            stage.sites[number].up = True
            stage.sites[number].restart()
        returning = stage.sites[number].replicas if outage.what == "site" else [
            stage.replicas[number]
        ]
        for running in returning:
            if running.wanted and self._may_run(running):
                self._launch(running, now_s)

    def _may_run(self, running: Running) -> bool:
        running.failed = bool(
            self._down.get(("replica", running.number, -1))
            or not self._stage.sites[running.spec.site].up
        )
        return not running.failed

    def _kill(self, killed: list[Running], site: int, now_s: float) -> None:
        for running in killed:
            running.ready = False
            running.failed = True
            running.serial += 1
        self._changed(site, now_s)  # nobody is sent there any more
        for running in killed:
            self._stage.lose(running, now_s)

    def _launch(self, running: Running, now_s: float) -> None:
        if running.sim.open_jobs:  # it has not finished what it had when it was to stop
            running.ready = True
            running.generation += 1
            self._changed(running.spec.site, now_s)
            return
        running.begin()
        self._number += 1
        running.serial += 1
        self._starts[self._number] = running.number, running.serial
        self._stage.later(now_s + running.spec.cold_start_s, READY, self._number)

    def _launched(self, number: int, now_s: float) -> None:
        replica, serial = self._starts.pop(number)
        running = self._stage.replicas[replica]
        if running.serial == serial and running.wanted and not running.failed:
            running.ready = True
            running.read_s = now_s
            self._changed(running.spec.site, now_s)

    def _changed(self, site: int, now_s: float) -> None:
        self._stage.router.replicas_changed(site, self._stage.sites[site].ready(), now_s)
