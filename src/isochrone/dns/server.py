"""Takes queries from sockets: datagrams one by one, TCP connections with several each."""

import asyncio
from collections import Counter
from ipaddress import IPv6Address, ip_address
from typing import Any, cast

from isochrone.core.steering.place import WIDTH_BITS, Family, Subnet
from isochrone.dns import codes
from isochrone.dns.query import Malformed, Query, parse_query
from isochrone.dns.rates import NETWORK_BITS, ResponseRates
from isochrone.dns.response import (
    MOST_TCP_BYTES,
    Response,
    encode_malformed,
    encode_response,
)
from isochrone.dns.zone import Answerer
from isochrone.ports.clock import Clock

MOST_QUERY_BYTES = 4096  # a query is a name and a few options
MOST_AT_ONCE = 16        # answers to one connection before others have their turn
EXPLANATIONS_PER_S = 5   # to one network; each looks at every site


def source_of(address: str) -> Subnet:
    """The address of who asks, as a subnet of one."""
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    family: Family = 4 if parsed.version == 4 else 6
    return Subnet(family=family, bits=int(parsed), length=WIDTH_BITS[family])


class Service:
    """Turns a message into its answer, whatever it came by. `counts` say what was done, by
    transport and outcome."""

    def __init__(
        self, answerer: Answerer, clock: Clock, *, responses_per_s: float, udp_bytes: int
    ) -> None:
        self.answerer = answerer
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._rates = ResponseRates(responses_per_s)
        self._explanations = ResponseRates(EXPLANATIONS_PER_S)
        self._udp_bytes = udp_bytes

    def over_udp(self, data: bytes, source: Subnet) -> bytes | None:
        """The answer to a datagram; None for no answer at all."""
        self.counts["udp"] += 1
        verdict = self._rates.judge(source, self._clock.monotonic_ns())
        if verdict == "drop":
            self.counts["dropped"] += 1
            return None
        query = parse_query(data)
        if not isinstance(query, Query):
            return self._malformed(query)
        most = codes.PLAIN_UDP_BYTES
        if query.edns is not None:
            most = max(most, min(query.edns.udp_bytes, self._udp_bytes))
        if verdict == "truncate":
            self.counts["truncated"] += 1
            return self._encode(query, Response(truncated=True), most)
        response = self.answerer.respond(query, source, over_tcp=False)
        return self._encode(query, response, most)

    def over_tcp(self, data: bytes, source: Subnet) -> bytes | None:
        """The answer to a message of a connection; None for no answer at all."""
        self.counts["tcp"] += 1
        query = parse_query(data)
        if not isinstance(query, Query):
            return self._malformed(query)

        def may_explain() -> bool:
            return self._explanations.judge(source, self._clock.monotonic_ns()) == "answer"

        response = self.answerer.respond(query, source, over_tcp=True, may_explain=may_explain)
        return self._encode(query, response, MOST_TCP_BYTES)

    def _malformed(self, query: Malformed | None) -> bytes | None:
        self.counts["malformed"] += 1
        return None if query is None else encode_malformed(query, self._udp_bytes)

    def _encode(self, query: Query, response: Response, most_bytes: int) -> bytes:
        self.counts[f"rcode_{response.rcode}"] += 1
        return encode_response(
            query, response, most_bytes=most_bytes, udp_bytes=self._udp_bytes
        )


class UdpServer(asyncio.DatagramProtocol):
    """Answers each datagram at once."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        answer = self._service.over_udp(data, source_of(addr[0]))
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    def error_received(self, exc: Exception) -> None:
        """Somebody did not want an answer of ours; he may ask again."""
        self._service.counts["unreachable"] += 1


class TcpServer:
    """The TCP connections of a name server, bounded in number and in idle time. Where there are as
    many as there may be, a network that has fewer takes the place of one that has most."""

    def __init__(self, service: Service, *, max_connections: int, idle_timeout_s: float) -> None:
        self.service = service
        self.connections: set[TcpConnection] = set()
        self._most = max_connections
        self._idle_timeout_s = idle_timeout_s
        self._admitted = 0

    def accept(self) -> asyncio.Protocol:
        return TcpConnection(self, self._idle_timeout_s)

    def admit(self, connection: "TcpConnection") -> bool:
        """Whether there is room for one more."""
        if len(self.connections) >= self._most:
            self.service.counts["too_many_connections"] += 1
            if not self._make_room(connection):
                return False
        self._admitted += 1
        connection.number = self._admitted
        self.connections.add(connection)
        return True

    def _make_room(self, connection: "TcpConnection") -> bool:
        """End the oldest connection of the network that has most, for one that has fewer even
        then: or one client could keep all others out."""
        held = Counter(each.network for each in self.connections)
        network, most = held.most_common(1)[0]
        if most <= held[connection.network] + 1:
            return False
        oldest = min(
            (each for each in self.connections if each.network == network),
            key=lambda each: each.number,
        )
        self.connections.discard(oldest)
        oldest.give_up()
        return True

    def close(self) -> None:
        """End all connections; what was answered is still sent."""
        for connection in list(self.connections):
            connection.end()


class TcpConnection(asyncio.Protocol):
    """Messages with two bytes of length before each, answered in their order.

    A connection ends when it is idle, when it sends what cannot be a query, and when it does not
    take its answers: then nothing more is read.
    """

    def __init__(self, server: TcpServer, idle_timeout_s: float) -> None:
        self._server = server
        self._idle_timeout_s = idle_timeout_s
        self._transport: asyncio.Transport | None = None
        self._source: Subnet | None = None
        self.network: Subnet | None = None
        self.number = 0  # of those that were admitted
        self._received = b""
        self._busy = False  # there is more to answer than one turn allows
        self._full = False  # the client does not take its answers
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        source = source_of(peer[0]) if peer else None
        self.network = None if source is None else source.within(NETWORK_BITS[source.family])
        if source is None or not self._server.admit(self):
            self._transport.abort()
            return
        self._source = source
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._source is None or self._transport is None or self._transport.is_closing():
            return
        self._received += data
        if not self._busy:
            self._answer()

    def _answer(self) -> None:
        """Answer what was received whole; a long row of queries in several turns."""
        if self._source is None or self._transport is None or self._transport.is_closing():
            return
        answered = 0
        while len(self._received) >= 2:
            if answered == MOST_AT_ONCE or self._full:
                self._be_busy(True)
                if not self._full:
                    asyncio.get_running_loop().call_soon(self._answer)
                return
            length = int.from_bytes(self._received[:2], "big")
            if length > MOST_QUERY_BYTES:
                self.end()
                return
            if len(self._received) < 2 + length:
                break
            message = self._received[2 : 2 + length]
            self._received = self._received[2 + length :]
            answer = self._server.service.over_tcp(message, self._source)
            if answer is None:
                self.end()
                return
            self._transport.write(len(answer).to_bytes(2, "big") + answer)
            answered += 1
            self._wait()
        self._be_busy(self._full)

    def _be_busy(self, busy: bool) -> None:
        """While there is more to answer than one turn allows, no more is read."""
        if busy != self._busy and self._transport is not None:
            self._busy = busy
            if busy:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._full = True
        self._be_busy(True)

    def resume_writing(self) -> None:
        self._full = False
        self._answer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def end(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _wait(self) -> None:
        """Start the idle time anew; what is only begun does not."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._idle_timeout_s, self.give_up)

    def give_up(self) -> None:
        """End it now; what was not taken is lost."""
        if self._transport is not None:
            self._transport.abort()
