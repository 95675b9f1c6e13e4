"""Takes everybody who waits at a listening socket, where the event loop would take one a round.

libuv, below uvloop, accepts one connection from a listening socket in each round of its loop. A
gateway that passes on a thousand streams has rounds of many milliseconds, and those who come
together, as they do when another gateway has gone, would wait a round for each that came before.
"""

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Final, cast

from isochrone.ports.network import Party

MOST_AT_ONCE: Final = 256  # in one round, so that those who are connected go on


class Accepting:
    """Makes the parties of one server. `make` is what its loop calls for each connection that it
    accepts itself; it accepts those that wait behind it. Where the loop has done so already, as
    asyncio's does, nobody is there."""

    def __init__(self, factory: Callable[[], Party]) -> None:
        self._factory = factory
        self._listening: list[socket.socket] = []
        self._waiting = select.poll()  # mostly nobody is, which it tells for less than an accept
        self._beginning: set[asyncio.Task[object]] = set()

    def follow(self, server: asyncio.Server) -> None:
        """The server listens from now on."""
        self._listening = [
            socket.fromfd(each.fileno(), each.family, each.type) for each in server.sockets
        ]
        for listening in self._listening:
            self._waiting.register(listening, select.POLLIN)

    def close(self) -> None:
        """With the server: a socket listens as long as anybody has it open."""
        for listening in self._listening:
            self._waiting.unregister(listening)
            listening.close()
        self._listening = []

    def make(self) -> Party:
        """The party of one connection."""
        if self._waiting.poll(0):
            for listening in self._listening:
                self._accept_all(listening)
        return self._factory()

    def _accept_all(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        factory = cast(Callable[[], asyncio.Protocol], self._factory)
        for _ in range(MOST_AT_ONCE):
            try:
                accepted, _ = listening.accept()
            except OSError:
                return  # nobody is left, or no more files may be open, which the loop sees to
            accepted.setblocking(False)
            task = loop.create_task(_begin(loop, factory, accepted))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)


async def _begin(
    loop: asyncio.AbstractEventLoop, factory: Callable[[], asyncio.Protocol],
    accepted: socket.socket,
) -> None:
    try:
        await loop.connect_accepted_socket(factory, accepted)
    except OSError:
        accepted.close()  # the other side has gone
