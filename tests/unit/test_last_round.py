"""What was answered in the very round of the loop in which its connection is closed is not lost."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isochrone.adapters.clock import SystemClock
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.server import ClientConnection, Server
from isochrone.gateway.settings import GatewaySettings
from tests.fixtures.wires import Wire
from tests.unit.test_slow_clients import GET, App

SETTINGS = GatewaySettings(identity=Path("i"), port=0, journal=Path("j"))


class Closing(Wire):
    """Takes nothing more once it is closed, as a transport does."""

    def write(self, data: Any) -> None:
        assert not self.closed
        super().write(data)


def stopped(server: Server, connection: ClientConnection, wire: Wire) -> None:
    server.drain()


def left(server: Server, connection: ClientConnection, wire: Wire) -> None:
    """The client sends nothing more: its loop closes what nobody wants to keep."""
    if not connection.eof_received():
        wire.close()


@pytest.mark.parametrize("end", [stopped, left])
def test_it_goes_out(end: Callable[[Server, ClientConnection, Wire], None]) -> None:
    async def main() -> None:
        server, wire = Server(App(), SETTINGS, SystemClock(), Outbox(lambda: None)), Closing()
        connection = server.accept()
        connection.connection_made(wire)
        connection.data_received(GET)
        assert not wire.written
        end(server, connection, wire)
        await asyncio.sleep(0)
        assert wire.written == [b"x" * 100]
        assert wire.closed

    asyncio.run(main())
