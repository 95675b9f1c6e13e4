"""TCP connections of the name server: pieces, rows of queries, idlers, those who do not read."""

import asyncio
from typing import Any

import dns.message

from isochrone.dns.server import MOST_AT_ONCE, TcpConnection, TcpServer, source_of
from isochrone.twin import loop as virtual
from tests.fixtures.name_server import ZONE, a_service, an_address, example_file
from tests.fixtures.wires import Wire

IDLE_S = 10.0


class Peer(Wire):
    """One client's connection."""

    def __init__(self, server: TcpServer, address: str = "203.0.113.9") -> None:
        super().__init__()
        self.address = address
        protocol = server.accept()
        assert isinstance(protocol, TcpConnection)
        self.protocol = protocol
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.address, 40_000) if name == "peername" else default

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        if not self.closed:
            super().close()
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_read(self) -> bool:
        return self.reading

    def ended_by_server(self) -> bool:
        return self.closed

    @property
    def answers(self) -> int:
        return len(self.written)


def a_server(most: int = 4) -> TcpServer:
    return TcpServer(a_service(example_file()), max_connections=most, idle_timeout_s=IDLE_S)


def framed(name: str = ZONE, type_: str = "A") -> bytes:
    data = dns.message.make_query(name, type_).to_wire()
    return len(data).to_bytes(2, "big") + data


def test_a_query_may_come_byte_by_byte_and_in_rows() -> None:
    async def main() -> None:
        peer = Peer(a_server())
        for byte in framed():
            assert peer.answers == 0
            peer.protocol.data_received(bytes([byte]))
        assert peer.answers == 1
        peer.protocol.data_received(framed() * 3 + framed()[:5])
        assert peer.answers == 4
        peer.protocol.data_received(framed()[5:])
        assert peer.answers == 5
        for each in peer.written:
            assert int.from_bytes(each[:2], "big") == len(each) - 2
            assert dns.message.from_wire(each[2:]).answer

    virtual.run(main())


def test_a_long_row_is_answered_in_turns_and_in_order() -> None:
    async def main() -> None:
        peer = Peer(a_server())
        queries = [framed(f"{number}.{ZONE}") for number in range(5 * MOST_AT_ONCE)]
        peer.protocol.data_received(b"".join(queries))
        assert peer.answers == MOST_AT_ONCE
        await asyncio.sleep(1)
        names = [dns.message.from_wire(each[2:]).question[0].name for each in peer.written]
        assert [str(name).partition(".")[0] for name in names] == [
            str(number) for number in range(len(queries))
        ]

    virtual.run(main())


def test_who_does_not_take_answers_gets_no_more_until_he_does() -> None:
    async def main() -> None:
        peer = Peer(a_server())
        peer.protocol.pause_writing()
        assert not peer.is_read()
        peer.protocol.data_received(framed() * 3)
        assert peer.answers == 0
        peer.protocol.resume_writing()
        assert peer.is_read()
        assert peer.answers == 3

    virtual.run(main())


def test_idle_connections_end_and_begun_queries_do_not_keep_them() -> None:
    async def main() -> None:
        server = a_server()
        peer = Peer(server)
        for _ in range(3):
            await asyncio.sleep(IDLE_S - 1)
            peer.protocol.data_received(framed())
        assert not peer.ended_by_server()
        for byte in framed()[:8]:
            await asyncio.sleep(IDLE_S / 4)
            peer.protocol.data_received(bytes([byte]))
        assert peer.ended_by_server()
        assert server.connections == set()

    virtual.run(main())


def test_what_cannot_be_a_query_ends_the_connection() -> None:
    async def main() -> None:
        server = a_server()
        for data in (b"\xff\xff", b"\0\0", b"\0\5hello"):
            peer = Peer(server)
            peer.protocol.data_received(data)
            assert peer.closed, data
            assert peer.answers == 0

    virtual.run(main())


def test_connections_are_bounded() -> None:
    async def main() -> None:
        server = a_server(most=2)
        peers = [Peer(server) for _ in range(3)]
        assert [peer.closed for peer in peers] == [False, False, True]
        peers[0].close()
        await asyncio.sleep(0)
        assert not Peer(server).closed
        server.close()
        await asyncio.sleep(0)
        assert server.connections == set()

    virtual.run(main())


def test_no_network_keeps_the_others_out() -> None:
    async def main() -> None:
        server = a_server(most=4)
        greedy = [Peer(server, f"203.0.113.{number}") for number in range(4)]
        other = Peer(server, "198.51.100.7")
        assert [each.closed for each in (*greedy, other)] == [True, False, False, False, False]
        other.protocol.data_received(framed())
        assert other.answers == 1
        assert Peer(server, "203.0.113.9").closed, "its place was taken for good"
        assert not Peer(server, "198.51.100.8").closed
        assert Peer(server, "198.51.100.9").closed, "half of them are enough"
        await asyncio.sleep(0)
        assert len(server.connections) == 4

    virtual.run(main())


def test_sources_are_read_from_what_sockets_say() -> None:
    assert source_of("203.0.113.9") == an_address("203.0.113.9")
    assert source_of("::ffff:203.0.113.9") == an_address("203.0.113.9")
    assert source_of("fe80::1%eth0") == an_address("fe80::1")
