"""Serves the metrics of a gateway on a port of their own, which customers must not reach.

`GET /metrics` there and nothing else; no key is asked for, so it listens on loopback unless the
operator says otherwise.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator

import structlog

from isochrone.gateway.exposition import (
    OPENMETRICS,
    OPENMETRICS_END,
    PLAIN,
    accepts_openmetrics,
    text_of,
)
from isochrone.gateway.gauges import Gauges
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.measured import Measured
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.pauses import Pauses
from isochrone.gateway.server import ClientConnection, Handler, Server
from isochrone.gateway.settings import GatewaySettings
from isochrone.ports.clock import Clock
from isochrone.ports.network import Listener, Network
from isochrone.ports.telemetry import Family

PATH = "/metrics"
TEXT = "text/plain; charset=utf-8"

Text = tuple[str, bytes]  # content type, and all metrics

log = structlog.get_logger()


class MetricsServer:
    """Call `open` once, `sweep` about once a second, and `close`. A scrape has a task of its own,
    apart from the gateway's: what cannot be shown must not end what it shows."""

    def __init__(
        self, settings: GatewaySettings, clock: Clock, *, measured: Measured, gauges: Gauges
    ) -> None:
        self._scrapes: set[asyncio.Task[Text]] = set()
        self._settings = settings
        self._measured = measured
        self._gauges = gauges
        self._pauses = Pauses(clock)
        self._server = Server(_Routes(self), settings, clock, Outbox(_nothing))
        self._listener: Listener | None = None

    @property
    def port(self) -> int:
        """Where it listens; 0 while it does not."""
        return 0 if self._listener is None else self._listener.port

    async def open(self, network: Network) -> None:
        """Listen. Raises OSError when the port is taken; each worker has its own."""
        settings = self._settings
        port = settings.metrics_port or 0
        self._listener = await network.listen(
            self._server.accept, settings.metrics_host, port + settings.worker if port else 0
        )
        self._pauses.start()

    def sweep(self) -> None:
        self._server.sweep()

    def render(self, openmetrics: bool, done: Callable[[asyncio.Task[Text]], None]) -> None:
        """Make the text of all metrics; `done` hears of it, however that ends."""
        task = asyncio.get_running_loop().create_task(_text(self.families(), openmetrics))
        self._scrapes.add(task)
        task.add_done_callback(self._scrapes.discard)
        task.add_done_callback(done)

    async def close(self) -> None:
        for scrape in self._scrapes:
            scrape.cancel()
        self._pauses.stop()
        if self._listener is not None:
            await self._listener.close()
        self._server.close()

    def families(self) -> Iterator[Family]:
        """Every metric, with the values that it has when it is its turn."""
        yield from self._measured.families()
        yield from self._gauges.families()
        yield from self._pauses.families()


def _nothing() -> None:
    """No record has to be written ahead of a scrape's answer."""


class _Routes:
    def __init__(self, metrics: MetricsServer) -> None:
        self._metrics = metrics

    def begin(self, connection: ClientConnection, incoming: Incoming) -> Handler | None:
        return _Scrape(self._metrics, connection, incoming)

    def fail(self, connection: ClientConnection, incoming: Incoming, fault: Fault) -> None:
        _answer(connection, incoming, f"{fault.status} Refused", TEXT, fault.message.encode())


class _Scrape:
    """One request on the port of the metrics."""

    def __init__(
        self, metrics: MetricsServer, connection: ClientConnection, incoming: Incoming
    ) -> None:
        self._metrics = metrics
        self._connection = connection
        self._incoming = incoming

    def serve(self) -> None:
        head = self._incoming.head
        if head.path != PATH:
            self._say("404 Not Found", f"Only {PATH} is served here.\n")
        elif head.method != b"GET":
            self._say("405 Method Not Allowed", f"Use GET {PATH}.\n")
        else:
            self._metrics.render(accepts_openmetrics(head.header("accept") or ""), self._tell)

    def _tell(self, rendered: asyncio.Task[Text]) -> None:
        if rendered.cancelled():
            return
        error = rendered.exception()
        if error is None:
            _answer(self._connection, self._incoming, "200 OK", *rendered.result())
        else:
            log.error("metrics_not_rendered", exc_info=error)
            self._say("500 Internal Server Error", "The log says why.\n")

    def fail(self, fault: Fault) -> None:
        self._say(f"{fault.status} Refused", f"{fault.message}\n")

    def _say(self, status: str, text: str) -> None:
        _answer(self._connection, self._incoming, status, TEXT, text.encode())


async def _text(families: Iterable[Family], openmetrics: bool) -> Text:
    """(content type, all metrics); between two of them requests have their turn."""
    pieces = []
    for family in families:
        pieces.append(text_of(family, openmetrics=openmetrics))
        await asyncio.sleep(0)
    if openmetrics:
        pieces.append(OPENMETRICS_END)
    return OPENMETRICS if openmetrics else PLAIN, "".join(pieces).encode()


def _answer(
    connection: ClientConnection, incoming: Incoming, status: str, content_type: str, body: bytes
) -> None:
    close = connection.will_close(incoming)
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
        f"{'connection: close' if close else 'connection: keep-alive'}\r\n\r\n"
    )
    connection.answer(head.encode("latin-1") + body, close=close)
