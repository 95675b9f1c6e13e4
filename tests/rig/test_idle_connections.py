"""Memory of a real gateway: what idle connections cost, and clients slower than their engines.

IDLE_CONNECTIONS=10000 opens so many; SLOW_SECONDS=30 reads for so long, STREAM_MB=100 so much.
"""

import os
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.rig.alone import MODEL, Alone, EngineThread, a_gateway, an_engine, config_text
from tests.rig.waiting import wait_until

CONNECTIONS = int(os.environ.get("IDLE_CONNECTIONS", "600"))
MOST_BYTES_EACH = 10_000  # so that ten thousand cost less than 100 MB

SLOW_CLIENTS = 10
SLOW_SECONDS = int(os.environ.get("SLOW_SECONDS", "2"))
STREAM_MB = int(os.environ.get("STREAM_MB", "30"))
MB = 1_000_000
EVENT_BYTES = 100_000
MOST_BYTES_SLOW = 1 * MB  # for one client that takes its stream slowly
MOST_BYTES_FAST = 4 * MB  # while a whole stream passes

pytestmark = pytest.mark.rig

BODY = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hi"}}]}}'.encode()
ASK = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: here\r\nauthorization: Bearer secret\r\n"
    b"x-number: %d\r\ncontent-length: %d\r\n\r\n%b"
)


@pytest.fixture(autouse=True)
def enough_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def used_bytes(gateway: Alone) -> int:
    """Memory that is the gateway's own, or its share of what it shares."""
    lines = Path(f"/proc/{gateway.pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:"))) * 1024


def connect(gateway: Alone) -> socket.socket:
    parts = urlsplit(gateway.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def ask(connection: socket.socket, number: int) -> None:
    """One whole request and its answer; every head is another one."""
    connection.sendall(ASK % (number, len(BODY), BODY))
    got = connection.recv(65_536)
    assert got.startswith(b"HTTP/1.1 200 "), got


def test_idle_connections_are_cheap(tmp_path: Path) -> None:
    """Half of them have had an answer."""
    with an_engine() as engine, a_gateway(tmp_path / "alone", config_text(engine.url)) as gateway:
        with ExitStack() as stack:
            for number in range(100):  # what is remembered of heads, prompts, keys is not counted
                first = connect(gateway)
                ask(first, number % 20)
                first.close()
            before = used_bytes(gateway)
            open_ones = [stack.enter_context(connect(gateway)) for _ in range(CONNECTIONS)]
            for number, connection in enumerate(open_ones[::2]):
                ask(connection, number % 20)
            each = (used_bytes(gateway) - before) / CONNECTIONS
            print(f"{CONNECTIONS} idle connections, {each:.0f} bytes each")
            ask(open_ones[-1], 0)
            assert each < MOST_BYTES_EACH
        assert not gateway.ended


# -- clients that are slower than their engines ----------------------------------------------------


class Memory:
    """What a gateway has resident, and the most that it had since this was made or `again`."""

    def __init__(self, gateway: Alone) -> None:
        self._folder = Path(f"/proc/{gateway.pid}")
        self.again()

    def again(self) -> None:
        (self._folder / "clear_refs").write_text("5")
        self.before_bytes = self._said("VmRSS")

    def grown_bytes(self) -> int:
        """By how much the peak lies above what was resident before."""
        return self._said("VmHWM") - self.before_bytes

    def _said(self, name: str) -> int:
        lines = (self._folder / "status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(name))) * 1024


def stream_from(gateway: Alone, number: int) -> socket.socket:
    """A client that has the head of a stream, and whose kernel takes little ahead of it."""
    parts = urlsplit(gateway.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect((parts.hostname, parts.port))
    body = BODY[:-1] + b',"stream":true}'
    connection.sendall(ASK % (number, len(body), body))
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(1)
    assert got.startswith(b"HTTP/1.1 200 "), got
    return connection


def stands_still(engine: EngineThread) -> bool:
    """Whether it has sent nothing more for a moment, since nobody takes it."""
    sent = engine.engine.sent_bytes
    time.sleep(0.3)
    return 0 < sent == engine.engine.sent_bytes


def of_megabytes(engine: EngineThread, megabytes: int) -> None:
    def change() -> None:
        engine.engine.chunks = megabytes * MB // EVENT_BYTES
        engine.engine.chunk_bytes = EVENT_BYTES
        engine.engine.sent_bytes = 0

    engine.call(change)


def test_clients_that_read_a_byte_a_second_keep_memory_flat(tmp_path: Path) -> None:
    """Each of a stream of 100 MB, from an engine that is as fast as it can be."""
    with an_engine() as engine, a_gateway(tmp_path / "g", config_text(engine.url)) as gateway:
        of_megabytes(engine, 100)
        with stream_from(gateway, 0):
            wait_until(lambda: stands_still(engine), "the engine is held back")
        memory = Memory(gateway)
        with ExitStack() as stack:
            slow = [
                stack.enter_context(stream_from(gateway, number)) for number in range(SLOW_CLIENTS)
            ]
            wait_until(lambda: stands_still(engine), "the engine is held back for all of them")
            grown = memory.grown_bytes()
            print(f"{grown / SLOW_CLIENTS / MB:.2f} MB for each of {SLOW_CLIENTS} slow clients")
            assert grown < SLOW_CLIENTS * MOST_BYTES_SLOW
            memory.again()
            for _ in range(SLOW_SECONDS):
                assert all(connection.recv(1) for connection in slow)
                time.sleep(1)
            print(f"{memory.grown_bytes() / MB:.2f} MB more in {SLOW_SECONDS} s of a byte a second")
            assert memory.grown_bytes() < MOST_BYTES_SLOW
            assert engine.engine.sent_bytes < (SLOW_CLIENTS + 1) * 50 * MB
            assert gateway.status("secret") == 200


def test_an_engine_that_is_faster_than_its_client_keeps_memory_flat(tmp_path: Path) -> None:
    """The client takes all of it, and the gateway never has more than a little of it."""
    with an_engine() as engine, a_gateway(tmp_path / "g", config_text(engine.url)) as gateway:
        of_megabytes(engine, 5)
        take_all(stream_from(gateway, 0))
        of_megabytes(engine, STREAM_MB)
        memory = Memory(gateway)
        taken = take_all(stream_from(gateway, 1))
        grown = memory.grown_bytes()
        print(f"{grown / MB:.2f} MB while {taken / MB:.0f} MB passed")
        assert taken > STREAM_MB * MB
        assert grown < MOST_BYTES_FAST
        wait_until(lambda: len(gateway.usage()) == 2, "both are written down")
        last = gateway.usage()[-1]
        assert (last["outcome"], last["output"]) == ("finished", STREAM_MB * MB // EVENT_BYTES)


def take_all(connection: socket.socket) -> int:
    """Read a stream to its end, a little at a time; how many bytes it had."""
    taken, end = 0, b""
    with connection:
        while not end.endswith(b"\r\n0\r\n\r\n"):
            piece = connection.recv(65_536)
            assert piece
            taken += len(piece)
            end = (end + piece)[-16:]
    return taken
