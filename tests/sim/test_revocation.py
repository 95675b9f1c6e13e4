"""Revoked keys on virtual time: refused everywhere in less than two seconds, and after a cut."""

import asyncio
from collections.abc import Awaitable, Callable

from isochrone.adapters.packaged import default_world
from isochrone.adapters.postgres.pool import Pool
from isochrone.twin import loop as virtual
from isochrone.wiring.whole_system import WholeSystem, model_of
from isochrone.wiring.world_file import parse_world

SITES = ("sydney", "frankfurt", "ashburn")
LIMIT_S = 2.0


class Stage:
    """A whole system in which every site serves the keys `good` and `bad`."""

    def __init__(self, system: WholeSystem) -> None:
        self.system = system

    async def status(self, site: str, key: str) -> int:
        body = {
            "model": model_of(self.system.world), "max_tokens": 1,
            "messages": [{"role": "user", "content": "hello"}],
        }
        return (await self.system.ask(site, f"iso_{key}", body)).status

    async def until_status(self, site: str, key: str, status: int, *, limit_s: float) -> None:
        """Ask until the answer has this status; the last question is asked within the limit."""
        ends = self.system.loop.time() + limit_s
        while self.system.loop.time() < ends:
            if await self.status(site, key) == status:
                return
            await asyncio.sleep(0.02)  # asking takes no virtual time
        raise AssertionError(f"{site} never answered {status} to {key} within {limit_s} s")


def on_stage(pool: Pool, scene: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        system = WholeSystem(pool, parse_world(default_world(), source="default"), seed=11)
        system.prepare()
        for name in ("good", "bad"):
            system.add_key(name, residency=("any",), transit=("any",))
        await system.start()
        stage = Stage(system)
        for site in SITES:
            for name in ("good", "bad"):
                await stage.until_status(site, name, 200, limit_s=40.0)
        await scene(stage)
        await system.stop()

    virtual.run(main())


def test_a_revoked_key_is_refused_at_every_gateway(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        stage.system.revoke_key("bad")
        ends = stage.system.loop.time() + LIMIT_S
        for site in SITES:
            await stage.until_status(site, "bad", 401, limit_s=ends - stage.system.loop.time())
        for site in SITES:
            assert await stage.status(site, "good") == 200

    on_stage(pool, scene)


def test_a_gateway_that_was_cut_off_refuses_right_after_it_is_back(pool: Pool) -> None:
    async def scene(stage: Stage) -> None:
        system = stage.system
        system.cut_off("gateway sydney")
        system.revoke_key("bad")
        await stage.until_status("frankfurt", "bad", 401, limit_s=LIMIT_S)
        assert await stage.status("sydney", "bad") == 200  # it cannot know
        await system.kill("control")  # nobody is needed who says it again
        system.reconnect("gateway sydney")
        await stage.until_status("sydney", "bad", 401, limit_s=LIMIT_S)
        assert await stage.status("sydney", "good") == 200

    on_stage(pool, scene)
