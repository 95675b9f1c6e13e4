"""Tells of clients that are gone although nothing is read from their connections.

Nothing is read behind the end of a client's half of its connection, nor while it has sent too much
ahead, so the event loop does not hear that such a client resets it. The kernel says so here.
"""

import asyncio
import contextlib
import select
import sys
from collections.abc import Callable


class Hangups:
    """The watched connections of one server; made of epoll where there is one."""

    __slots__ = ("_epoll", "_loop", "_told")

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told: dict[int, Callable[[bool], None]] = {}

    def watch(
        self, transport: asyncio.Transport, told: Callable[[bool], None], *, its_end: bool
    ) -> int:
        """Call `told(True)` when the connection is closed both ways; with `its_end` also
        `told(False)`, once, when the client ends its half. Returns what `forget` takes, -1 where
        there is nothing to watch with."""
        socket = transport.get_extra_info("socket")
        if socket is None or sys.platform != "linux":
            return -1
        number: int = socket.fileno()
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._epoll.fileno(), self._poll)
        events = select.EPOLLRDHUP if its_end else 0  # errors and hang-ups are always told
        try:
            self._epoll.register(number, events)
        except FileExistsError:
            self._epoll.modify(number, events)
        self._told[number] = told
        return number

    def forget(self, number: int, told: Callable[[bool], None]) -> None:
        """Watch this connection no longer."""
        if self._told.get(number) != told:
            return
        del self._told[number]
        if self._epoll is not None:
            with contextlib.suppress(OSError):  # the transport has closed it already
                self._epoll.unregister(number)

    def close(self) -> None:
        """Watch nothing any more."""
        self._told.clear()
        if self._epoll is not None and self._loop is not None:
            remove: Callable[[int], object] = self._loop.remove_reader  # uvloop's may give None
            remove(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _poll(self) -> None:
        assert self._epoll is not None, "called by what it is registered with"
        for number, events in self._epoll.poll(0):
            told = self._told.get(number)
            if told is None:
                continue
            gone = bool(events & (select.EPOLLHUP | select.EPOLLERR))
            if gone:
                self.forget(number, told)
            else:
                self._epoll.modify(number, 0)
            told(gone)
