"""Network: listening and connecting at protocol level; live on sockets, in memory for the twin.

Factories make parties, which need not derive from `asyncio.Protocol`: classes that are compiled
cannot. Transports behave as asyncio's do. Distance, emulated or
simulated, is a property of the connection that this port returns, so callers do not know of it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar


class Party(Protocol):
    """One end of a connection: what a transport calls, as it calls an `asyncio.Protocol`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...


class Sealing(Protocol):
    """A transport (its extra information `sealing`) that writes in two steps: what is sealed goes
    out with the next `send` or write. Sealing for many connections in a row and sending for all of
    them afterwards costs less than by turns, since either step is more code than a cache holds."""

    def is_closing(self) -> bool: ...

    def seal(self, data: bytes) -> None: ...

    def send(self) -> None: ...


P = TypeVar("P", bound=Party)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where to connect. `rtt_ms` > 0 asks the network to emulate that round trip on the way.

    With `tls` the certificate must be valid for `tls_name`, or for `host` where that is empty.
    `key` is equal for equal addresses, and quicker to look up.
    """

    host: str
    port: int
    tls: bool = False
    rtt_ms: float = 0.0
    tls_name: str = ""
    key: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        key = f"{self.host}:{self.port}:{self.tls}:{self.rtt_ms}:{self.tls_name}"
        object.__setattr__(self, "key", key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """PEM files of a server: its certificate chain, own certificate first, and the private key."""

    chain: Path
    key: Path


class Listener(Protocol):
    @property
    def port(self) -> int: ...

    async def close(self) -> None:
        """Stop accepting; connections that exist go on."""
        ...


class Network(Protocol):
    async def listen(
        self, factory: Callable[[], Party], host: str, port: int, *,
        tls: Certificate | None = None,
    ) -> Listener:
        """With `tls` every connection is TLS; when the files change, new connections get the new
        certificate, or the old one where the new cannot be used. Raises OSError when the port is
        taken, InvalidInput when the certificate cannot be used."""
        ...

    async def connect(
        self, factory: Callable[[], P], address: Address, *, timeout_s: float
    ) -> P:
        """Return the connected protocol. Raises OSError or TimeoutError."""
        ...


class WebServer(Protocol):
    """One application on one listening address."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port where it listens."""
        ...

    async def serve(self) -> None:
        """Until it is told to stop; what is being answered then has a second to end."""
        ...

    def stop(self) -> None: ...
