"""Does to a whole system in virtual time what a plan of faults says, and ends it again."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from isochrone.core.errors import StoreUnavailable
from isochrone.core.ids import KeyId, SiteName
from isochrone.core.rng import Random
from isochrone.twin.chaos.plan import Event, Messages, Plan
from isochrone.twin.checks.answers import LISTENS_S
from isochrone.twin.checks.record import Down
from isochrone.twin.fakes.engine import FakeEngine
from isochrone.twin.fakes.engine_server import FakeSpeed
from isochrone.wire.subjects import USAGE_STREAM
from isochrone.wiring.faulty_pool import Fate, FaultyPool
from isochrone.wiring.whole_system import WholeSystem

T = TypeVar("T")

LONGEST_JUMP_S = 3600.0
MOST_DISK_ERRORS = 4
MOST_ENGINE_ERRORS = 8
SLOWEST = 30.0  # times
SLOWEST_WAY_S = 1.5
STORE_FAILS = 0.5  # of all calls, at most, while its replies are lost
REVOCABLE = KeyId("passing")
SECOND = "control two"


class Faults:
    """`run` lets everything happen that is planned; `calm` undoes what lasts. `downs` says which
    gateways ended suddenly, for the judges."""

    def __init__(self, system: WholeSystem, pool: FaultyPool, plan: Plan) -> None:
        self._system = system
        self._pool = pool
        self._plan = plan
        self._rng: Random = system.chance("faults")
        self._cuts: list[frozenset[SiteName]] = []
        self._slow: dict[str, float] = {}
        self._store: list[tuple[Fate, float]] = []
        self._restarting: set[str] = set()
        self.downs = [
            Down(site=site.name, at_s=0.0, back_s=0.0) for site in system.world.sites
        ]
        self.revoked = False

    async def run(self) -> None:
        """Every event at its time; returns when the last one is over and undone."""
        system = self._system
        system.wire.is_cut = self._is_cut
        system.wire.slow_s = self._slow_s
        self._pool.fate = self._fate
        system.hub.copies = self._copies(self._plan.messages)
        began_s = system.loop.time()
        async with asyncio.TaskGroup() as group:
            for number, event in enumerate(self._plan.events):
                group.create_task(self._happen(event, began_s), name=f"fault {number}")

    async def calm(self) -> None:
        """No more faults: all that was cut, away, slow or wrong is well again."""
        system = self._system
        self._cuts.clear()
        self._slow.clear()
        self._store.clear()
        self._pool.fate = lambda: "done"
        system.hub.copies = lambda: (0.0,)
        system.wire.healed()
        for clock in system.clocks.values():
            clock.offset_ns = 0
        for driver in system.engines.values():
            driver.failing_starts = 0
        system.note("calm")

    # -- one event -------------------------------------------------------------------------------

    async def _happen(self, event: Event, began_s: float) -> None:
        system = self._system
        await asyncio.sleep(max(began_s + event.at_s - system.loop.time(), 0.0))
        system.note(f"fault {event.kind}")
        match event.kind:
            case "gateway_kill" | "power_cut":
                await self._kill(f"gateway {self._site(event)}", event)
            case "control_kill":
                await self._kill("control", event)
            case "gateway_drain":
                await self._drain(f"gateway {self._site(event)}", event)
            case "second_control":
                await self._second_control(event)
            case "agent_kill":
                await self._kill(f"agent {self._site(event)}", event)
            case "engine_crash" | "engine_stands" | "engine_slow" | "engine_errors":
                await self._engine(event)
            case "engine_will_not_start":
                system.engines[self._site(event)].failing_starts += 1 + round(event.hard)
            case "bus_cut" | "bus_down" | "bucket_lost" | "stream_full" | "replies_lost" | (
                "pulls_doubled"
            ):
                await self._bus(event)
            case "partition" | "connections_reset" | "network_slow":
                await self._network(event)
            case "clock_jump":
                self._jump(event)
            case "disk_full" | "disk_errors":
                await self._disk(event)
            case "store_away" | "store_reply_lost":
                fate: Fate = "away" if event.kind == "store_away" else "reply_lost"
                share = 1.0 if event.kind == "store_away" else event.hard * STORE_FAILS
                await self._for_a_while(event, self._store, (fate, share))
            case "key_revoked":
                await self._revoke()

    def _jump(self, event: Event) -> None:
        name = self._process(event)
        if name is not None:
            jump_s = (2 * event.hard - 1) * LONGEST_JUMP_S
            self._system.clock_of(name).offset_ns += int(jump_s * 1e9)

    async def _revoke(self) -> None:
        """As an operator does, who tries again while the book is away."""
        while not self.revoked:
            try:
                self._system.revoke_key(REVOCABLE)
            except StoreUnavailable:
                await asyncio.sleep(0.5)
            else:
                self.revoked = True

    async def _kill(self, name: str, event: Event) -> None:
        """Kill it, and start it again after the event's time, as its supervisor would."""
        system = self._system
        if name not in system.running() or name in self._restarting:
            return
        self._restarting.add(name)
        site = SiteName(name.partition(" ")[2])
        cut = event.kind == "power_cut"
        if name.startswith("gateway"):
            disk = system.disks[site]
            full = disk.capacity_bytes is not None or disk.failing_appends + disk.failing_syncs > 0
            at_s = system.loop.time()
            self.downs.append(
                Down(site=site, at_s=at_s, back_s=at_s + event.for_s, unsynced=cut, full=full)
            )
        await system.kill(name, power_cut=cut)
        await asyncio.sleep(event.for_s)
        self._restarting.discard(name)
        if name == "control":
            system.start_control()
        elif name.startswith("gateway"):
            system.start_gateway(site)
        else:
            system.start_agent(site)

    async def _drain(self, name: str, event: Event) -> None:
        """Stop it in good order, and start a new one."""
        system, site = self._system, _site_of(name)
        if name not in system.running() or name in self._restarting:
            return
        self._restarting.add(name)
        at_s = system.loop.time()
        await system.drain(name)
        await asyncio.sleep(event.for_s / 4)
        back_s = system.loop.time() + LISTENS_S
        self.downs.append(Down(site=site, at_s=at_s, back_s=back_s, lives=True))
        self._restarting.discard(name)
        system.start_gateway(site)

    async def _second_control(self, event: Event) -> None:
        system = self._system
        if SECOND in system.running() or SECOND in self._restarting:
            return
        system.start_control(SECOND)
        await asyncio.sleep(event.for_s)
        await system.kill(SECOND)

    async def _engine(self, event: Event) -> None:
        found = self._engine_at(self._site(event), event)
        if found is None:
            return
        server = found.server
        if event.kind == "engine_crash":
            await found.end("ended by signal SIGKILL")
        elif event.kind == "engine_errors":
            server.failing += 1 + int(event.hard * MOST_ENGINE_ERRORS)
            await asyncio.sleep(event.for_s)
            server.failing = 0
        elif event.kind == "engine_stands":
            server.stand_still()
            found.silent = event.hard > 0.5
            await asyncio.sleep(event.for_s)
            found.silent = False
            server.go_on()
        else:
            usual, times = server.speed, 1 + event.hard * SLOWEST
            server.speed = FakeSpeed(
                prefill_tok_s=usual.prefill_tok_s / times, decode_tok_s=usual.decode_tok_s / times
            )
            await asyncio.sleep(event.for_s)
            server.speed = replace(usual)

    async def _bus(self, event: Event) -> None:
        system, hub = self._system, self._system.hub
        if event.kind == "bus_down":
            hub.down()
            await asyncio.sleep(event.for_s)
            hub.up()
        elif event.kind == "bucket_lost":
            buckets = sorted(hub.buckets)
            if buckets:
                hub.lose_bucket(buckets[int(event.hard * len(buckets))])
        elif event.kind == "stream_full":
            if USAGE_STREAM in hub.streams:
                hub.fill_stream(USAGE_STREAM)
                await asyncio.sleep(event.for_s)
                hub.fill_stream(USAGE_STREAM, full=False)
        else:
            name = self._process(event)
            if name is None:
                return
            bus = system.bus_of(name)
            if event.kind == "replies_lost":
                for _ in range(1 + int(event.hard * 4)):
                    bus.lose_next_reply()
            elif event.kind == "pulls_doubled":
                for each in hub.buses:
                    each.double_next_pull()
            else:
                bus.down()
                await asyncio.sleep(event.for_s)
                if bus in [system.bus_of(name) for name in system.running()]:
                    bus.up()

    async def _network(self, event: Event) -> None:
        wire = self._system.wire
        if event.kind == "partition":
            names = [site.name for site in self._system.world.sites]
            first = int(event.pick * len(names))
            second = (first + 1 + int(event.hard * (len(names) - 1))) % len(names)
            await self._for_a_while(event, self._cuts, frozenset((names[first], names[second])))
            wire.healed()
            return
        name = self._process(event)
        if name is None:
            return
        if event.kind == "connections_reset":
            at_s = self._system.loop.time()
            wire.reset(name)
            if name.startswith("gateway"):
                self.downs.append(Down(site=_site_of(name), at_s=at_s, back_s=at_s, lives=True))
        else:
            self._slow[name] = event.hard * SLOWEST_WAY_S
            await asyncio.sleep(event.for_s)
            self._slow.pop(name, None)

    async def _disk(self, event: Event) -> None:
        disk = self._system.disks[self._site(event)]
        if event.kind == "disk_errors":
            count = 1 + int(event.hard * MOST_DISK_ERRORS)
            if event.pick * 100 % 1 < 0.5:
                disk.failing_appends += count
            else:
                disk.failing_syncs += count
            await asyncio.sleep(event.for_s)
            disk.failing_appends = disk.failing_syncs = 0
        elif disk.capacity_bytes is None:
            disk.capacity_bytes = disk.occupied_bytes
            await asyncio.sleep(event.for_s)
            disk.capacity_bytes = None

    # -- whom it hits ----------------------------------------------------------------------------

    def _site(self, event: Event) -> SiteName:
        names = [site.name for site in self._system.world.sites]
        return names[int(event.pick * len(names))]

    def _process(self, event: Event) -> str | None:
        """None where all are dead: then it hits nobody."""
        names = self._system.running()
        return names[int(event.pick * len(names))] if names else None

    def _engine_at(self, site: SiteName, event: Event) -> FakeEngine | None:
        driver = self._system.engines[site]
        names = sorted(name for name, engine in driver.engines.items() if engine.running)
        return driver.engines[names[int(event.hard * len(names))]] if names else None

    # -- what lasts ------------------------------------------------------------------------------

    async def _for_a_while(self, event: Event, held: list[T], what: T) -> None:
        held.append(what)
        await asyncio.sleep(event.for_s)
        if what in held:
            held.remove(what)

    def _is_cut(self, one: str, other: str) -> bool:
        if not self._cuts:
            return False
        return frozenset((_site_of(one), _site_of(other))) in self._cuts

    def _slow_s(self, one: str, other: str) -> float:
        most_s = self._slow.get(one, 0.0) + self._slow.get(other, 0.0) if self._slow else 0.0
        return self._rng.uniform(0.0, most_s) if most_s else 0.0

    def _fate(self) -> Fate:
        for fate, share in self._store:
            if self._rng.random() < share:
                return fate
        return "done"

    def _copies(self, messages: Messages) -> Callable[[], list[float]]:
        rng = self._rng

        def copies() -> list[float]:
            if rng.random() < messages.lost:
                return []
            count = 2 if rng.random() < messages.doubled else 1
            return [rng.uniform(0.0, messages.late_s) for _ in range(count)]

        return copies


def _site_of(process: str) -> SiteName:
    return SiteName(process.partition(" ")[2])
