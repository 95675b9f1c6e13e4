"""The faults of the fakes do what they say: cut ways, resets, lost and late messages, deaths."""

import asyncio

from isochrone.ports.network import Address
from isochrone.twin import loop as virtual
from isochrone.twin.clock import VirtualClock
from isochrone.twin.fakes.bus import FakeHub
from isochrone.twin.fakes.disk import MemoryDisk
from isochrone.twin.loop import VirtualLoop
from isochrone.twin.network import Wire


class End(asyncio.Protocol):
    """Notes what arrives, and when."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.got: list[tuple[float, bytes]] = []
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got.append((asyncio.get_running_loop().time(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def joined(wire: Wire) -> tuple[End, End]:
    """A connection of `one` to `other`."""
    far = End()
    listener = await wire.process("other").listen(lambda: far, "127.0.0.1", 0)
    address = Address(host="127.0.0.1", port=listener.port)
    return await wire.process("one").connect(End, address, timeout_s=1), far


def test_what_is_sent_over_a_cut_way_arrives_in_order_when_it_is_whole() -> None:
    async def main() -> None:
        wire = Wire(asyncio.get_running_loop())
        near, far = await joined(wire)
        wire.is_cut = lambda one, other: {one, other} == {"one", "other"}
        near.transport.write(b"a")
        await asyncio.sleep(1)
        near.transport.write(b"b")
        await asyncio.sleep(1)
        assert far.got == []
        wire.is_cut = lambda one, other: False
        wire.healed()
        assert [data for _, data in far.got] == [b"a", b"b"]

    virtual.run(main())


def test_nobody_connects_over_a_cut_way() -> None:
    async def main() -> None:
        wire = Wire(asyncio.get_running_loop())
        wire.is_cut = lambda one, other: True
        try:
            await joined(wire)
        except TimeoutError:
            return
        raise AssertionError("it connected")

    virtual.run(main())


def test_a_slow_way_keeps_the_order() -> None:
    async def main() -> None:
        wire = Wire(asyncio.get_running_loop())
        near, far = await joined(wire)
        late = iter((1.0, 0.0))
        wire.slow_s = lambda one, other: next(late)
        near.transport.write(b"a")
        near.transport.write(b"b")
        await asyncio.sleep(2)
        assert [data for _, data in far.got] == [b"a", b"b"]
        assert far.got[0][0] >= 1.0

    virtual.run(main())


def test_a_reset_breaks_both_ends() -> None:
    async def main() -> None:
        wire = Wire(asyncio.get_running_loop())
        near, far = await joined(wire)
        wire.reset("one")
        await asyncio.sleep(1)
        for end in (near, far):
            assert [type(error) for error in end.lost] == [ConnectionResetError]

    virtual.run(main())


def test_plain_messages_are_lost_doubled_and_late() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        hub = FakeHub(VirtualClock(loop))
        got: list[bytes] = []
        await hub.bus().subscribe("a", lambda _, payload: got.append(payload))
        fates = iter(([], [0.0, 0.0], [2.0], [1.0]))
        hub.copies = lambda: next(fates)
        speaker = hub.bus()
        for payload in (b"lost", b"twice", b"late", b"sooner"):
            await speaker.publish("a", payload)
        await asyncio.sleep(3)
        assert got == [b"twice", b"twice", b"sooner", b"late"]

    virtual.run(main())


def test_what_a_process_writes_after_its_death_reaches_nobody() -> None:
    disk = MemoryDisk()
    before = disk.mount()
    before.replace("kept", b"1")
    disk.process_died()
    before.replace("kept", b"2")
    before.create("new", reserve_bytes=10).append(b"x")
    before.delete("kept")
    assert disk.mount().names() == ["kept"]
    assert disk.mount().read("kept") == b"1"
