"""Faults of the bus in memory: the twin relies on each of them doing what it says."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from isochrone.core.errors import BusUnavailable
from isochrone.twin import loop as virtual
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeHub, matches
from isochrone.twin.loop import VirtualLoop


def in_hub(main: Callable[[FakeHub], Awaitable[None]], *, latency_ms: float = 0.0) -> None:
    async def go() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        await main(FakeHub(VirtualClock(loop), latency_ms=latency_ms))

    virtual.run(go())


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True), ("a.b", "a.c", False), ("a.*", "a.b", True),
        ("a.*", "a", False), ("a.*", "a.b.c", False), ("a.>", "a.b.c", True),
        ("a.>", "a", False), (">", "a", True), ("*.b", "a.b", True),
    ],
)
def test_patterns(pattern: str, subject: str, *, expected: bool) -> None:
    assert matches(pattern, subject) is expected


def test_a_lost_reply_means_stored() -> None:
    async def main(hub: FakeHub) -> None:
        bus = hub.bus()
        await bus.ensure_stream("S", ["s.*"], "book")
        bus.lose_next_reply()
        with pytest.raises(BusUnavailable):
            await bus.publish_durable("s.a", b"1", message_id="m", timeout_s=2.0)
        assert asyncio.get_running_loop().time() == 2.0
        await bus.publish_durable("s.a", b"1", message_id="m")
        assert len(await bus.pull("S", "book", most=5, wait_s=0)) == 1

    in_hub(main)


def test_a_connection_lost_on_the_way_back_means_stored() -> None:
    async def main(hub: FakeHub) -> None:
        bus = hub.bus()
        await bus.ensure_stream("S", ["s.*"], "book")
        asyncio.get_running_loop().call_later(0.015, hub.down)
        with pytest.raises(BusUnavailable):
            await bus.publish_durable("s.a", b"1", message_id="m")
        hub.up()
        assert len(await bus.pull("S", "book", most=5, wait_s=0)) == 1

    in_hub(main, latency_ms=10.0)


def test_doubled_deliveries_and_a_full_stream() -> None:
    async def main(hub: FakeHub) -> None:
        bus = hub.bus()
        await bus.ensure_stream("S", ["s.*"], "book")
        await bus.publish_durable("s.a", b"1", message_id="m1")
        bus.double_next_pull()
        twice = await bus.pull("S", "book", most=5, wait_s=0)
        assert [message.payload for message in twice] == [b"1", b"1"]
        hub.fill_stream("S")
        with pytest.raises(BusUnavailable, match="refused"):
            await bus.publish_durable("s.a", b"2", message_id="m2")
        hub.fill_stream("S", full=False)
        await bus.publish_durable("s.a", b"2", message_id="m2")

    in_hub(main)


def test_one_process_cut_off_keeps_its_view_and_catches_up() -> None:
    async def main(hub: FakeHub) -> None:
        control, gateway = hub.bus(), hub.bus()
        await control.ensure_bucket("view")
        await control.put("view", "a", b"1")
        seen: dict[str, bytes | None] = {}
        watch = await gateway.watch("view", "", lambda e: seen.update({e.key: e.value}))
        await watch.synced()
        gateway.down()
        cut_ns = watch.heard_ns
        await asyncio.sleep(10)
        await control.put("view", "b", b"2")
        await control.delete("view", "a")
        assert seen == {"a": b"1"}
        assert watch.heard_ns == cut_ns
        gateway.up()
        await asyncio.sleep(1)
        assert seen == {"a": None, "b": b"2"}
        assert watch.heard_ns > cut_ns

    in_hub(main, latency_ms=5.0)


def test_ids_are_forgotten_after_the_window() -> None:
    async def main(hub: FakeHub) -> None:
        bus = hub.bus()
        await bus.ensure_stream("S", ["s.*"], "book")
        await bus.publish_durable("s.a", b"1", message_id="m")
        await asyncio.sleep(121)
        await bus.publish_durable("s.a", b"1", message_id="m")
        assert len(await bus.pull("S", "book", most=5, wait_s=0)) == 2

    in_hub(main)
