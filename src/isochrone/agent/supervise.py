"""Keeps the site's replicas as desired: asks the core what to do, and does it to engines.

One task lives with each running replica: it starts the engine, watches it, and ends it. What has
happened goes back to the core as events; the core's plan is applied after every change.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from isochrone.core.errors import EngineUnavailable
from isochrone.core.estimate.engine_rates import Learned, arrived, learn, seeded
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, ReplicaId
from isochrone.core.lifecycle import replica as life
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from isochrone.core.world.model import Desired, EngineKind
from isochrone.ports.clock import Clock
from isochrone.ports.engine import (
    Engine,
    EngineDriver,
    EngineStart,
)

STOP_S = 3.0
NOTICE_S = 1.0       # gateways need this long to hear that a replica takes no new work
DRAIN_S = 20.0
SILENT_S = 20.0
MOST_DETAIL = 500

log = structlog.get_logger()


@dataclass(slots=True)
class Live:
    """A replica in the agent's hands. `load` is the last reading, `engine` None unless it runs;
    `at_ready` is the reading when it became ready, after what it was tried with; `arrived` are the
    requests a second that came to it lately; for `silent_s` it has not answered; `urgent`: it was
    asked to stop without finishing its work.
    """

    status: life.Status
    started_at: int
    engine: Engine | None = None
    revision: str | None = None
    load: EngineLoad = UNKNOWN_LOAD
    at_ready: EngineLoad = UNKNOWN_LOAD
    arrived: float | None = None
    silent_s: float = 0.0
    stop_asked: asyncio.Event = field(default_factory=asyncio.Event)
    urgent: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorPlan:
    """How often engines are read and how long a start may take."""

    load_interval_s: float
    start_deadline_s: float


class Supervisor:
    """Owns every engine of the site. `on_change` is called after each change of a replica."""

    def __init__(
        self,
        drivers: Mapping[EngineKind, EngineDriver],
        clock: Clock,
        plan: SupervisorPlan,
        *,
        seed: Callable[[], Rates],
        on_change: Callable[[], None],
    ) -> None:
        self._drivers = drivers
        self._clock = clock
        self._plan = plan
        self._seed = seed
        self._on_change = on_change
        self._wanted: tuple[life.Goal, ...] = ()
        self._at_once: frozenset[ModelName] = frozenset()
        self._live: dict[ReplicaId, Live] = {}
        self._learned: dict[ModelName, Learned] = {}
        self._generation = 0
        self._wake = asyncio.Event()

    def want(self, desired: Desired) -> None:
        """Take a new desired state; the loop works towards it."""
        self._wanted = life.goals(desired)
        self._at_once = life.ended_at_once(desired)
        self._wake.set()

    def start_generations_above(self, seen: int) -> None:
        """An earlier agent used generations up to `seen`, whatever our wall clock says."""
        self._generation = max(self._generation, seen)

    @property
    def wanted(self) -> Sequence[life.Goal]:
        return self._wanted

    @property
    def replicas(self) -> Mapping[ReplicaId, Live]:
        return self._live

    def learned(self, model: ModelName) -> Learned:
        """What is known about the model's speed here, seeded by the hardware."""
        return self._learned.get(model) or seeded(self._seed())

    async def run(self) -> None:
        """Supervise until cancelled; then every engine is stopped."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._wake.clear()
                plan = life.plan(
                    self._wanted, self._statuses(), self._clock.monotonic_ns(),
                    at_once=self._at_once,
                )
                for command in plan.commands:
                    self._apply(command, tasks)
                if plan.commands:
                    self._on_change()
                    continue
                await self._sleep_until(plan.wake_ns)

    def _statuses(self) -> dict[ReplicaId, life.Status]:
        return {id_: live.status for id_, live in self._live.items()}

    async def _sleep_until(self, wake_ns: int | None) -> None:
        wait_s = None
        if wake_ns is not None:
            wait_s = max(0.0, (wake_ns - self._clock.monotonic_ns()) / 1e9)
        try:
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _apply(self, command: life.Command, tasks: asyncio.TaskGroup) -> None:
        match command:
            case life.Start(goal=goal):
                live = self._begin(goal)
                tasks.create_task(self._live_through(live), name=f"replica {goal.id}")
            case life.Stop(id=id_, reason=reason, at_once=at_once):
                live = self._live[id_]
                asked = life.Event(kind="stop_asked", detail=reason, at_once=at_once)
                self._happened(live, asked)
                if at_once:
                    live.urgent.set()
                live.stop_asked.set()
            case life.Forget(id=id_):
                del self._live[id_]

    def _begin(self, goal: life.Goal) -> Live:
        self._generation = max(
            self._generation + 1, self._clock.wall_ns() // 1_000_000,
            goal.restart_up_to + 1,  # else it would restart for ever under a clock set back
        )
        now_ns = self._clock.monotonic_ns()
        known = self._live.get(goal.id)
        if known is None:
            status = life.first(goal, self._generation, now_ns)
        else:
            status = life.again(known.status, goal, self._generation, now_ns)
        live = Live(status=status, started_at=self._clock.wall_ns())
        self._live[goal.id] = live
        return live

    def _happened(self, live: Live, event: life.Event) -> None:
        before = live.status.state
        live.status = life.step(live.status, event, self._clock.monotonic_ns())
        if live.status.state == before:
            return
        note = log.warning if live.status.state == "failed" else log.info
        note(
            f"replica_{live.status.state}", replica=live.status.goal.id,
            model=live.status.goal.model, generation=live.status.generation,
            restarts=live.status.restarts, detail=event.detail,
        )
        self._wake.set()
        self._on_change()

    async def _live_through(self, live: Live) -> None:
        """From start to end of one process; never raises but for cancellation and bugs."""
        ended = life.Event(kind="ended", detail="the agent stops")
        leaving = False
        try:
            ended = await self._first_of(self._start_and_watch(live), self._until_drained(live))
        except (EngineUnavailable, OSError) as error:
            ended = life.Event(kind="failed", detail=str(error)[:MOST_DETAIL])
        except asyncio.CancelledError:
            leaving = True
            self._happened(live, life.Event(kind="stop_asked", detail=ended.detail))
            raise
        finally:
            if live.engine is not None:
                await self._end(live, live.engine, leaving=leaving)
            live.engine = None
            live.load = UNKNOWN_LOAD
            live.arrived = None
            self._happened(live, ended)

    async def _end(self, live: Live, engine: Engine, *, leaving: bool) -> None:
        """Until its process is gone: it holds what the next one needs. One that cannot be killed,
        because it waits for a disk or a device, costs no other engine; nobody leaving waits."""
        while True:
            try:
                await engine.stop(deadline_s=0.0 if live.urgent.is_set() else STOP_S)
            except TimeoutError:
                log.error("replica_not_killed", replica=live.status.goal.id, pid=engine.pid)
                if leaving:
                    return
                detail = "its process does not end"
                self._happened(live, life.Event(kind="stop_asked", detail=detail))
            else:
                return

    async def _start_and_watch(self, live: Live) -> life.Event:
        goal = live.status.goal
        driver = self._drivers[goal.engine.kind]
        live.revision = await driver.revision(goal.engine)
        live.engine = await driver.start(
            EngineStart(
                replica=goal.id, site=goal.site, model=goal.model,
                generation=live.status.generation, spec=goal.engine,
                context_tokens=goal.context_tokens,
            ),
            deadline_s=self._plan.start_deadline_s,
        )
        live.load = live.at_ready = await self._read(live.engine) or UNKNOWN_LOAD
        self._happened(live, life.Event(kind="ready"))
        reason = await self._first_of(live.engine.exited(), self._until_silent(live, live.engine))
        return life.Event(kind="failed", detail=reason[:MOST_DETAIL])

    async def _until_silent(self, live: Live, engine: Engine) -> str:
        """Read the engine's load for ever; returns when it has not answered for too long. Of one
        that answers, but not with its load, the last reading holds for as long: it is busy."""
        heard_ns = read_ns = self._clock.monotonic_ns()
        while True:
            await asyncio.sleep(self._plan.load_interval_s)
            load = await self._read(engine)
            now_ns = self._clock.monotonic_ns()
            if load is None:
                live.silent_s = (now_ns - heard_ns) / 1e9
                if now_ns - heard_ns > SILENT_S * 1e9:
                    return f"it has not answered for {SILENT_S:g} s"
                continue
            heard_ns, live.silent_s = now_ns, 0.0
            if load == UNKNOWN_LOAD:
                if now_ns - read_ns > SILENT_S * 1e9:
                    live.load, live.arrived = UNKNOWN_LOAD, None
                continue
            model = live.status.goal.model
            known = self._learned[model] = learn(self.learned(model), live.load, load)
            live.arrived = arrived(
                live.arrived, live.load, load, known, elapsed_s=(now_ns - read_ns) / 1e9
            )
            read_ns, live.load = now_ns, load

    async def _read(self, engine: Engine) -> EngineLoad | None:
        try:
            return await engine.load()
        except EngineUnavailable:
            return None

    async def _until_drained(self, live: Live) -> life.Event:
        """Wait to be asked to stop, then until nothing runs or the patience is over."""
        await live.stop_asked.wait()
        if live.engine is not None and live.engine.pid is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(NOTICE_S + DRAIN_S):
                    await self._first_of(self._until_idle(live.engine), live.urgent.wait())
        return life.Event(kind="ended", detail=live.status.detail)

    async def _until_idle(self, engine: Engine) -> None:
        """Until nothing is sent to it any more and it says that nothing runs; one that is too busy
        to say so, or silent, has not said it."""
        await asyncio.sleep(NOTICE_S)
        # Polled: an engine has no event to wait for.
        while not _is_idle(await self._read(engine)):  # noqa: ASYNC110
            await asyncio.sleep(0.2)

    async def _first_of(self, *waits: Coroutine[Any, Any, Any]) -> Any:
        """The result of the first to finish; the others are cancelled and awaited."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in tasks if task in done).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _is_idle(load: EngineLoad | None) -> bool:
    return load is not None and load.running == 0 and not load.waiting
