"""An agent on virtual time: engines too busy to say their load, a stop that becomes urgent, and a
second agent of the same site."""

import asyncio

from structlog.testing import capture_logs

from isochrone.ports.bus import Entry
from isochrone.twin.fakes.engine import FakeEngine
from tests.sim.test_agent import BUCKET, FIRST, HOST, Stage, on_stage


async def at_work(stage: Stage) -> FakeEngine:
    """The one replica that is wanted, which has begun an answer of 500 tokens."""
    await stage.want(1)
    await stage.until(lambda: stage.ready() == 1)
    await stage.begin(500)
    return stage.driver.engines[FIRST]


def test_a_removed_replica_finishes_its_work_though_it_is_too_busy_to_say_its_load() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            engine = await at_work(stage)
            engine.busy = True
            await stage.want(0, serial=2)
            await stage.until(lambda: not engine.running)
            assert engine.server.counters.output_tokens == 500

    on_stage(body)


def test_a_removed_replica_that_is_silent_for_a_moment_finishes_its_work() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            engine = await at_work(stage)
            await stage.want(0, serial=2)
            engine.silent = True
            await asyncio.sleep(3)
            engine.silent = False
            await stage.until(lambda: not engine.running)
            assert engine.server.counters.output_tokens == 500

    on_stage(body)


def test_a_stop_that_becomes_urgent_ends_what_is_finishing_its_work() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            engine = await at_work(stage)
            await stage.want(0, serial=2)
            await asyncio.sleep(2)
            assert engine.running
            asked_at = stage.loop.time()
            await stage.want(0, serial=3, at_once=True)
            await stage.until(lambda: not engine.running)
            assert stage.loop.time() - asked_at < 0.1
            assert engine.server.counters.output_tokens < 500

    on_stage(body)


def test_an_engine_too_busy_to_say_its_load_does_not_look_idle() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            engine = await at_work(stage)
            await stage.until(lambda: bool(stage.digest and stage.digest.loads[0].running))
            engine.busy = True
            await asyncio.sleep(3)
            assert stage.digest is not None
            assert stage.digest.loads[0].running == 1
            assert stage.digest.replicas[0].silent_s == 0.0, "it answers, if not with its load"
            await asyncio.sleep(30)
            assert stage.digest.loads[0].running == 0, "nobody knows any more"
            assert stage.ready() == 1

    on_stage(body)


def test_a_record_that_was_lost_before_it_was_listed_is_written_again() -> None:
    async def body(stage: Stage) -> None:
        async with stage.agent():
            await stage.want(0)
            await asyncio.sleep(1)
            await stage.want(1, serial=2)
            await asyncio.sleep(0.0005)
            for _ in range(2):  # the watch lists anew when it has noticed, in 2.5 s
                stage.hub.lose_bucket(BUCKET)
                await stage.control.ensure_bucket(BUCKET)
                await asyncio.sleep(1.5)
            await stage.until(lambda: stage.ready() == 1)
            await asyncio.sleep(30)
            assert (await stage.records())[FIRST].state == "ready"
            told: list[Entry] = []
            await stage.control.watch(BUCKET, "replica", told.append)
            await asyncio.sleep(60)
            assert len(told) == 1, "and not again and again"

    on_stage(body)


def test_two_agents_of_one_site_do_not_write_without_end() -> None:
    async def body(stage: Stage) -> None:
        told: list[Entry] = []
        await stage.control.watch(BUCKET, "replica", told.append)
        await stage.want(2)
        async with stage.agent():
            await asyncio.sleep(1)
            with capture_logs() as logs:
                async with stage.agent():
                    await asyncio.sleep(5)
                    told.clear()
                    await asyncio.sleep(10)
                    assert len(told) <= 2 * 2 * 10 * 10 + 4, "of each ten rounds a second at most"
            others = [each for each in logs if each["event"] == "another_agent_of_this_site"]
            assert len(others) == 2, "each says it, once a minute"
            assert others[0]["its_hosts"] == [HOST.name]

    on_stage(body)


