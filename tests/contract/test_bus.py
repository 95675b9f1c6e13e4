"""The Bus port: one suite on a real nats-server (killed and restarted) and on the twin's memory."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Protocol

import pytest

from isochrone.adapters.nats.server import MAX_PAYLOAD_BYTES
from isochrone.core.errors import BusUnavailable, MessageTooLarge
from isochrone.ports.bus import Bus, Durable, Entry
from isochrone.twin import loop as virtual
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeHub
from isochrone.twin.loop import VirtualLoop
from tests.fixtures.nats import NatsServer

DEADLINE_S = 30.0
_NUMBERS = count()


class Place(Protocol):
    """What the suite needs besides the port: new logins and faults."""

    async def bus(self) -> Bus: ...

    def down(self) -> None: ...

    def up(self) -> None: ...

    async def lose_bucket(self, bucket: str) -> None: ...


class LivePlace:
    def __init__(self, server: NatsServer) -> None:
        self._server = server

    async def bus(self) -> Bus:
        return await self._server.bus()

    def down(self) -> None:
        self._server.kill()

    def up(self) -> None:
        self._server.start()

    async def lose_bucket(self, bucket: str) -> None:
        await self._server.request(f"STREAM.DELETE.KV_{bucket}")


class MemoryPlace:
    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._hub = FakeHub(VirtualClock(loop), latency_ms=0.4, redeliver_after_s=1.0)

    async def bus(self) -> Bus:
        return self._hub.bus()

    def down(self) -> None:
        self._hub.down()

    def up(self) -> None:
        self._hub.up()

    async def lose_bucket(self, bucket: str) -> None:
        self._hub.lose_bucket(bucket)


Main = Callable[[Place], Awaitable[None]]
Run = Callable[[Main], None]


@pytest.fixture(params=["nats", "memory"])
def run(request: pytest.FixtureRequest) -> Run:
    async def bounded(main: Main, place: Place) -> None:
        async with asyncio.timeout(2 * DEADLINE_S):
            await main(place)

    def live(main: Main) -> None:
        server: NatsServer = request.getfixturevalue("nats_server")
        asyncio.run(bounded(main, LivePlace(server)))

    def memory(main: Main) -> None:
        async def go() -> None:
            await bounded(main, MemoryPlace())

        virtual.run(go())

    return live if request.param == "nats" else memory


def fresh(kind: str) -> str:
    """A name that no other test uses."""
    return f"{kind}{next(_NUMBERS)}"


async def until(holds: Callable[[], bool], what: str) -> None:
    """Return once `holds()`; fails the test after the deadline."""
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + DEADLINE_S
    while not holds():
        assert loop.time() < ends_s, f"not within {DEADLINE_S} s: {what}"
        await asyncio.sleep(0.01)


async def persist(attempt: Callable[[], Awaitable[None]]) -> None:
    """Try until it succeeds, as callers of the port do."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await attempt()
            except BusUnavailable:
                await asyncio.sleep(0.02)


async def pull_all(bus: Bus, stream: str, wanted: int) -> list[Durable]:
    """Pull until that many have come."""
    got: list[Durable] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(got) < wanted:
            try:
                got += await bus.pull(stream, "book", most=wanted, wait_s=0.5)
            except BusUnavailable:
                await asyncio.sleep(0.02)
    return got


async def close(*buses: Bus) -> None:
    for bus in buses:
        await bus.close()
        assert not bus.connected


class Mirror:
    """What a watch has told so far."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.told: list[Entry] = []

    def on_entry(self, entry: Entry) -> None:
        self.told.append(entry)
        if entry.value is None:
            del self.values[entry.key]
        else:
            self.values[entry.key] = entry.value


def test_messages_reach_matching_subscriptions_in_order(run: Run) -> None:
    async def main(place: Place) -> None:
        one, other = await place.bus(), await place.bus()
        root = fresh("d")
        heard: list[tuple[str, bytes]] = []
        subscription = await other.subscribe(f"{root}.*", lambda *what: heard.append(what))
        for number in range(50):
            await one.publish(f"{root}.a", b"%d" % number)
            await one.publish(f"{root}.a.deeper", b"")
        await until(lambda: len(heard) == 50, "all messages")
        assert heard == [(f"{root}.a", b"%d" % number) for number in range(50)]
        await subscription.close()
        last: list[bytes] = []
        await other.subscribe(f"{root}.a", lambda _, payload: last.append(payload))
        await one.publish(f"{root}.a", b"end")
        await until(lambda: last == [b"end"], "the message after closing the first")
        assert len(heard) == 50
        await close(one, other)

    run(main)


def test_plain_messages_are_dropped_while_away_and_subscriptions_survive(run: Run) -> None:
    async def main(place: Place) -> None:
        one, other = await place.bus(), await place.bus()
        subject = f"{fresh('d')}.a"
        heard: list[bytes] = []
        await other.subscribe(subject, lambda _, payload: heard.append(payload))
        place.down()
        await until(lambda: not one.connected and not other.connected, "the loss is noticed")
        await one.publish(subject, b"lost")
        place.up()
        await until(lambda: one.connected and other.connected, "both are back")
        await one.publish(subject, b"new")
        await until(lambda: bool(heard), "the message after the restart")
        assert heard == [b"new"]
        await close(one, other)

    run(main)


def test_durable_messages_are_stored_once_and_leave_when_acknowledged(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        stream = fresh("S")
        for _ in range(2):  # making it twice is no error
            await bus.ensure_stream(stream, [f"{stream}.*"], "book")
        for number in (1, 2, 2, 1, 3):
            await bus.publish_durable(f"{stream}.a", b"%d" % number, message_id=f"m{number}")
        first = await bus.pull(stream, "book", most=2, wait_s=5)
        assert [(m.subject, m.message_id, m.payload, m.delivered) for m in first] == [
            (f"{stream}.a", "m1", b"1", 1), (f"{stream}.a", "m2", b"2", 1),
        ]
        await bus.ack(first)
        rest = await bus.pull(stream, "book", most=10, wait_s=5)
        assert [message.payload for message in rest] == [b"3"]
        await bus.ack(rest)
        await bus.ack([])
        await bus.publish_durable(f"{stream}.a", b"1", message_id="m1")
        assert list(await bus.pull(stream, "book", most=10, wait_s=0)) == []
        assert list(await bus.pull(stream, "book", most=10, wait_s=0.2)) == []
        await close(bus)

    run(main)


def test_what_is_not_acknowledged_comes_again(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        stream = fresh("S")
        await bus.ensure_stream(stream, [f"{stream}.a"], "book")
        for number in range(3):
            await bus.publish_durable(f"{stream}.a", b"%d" % number, message_id=f"m{number}")
        taken = await pull_all(bus, stream, 3)
        await bus.ack([taken[1]])
        again = await pull_all(bus, stream, 2)
        assert sorted(message.payload for message in again) == [b"0", b"2"]
        assert {message.delivered for message in again} == {2}
        await bus.ack(again)
        await close(bus)

    run(main)


def test_a_waiting_pull_gets_the_message_that_comes(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        stream = fresh("S")
        await bus.ensure_stream(stream, [f"{stream}.a"], "book")
        got: list[Sequence[Durable]] = []

        async def pull() -> None:
            got.append(await bus.pull(stream, "book", most=5, wait_s=DEADLINE_S))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pull())
            await asyncio.sleep(0.05)
            await bus.publish_durable(f"{stream}.a", b"x", message_id="m")
        assert [message.payload for message in got[0]] == [b"x"]
        await close(bus)

    run(main)


def test_no_durable_message_is_lost_or_doubled_by_a_restart(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        stream = fresh("S")
        await bus.ensure_stream(stream, [f"{stream}.*"], "book")
        stored: list[int] = []

        async def publish(worker: int) -> None:
            for number in range(worker, 60, 4):
                await persist(
                    lambda payload=b"%d" % number: bus.publish_durable(  # type: ignore[misc]
                        f"{stream}.a", payload, message_id=f"m-{payload!r}", timeout_s=1.0
                    )
                )
                stored.append(number)

        async with asyncio.TaskGroup() as tasks:
            for worker in range(4):
                tasks.create_task(publish(worker))
            await until(lambda: len(stored) >= 8, "publishing has begun")
            place.down()
            await asyncio.sleep(0.1)
            place.up()
        got = await pull_all(bus, stream, 60)
        assert sorted(int(message.payload) for message in got) == list(range(60))
        await persist(lambda: bus.ack(got))
        assert list(await bus.pull(stream, "book", most=10, wait_s=0)) == []
        await close(bus)

    run(main)


def test_watch_lists_then_follows(run: Run) -> None:
    async def main(place: Place) -> None:
        control, gateway = await place.bus(), await place.bus()
        bucket = fresh("b")
        for _ in range(2):
            await control.ensure_bucket(bucket)
        await control.put(bucket, "site.a", b"1")
        await control.put(bucket, "site.b", b"1")
        await control.put(bucket, "site.b", b"2")
        await control.put(bucket, "gone", b"1")
        await control.delete(bucket, "gone")
        mirror = Mirror()
        watch = await gateway.watch(bucket, "", mirror.on_entry)
        await watch.synced()
        assert mirror.values == {"site.a": b"1", "site.b": b"2"}
        assert len(mirror.told) == 2
        heard_ns = watch.heard_ns
        await control.put(bucket, "site.c", b"3")
        await control.delete(bucket, "site.a")
        await until(lambda: mirror.values == {"site.b": b"2", "site.c": b"3"}, "the changes")
        assert mirror.told[-1].revision > mirror.told[-2].revision > mirror.told[0].revision
        assert watch.heard_ns > heard_ns > 0
        assert list(await gateway.keys(bucket)) == ["site.b", "site.c"]
        await watch.close()
        await close(control, gateway)

    run(main)


def test_watch_follows_only_its_prefix(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        bucket = fresh("b")
        await bus.ensure_bucket(bucket)
        for key in ("replica", "replica.x", "replicas", "desired"):
            await bus.put(bucket, key, b"1")
        mirror = Mirror()
        await (await bus.watch(bucket, "replica", mirror.on_entry)).synced()
        assert set(mirror.values) == {"replica", "replica.x"}
        await bus.put(bucket, "desired", b"2")
        await bus.put(bucket, "replica.y", b"2")
        await until(lambda: "replica.y" in mirror.values, "the new key")
        assert set(mirror.values) == {"replica", "replica.x", "replica.y"}
        await close(bus)

    run(main)


def test_watch_of_an_empty_or_missing_bucket(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        empty, missing = fresh("b"), fresh("b")
        await bus.ensure_bucket(empty)
        await (await bus.watch(empty, "", Mirror().on_entry)).synced()
        mirror = Mirror()
        watch = await bus.watch(missing, "", mirror.on_entry)
        await asyncio.sleep(0.1)
        assert watch.heard_ns == 0
        await bus.ensure_bucket(missing)
        await bus.put(missing, "key", b"1")
        await until(lambda: mirror.values == {"key": b"1"}, "the bucket is found")
        await close(bus)

    run(main)


def test_watch_lists_again_after_a_restart(run: Run) -> None:
    async def main(place: Place) -> None:
        control, gateway = await place.bus(), await place.bus()
        bucket = fresh("b")
        await control.ensure_bucket(bucket)
        await control.put(bucket, "a", b"1")
        await control.put(bucket, "b", b"1")
        mirror = Mirror()
        watch = await gateway.watch(bucket, "", mirror.on_entry)
        await watch.synced()
        for number in range(2):
            place.down()
            await until(lambda: not gateway.connected, "the loss is noticed")
            assert mirror.values == {"a": b"1", "b": b"1"}  # the last good view stays
            place.up()
            await persist(lambda: control.put(bucket, "c", b"1"))
            await until(lambda: "c" in mirror.values, "the change after the restart")
            await persist(lambda: control.delete(bucket, "c"))
            await until(lambda: "c" not in mirror.values, f"the deletion in round {number}")
        await close(control, gateway)

    run(main)


def test_watch_finds_a_bucket_that_was_made_again(run: Run) -> None:
    async def main(place: Place) -> None:
        control, gateway = await place.bus(), await place.bus()
        bucket = fresh("b")
        await control.ensure_bucket(bucket)
        for key in ("a", "b", "c"):
            await control.put(bucket, key, b"old")
        mirror = Mirror()
        await (await gateway.watch(bucket, "", mirror.on_entry)).synced()
        await place.lose_bucket(bucket)
        with pytest.raises(BusUnavailable):
            await control.put(bucket, "a", b"new")
        await control.ensure_bucket(bucket)
        await control.put(bucket, "b", b"new")
        await until(lambda: mirror.values == {"b": b"new"}, "stale keys are swept")
        await close(control, gateway)

    run(main)


def test_unavailable_is_said_in_time(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        stream = fresh("S")
        for attempt in (
            bus.put(fresh("b"), "key", b""),
            bus.publish_durable(fresh("nowhere"), b"", message_id="m", timeout_s=20.0),
            bus.pull(fresh("S"), "book", most=1, wait_s=20.0),
        ):
            with pytest.raises(BusUnavailable):  # at once: nobody takes it
                async with asyncio.timeout(10):
                    await attempt
        await bus.ensure_stream(stream, [f"{stream}.a"], "book")
        place.down()
        await until(lambda: not bus.connected, "the loss is noticed")
        try:
            with pytest.raises(BusUnavailable):
                await bus.publish_durable(f"{stream}.a", b"", message_id="m", timeout_s=0.2)
            with pytest.raises(BusUnavailable):
                await bus.pull(stream, "book", most=1, wait_s=0)
        finally:
            place.up()
        await until(lambda: bus.connected, "it is back")
        await bus.publish_durable(f"{stream}.a", b"", message_id="m", timeout_s=DEADLINE_S)
        await close(bus)

    run(main)


def test_what_is_too_long_is_said_and_keeps_nothing_else_back(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        bucket = fresh("b")
        await bus.ensure_bucket(bucket)
        with pytest.raises(MessageTooLarge):
            await bus.put(bucket, "long", b"x" * (MAX_PAYLOAD_BYTES + 1))
        stream = fresh("S")
        await bus.ensure_stream(stream, [f"{stream}.>"], "book")
        with pytest.raises(MessageTooLarge):
            await bus.publish_durable(
                f"{stream}.a", b"x" * (MAX_PAYLOAD_BYTES + 1), message_id="m"
            )
        await bus.publish_durable(f"{stream}.a", b"1", message_id="m")
        (stored,) = await bus.pull(stream, "book", most=2, wait_s=0)
        assert stored.payload == b"1"
        heard: list[bytes] = []
        await bus.subscribe("long", lambda _, payload: heard.append(payload))
        await bus.publish("long", b"x" * (MAX_PAYLOAD_BYTES + 1))
        await bus.publish("long", b"2")
        await until(lambda: bool(heard), "what is short comes")
        assert heard == [b"2"]
        await bus.put(bucket, "short", b"1")
        assert list(await bus.keys(bucket)) == ["short"]
        await close(bus)

    run(main)


def test_a_call_waits_for_a_connection_that_returns_in_time(run: Run) -> None:
    async def main(place: Place) -> None:
        bus = await place.bus()
        bucket = fresh("b")
        await bus.ensure_bucket(bucket)
        place.down()
        await until(lambda: not bus.connected, "the loss is noticed")
        async with asyncio.TaskGroup() as tasks:
            put = tasks.create_task(bus.put(bucket, "key", b"1"))
            await asyncio.sleep(0.05)
            assert not put.done()
            place.up()
        assert list(await bus.keys(bucket)) == ["key"]
        await close(bus)

    run(main)
