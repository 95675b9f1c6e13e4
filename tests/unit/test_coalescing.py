"""Streams that come faster than a client can tell are read less often, and never left unread."""

import asyncio
from collections.abc import Mapping
from typing import cast

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.gateway.coalescing import REST_S
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.upstream import UpstreamConnection, UpstreamPool
from isochrone.ports.network import Address
from isochrone.twin import loop as virtual

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"4\r\nwell\r\n"
END = b"0\r\n\r\n"


class Wire:
    """A transport that notes whether it is read; as uvloop's, it may be told nothing twice."""

    def __init__(self) -> None:
        self._read, self.turns, self.closed = True, 0, False

    def is_read(self) -> bool:
        return self._read

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        pass

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        assert self._read
        assert not self.closed
        self._read, self.turns = False, self.turns + 1

    def resume_reading(self) -> None:
        assert not self._read
        assert not self.closed
        self._read = True


class Reader:
    """Takes a stream that rests after each read of it."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self.connection, self.body, self.over = connection, b"", False

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        pass

    def received(self, data: bytes) -> None:
        self.body += data
        self.connection.rest()

    def ended(self) -> None:
        self.over = True

    def lost(self, why: str) -> None:
        raise AssertionError(why)


def opened() -> tuple[UpstreamConnection, Wire, UpstreamPool]:
    pool = UpstreamPool(SocketNetwork(), SystemClock(), Outbox(lambda: None))
    connection, wire = UpstreamConnection(pool, Address(host="engine", port=1)), Wire()
    connection.connection_made(cast(asyncio.Transport, wire))
    return connection, wire, pool


def asked(connection: UpstreamConnection) -> Reader:
    reader = Reader(connection)
    connection.send(b"", reader)
    return reader


async def rested() -> None:
    await asyncio.sleep(REST_S * 1.01)


def test_a_stream_that_rests_goes_on_by_itself() -> None:
    async def main() -> None:
        connection, wire, _ = opened()
        reader = asked(connection)
        for _ in range(3):
            connection.data_received(HEAD + EVENT if not reader.body else EVENT)
            assert not wire.is_read()
            await rested()
            assert wire.is_read()
        assert reader.body == b"well" * 3
        assert wire.turns == 3

    virtual.run(main())


def test_streams_that_rest_go_on_together_and_none_rests_longer_than_that() -> None:
    async def main() -> None:
        first, one, pool = opened()
        second, other = UpstreamConnection(pool, first.address), Wire()
        second.connection_made(cast(asyncio.Transport, other))
        asked(first), asked(second)
        first.data_received(HEAD + EVENT)
        await asyncio.sleep(REST_S / 2)
        second.data_received(HEAD + EVENT)
        assert not one.is_read()
        assert not other.is_read()
        await asyncio.sleep(REST_S * 0.51)
        assert one.is_read()
        assert other.is_read()

    virtual.run(main())


def test_a_client_that_is_slow_is_waited_for_however_its_stream_rests() -> None:
    async def main() -> None:
        connection, wire, _ = opened()
        asked(connection)
        connection.data_received(HEAD + EVENT)
        connection.set_reading(False)  # while it rests
        await rested()
        assert not wire.is_read()
        connection.set_reading(True)
        assert wire.is_read()
        connection.set_reading(False)
        connection.rest()              # while its client is waited for
        connection.set_reading(True)
        assert not wire.is_read()
        await rested()
        assert wire.is_read()

    virtual.run(main())


def test_the_next_answer_on_a_connection_need_not_wait_for_the_rest_of_the_last() -> None:
    async def main() -> None:
        connection, wire, pool = opened()
        reader = asked(connection)
        connection.data_received(HEAD + EVENT)
        await rested()
        connection.data_received(EVENT + END)
        assert reader.over
        assert wire.is_read()
        assert pool.idle(connection.address) is connection
        again = asked(connection)
        connection.data_received(HEAD + EVENT)  # rests anew before the others have gone on
        assert not wire.is_read()
        await rested()
        assert wire.is_read()
        assert not again.over

    virtual.run(main())


def test_a_stream_that_was_given_up_while_it_rested_is_left_alone() -> None:
    async def main() -> None:
        connection, wire, _ = opened()
        asked(connection)
        connection.data_received(HEAD + EVENT)
        connection.abort()
        await rested()
        assert not wire.is_read()

    virtual.run(main())
