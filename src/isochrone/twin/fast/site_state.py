"""The engines of one site while they are simulated, and what the site says of them.

What is said is worked out by the product's own functions, from what counters of engines would tell.
"""

from isochrone.core.estimate.engine_rates import Learned, arrived, came_lately, learn, seeded
from isochrone.core.routing.site_load import Reading, load_of
from isochrone.core.world.digest import DeploymentLoad, ReplicaLoad, SiteDigest
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from isochrone.twin.fast.fleet import Fleet, FleetReplica
from isochrone.twin.fast.policy import Waiting
from isochrone.twin.fast.readings import Meter
from isochrone.twin.fast.replica import SimulatedReplica


class Running:
    """One replica of the fleet. `wanted`: somebody wants it to run; `ready`: it takes requests;
    `failed`: until it is repaired; `due_s`: the instant of its next event in the simulation's heap.
    `generation` counts its engines; a start that is overtaken has an older `serial`."""

    __slots__ = (
        "arrived", "before_s", "due_s", "failed", "generation", "ident", "load", "meter", "model",
        "number", "read_s", "ready", "serial", "sim", "site", "spec", "wanted",
    )

    def __init__(self, number: int, spec: FleetReplica, ident: str) -> None:
        self.number = number
        self.spec = spec
        self.site = spec.site
        self.model = spec.model
        self.ident = ident
        self.sim = SimulatedReplica(spec.physics, cache_tokens=spec.cache_tokens)
        self.meter = Meter(self.sim)
        self.wanted = True
        self.ready = False
        self.failed = False
        self.generation = 0
        self.serial = 0
        self.due_s = float("inf")
        self.load: EngineLoad = UNKNOWN_LOAD
        self.arrived: float | None = None
        self.read_s = 0.0
        self.before_s = 0.0

    def begin(self) -> None:
        """A new engine starts: its counters do, too."""
        self.generation += 1
        self.load, self.arrived = UNKNOWN_LOAD, None
        self.before_s += self.sim.busy_s
        self.sim = SimulatedReplica(self.spec.physics, cache_tokens=self.spec.cache_tokens)
        self.meter = Meter(self.sim)

    @property
    def busy_s(self) -> float:
        """Of all engines that it had."""
        return self.before_s + self.sim.busy_s


class SiteState:
    """One site. `up`: it has power and its gateway answers."""

    def __init__(self, number: int, fleet: Fleet, replicas: list[Running]) -> None:
        self.number = number
        self.fleet = fleet
        self.replicas = replicas
        self.up = True
        self.epoch = 1
        self._sequence = 0
        self._learned: list[Learned | None] = [None] * len(fleet.models)
        self._pushed = [0] * len(fleet.models)
        self._pushed_lately = [0.0] * len(fleet.models)
        self._said_s = 0.0

    def ready(self) -> list[int]:
        """The numbers of the replicas that take requests."""
        if not self.up:
            return []
        return [each.number for each in self.replicas if each.ready]

    def restart(self) -> None:
        """The site's agent starts anew, and has to learn again."""
        self.epoch += 1
        self._sequence = 0
        self._learned = [None] * len(self.fleet.models)

    def digest(self, now_s: float, waiting: Waiting | None = None) -> SiteDigest:
        """Read all counters, learn from them, and say what is so."""
        self._sequence += 1
        readings: list[list[Reading]] = [[] for _ in self.fleet.models]
        said: list[ReplicaLoad] = []
        for each in self.replicas:
            if each.ready:
                readings[each.spec.model].append(self._read(each, now_s))
            said.append(self._replica(each))
        return SiteDigest(
            site=self.fleet.sites[self.number].name,
            epoch=self.epoch,
            sequence=self._sequence,
            at=int(now_s * 1e9),
            loads=self._loads(readings, waiting, now_s),
            replicas=tuple(said),
        )

    def _read(self, each: Running, now_s: float) -> Reading:
        before, model = each.load, each.spec.model
        known = self._learned[model] or seeded(each.spec.stated)
        load = each.meter.read(now_s)
        self._learned[model] = known = learn(known, before, load)
        elapsed_s = now_s - each.read_s
        if before.running is not None:
            each.arrived = arrived(each.arrived, before, load, known, elapsed_s=elapsed_s)
        each.load, each.read_s = load, now_s
        return Reading(each.spec.physics.slots, load, each.arrived)

    def _loads(
        self, readings: list[list[Reading]], waiting: Waiting | None, now_s: float
    ) -> tuple[DeploymentLoad, ...]:
        found = []
        for model, numbers in enumerate(self.fleet.at[self.number]):
            if numbers:
                spec = self.fleet.replicas[numbers[0]]
                known = self._learned[model] or seeded(spec.stated)
                queued, pushed = (None, 0) if waiting is None else waiting(self.number, model)
                if now_s > self._said_s:
                    self._pushed_lately[model] = came_lately(
                        self._pushed_lately[model], pushed - self._pushed[model],
                        now_s - self._said_s,
                    )
                    self._pushed[model] = pushed
                found.append(load_of(
                    self.fleet.models[model].name, readings[model], known, queued=queued,
                    pushed=self._pushed_lately[model],
                ))
        self._said_s = now_s
        return tuple(found)

    def _replica(self, each: Running) -> ReplicaLoad:
        load = each.load
        return ReplicaLoad(
            id=each.ident,
            model=self.fleet.models[each.spec.model].name,
            generation=each.generation,
            state="ready" if each.ready else "failed" if each.failed else "starting",
            pid=None,
            running=load.running or 0,
            waiting=load.waiting or 0,
            restarts=0,
            prompt_tokens_total=load.prompt_tokens_total,
            cached_tokens_total=load.cached_tokens_total,
            output_tokens_total=load.output_tokens_total,
            kept_tokens=load.kept_tokens,
            held_tokens=load.held_tokens,
        )
