"""Shipping usage: outages are waited out, ids are stable, nothing is sent under two ids."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from isochrone.gateway.journal import COMMIT_S, Journal
from isochrone.gateway.shipping import Shipper
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeBus, FakeHub
from isochrone.twin.fakes.disk import MemoryDisk
from isochrone.twin.loop import VirtualLoop, run
from isochrone.wire import fleet
from isochrone.wire.subjects import BOOK_CONSUMER, USAGE_STREAM, USAGE_SUBJECTS
from isochrone.wire.usage import UsageBatch, UsageRecord, decode_batch
from tests.unit.build_usage import (
    a_decision,
    a_ground,
    a_record,
    a_usage_event,
    a_usage_record,
    an_opening,
)


class Site:
    """A gateway's journal and shipper, and a bus with the usage stream."""

    def __init__(self, hub: FakeHub, bus: FakeBus, disk: MemoryDisk) -> None:
        self.hub, self.bus, self.disk = hub, bus, disk
        self.start()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)
        self.journal = Journal(self.disk, clock, "sydney")
        self.journal.recover()
        self.shipper = Shipper(self.journal, self.bus, "sydney", clock)
        self.tasks = [
            loop.create_task(self.journal.run()),
            loop.create_task(self.shipper.run()),
        ]

    async def kill(self) -> None:
        await asyncio.sleep(0)  # a task that never ran would warn
        self.disk.process_died()
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)

    def stored(self) -> list[tuple[str, str, UsageBatch]]:
        """(subject, message id, batch) of everything in the stream."""
        return [
            (m.subject, m.message_id, fleet.decode(m.payload, UsageBatch))
            for m in self.hub.streams[USAGE_STREAM].messages.values()
        ]

    def requests(self) -> list[str]:
        return [event.request_id for _, _, batch in self.stored() for event in batch.events]


@asynccontextmanager
async def a_site() -> AsyncIterator[Site]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    hub = FakeHub(VirtualClock(loop), latency_ms=1.0)
    bus = hub.bus()
    await bus.ensure_stream(USAGE_STREAM, USAGE_SUBJECTS, BOOK_CONSUMER)
    site = Site(hub, bus, MemoryDisk(sync_s=0.001))
    try:
        yield site
    finally:
        await site.kill()


def on_a_site(test: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with a_site() as site:
            await test(site)

    run(main())


def evidence(request: str) -> UsageRecord:
    return a_usage_record(request, reporter="evidence")


def test_usage_and_evidence_go_their_ways_within_a_moment() -> None:
    async def test(site: Site) -> None:
        site.journal.closed(a_usage_record("a"))
        site.journal.closed(evidence("b"))
        await asyncio.sleep(COMMIT_S + 0.05)
        kinds = {subject: [e.request_id for e in batch.events]
                 for subject, _, batch in site.stored()}
        assert kinds == {"usage.sydney": ["a"], "evidence.sydney": ["b"]}
        assert all(name == batch.batch_id for _, name, batch in site.stored())

    on_a_site(test)


def test_an_outage_is_waited_out_and_the_backlog_comes_in_full_batches() -> None:
    async def test(site: Site) -> None:
        site.hub.down()
        for i in range(500):
            site.journal.closed(a_usage_record(f"r{i}"))
            await asyncio.sleep(0.12)
        assert site.stored() == []
        site.hub.up()
        await asyncio.sleep(10)
        assert sorted(site.requests()) == sorted(f"r{i}" for i in range(500))
        assert len(site.stored()) <= 5 + 4  # the first few are cut before the outage is noticed

    on_a_site(test)


def test_a_lost_acknowledgement_does_not_double() -> None:
    async def test(site: Site) -> None:
        site.bus.lose_next_reply()
        site.journal.closed(a_usage_record("a"))
        await asyncio.sleep(10)
        assert site.requests() == ["a"]

    on_a_site(test)


def test_a_killed_gateway_sends_again_under_the_same_id() -> None:
    async def test(site: Site) -> None:
        site.bus.lose_next_reply()
        site.journal.closed(a_usage_record("a"))
        await asyncio.sleep(0.5)
        (first,) = site.stored()
        await site.kill()
        site.hub.streams[USAGE_STREAM].stored_at.clear()  # so that a second copy would show
        site.start()
        site.journal.closed(a_usage_record("b"))
        await asyncio.sleep(10)
        assert site.stored()[1] == first
        assert sorted(set(site.requests())) == ["a", "b"]

    on_a_site(test)


def test_what_is_open_when_the_gateway_is_killed_is_told_by_the_next() -> None:
    async def test(site: Site) -> None:
        site.journal.opened(an_opening("a"))
        await site.kill()
        site.start()
        await asyncio.sleep(5)
        ((subject, _, batch),) = site.stored()
        assert subject == "usage.sydney"
        assert [(e.request_id, e.reporter) for e in batch.events] == [("a", "recovered")]

    on_a_site(test)


def test_a_full_stream_keeps_usage_at_the_site() -> None:
    async def test(site: Site) -> None:
        site.hub.fill_stream(USAGE_STREAM)
        site.journal.closed(a_usage_record("a"))
        await asyncio.sleep(30)
        site.hub.fill_stream(USAGE_STREAM, full=False)
        await asyncio.sleep(10)
        assert site.requests() == ["a"]

    on_a_site(test)


def test_a_stop_in_good_order_ships_the_last_requests() -> None:
    async def test(site: Site) -> None:
        site.journal.closed(a_usage_record("a"))
        assert await site.shipper.flush(timeout_s=1.0)
        assert site.requests() == ["a"]
        site.hub.down()
        site.journal.closed(a_usage_record("b"))
        assert not await site.shipper.flush(timeout_s=1.0)

    on_a_site(test)


def test_grounds_go_with_the_decisions_that_name_them() -> None:
    async def test(site: Site) -> None:
        ground = a_ground()
        event = replace(a_usage_event("a"), decision=a_decision(ground))
        site.journal.closed(a_record(event), ground)
        site.journal.closed(evidence("b"))
        await asyncio.sleep(COMMIT_S + 0.05)
        told = {m.subject: decode_batch(m.payload)
                for m in site.hub.streams[USAGE_STREAM].messages.values()}
        assert told["usage.sydney"] == ((ground,), [event])
        assert told["evidence.sydney"][0] == ()

    on_a_site(test)


def test_what_is_told_for_good_is_known_and_a_stall_is_remembered_for_a_while() -> None:
    async def test(site: Site) -> None:
        def ago_s() -> float:
            now = clock.wall_ns()
            return (now - site.shipper.told_before(now)) / 1e9

        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        clock = VirtualClock(loop)
        await asyncio.sleep(1_000)
        assert ago_s() == 10, "nothing waits"
        site.journal.closed(a_usage_record("a"))
        await asyncio.sleep(1_000)
        assert ago_s() == 10
        site.hub.down()
        site.journal.closed(a_usage_record("b"))
        await asyncio.sleep(30)
        assert 39 < ago_s() <= 40
        await asyncio.sleep(70)
        assert 699 < ago_s() <= 700, "a request may run for ten minutes"
        site.hub.up()
        await asyncio.sleep(30)
        assert site.requests() == ["a", "b"]
        assert 729 < ago_s() <= 730, "it may not be booked yet"
        await asyncio.sleep(100)
        assert ago_s() == 10

    on_a_site(test)


def test_a_clock_that_was_set_back_tells_nothing_that_is_not_told() -> None:
    async def test(site: Site) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await asyncio.sleep(1_000)
        site.hub.down()
        site.journal.closed(a_usage_record("b"))
        await asyncio.sleep(30)
        for hours in (0, 1):
            now = VirtualClock(loop).wall_ns() - hours * 3600 * 10**9
            assert 39 < (now - site.shipper.told_before(now)) / 1e9 <= 40

    on_a_site(test)
