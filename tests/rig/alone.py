"""A gateway that runs alone as a real process, and an engine of this test to serve from."""

import asyncio
import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import openai

from tests.fixtures.scripted_engine import ScriptedEngine
from tests.rig.cloud import COMMAND, Reply, ask, environment
from tests.rig.waiting import wait_until

DEADLINE_S = 30.0
MODEL = "tiny-fable"


class EngineThread:
    """A scripted engine on a loop of its own, so that a test may block."""

    def __init__(self, engine: ScriptedEngine | None = None) -> None:
        self.engine = engine or ScriptedEngine()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.engine.start(), self._loop).result(DEADLINE_S)
        return self

    def stop(self) -> None:
        self.call(self.engine.kill)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def call(self, change: Callable[[], object]) -> None:
        """Run `change` on the engine's loop."""

        async def go() -> None:
            change()

        asyncio.run_coroutine_threadsafe(go(), self._loop).result(DEADLINE_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.engine.port}/v1"


@contextmanager
def an_engine() -> Iterator[EngineThread]:
    engine = EngineThread().start()
    try:
        yield engine
    finally:
        engine.stop()


def key_table(name: str, secret: str, **fields: str) -> str:
    """A [[key]] for a secret."""
    more = "".join(f'{field} = "{value}"\n' for field, value in fields.items())
    digest = sha256(secret.encode()).hexdigest()
    return f'\n[[key]]\nname = "{name}"\nsecret_sha256 = "{digest}"\n{more}'


def config_text(upstream: str, *, gateway: str = "", more: str = "") -> str:
    """A file with one site, one upstream, and the key `secret`."""
    return f"""
[gateway]
port = 0
{gateway}
[[model]]
name = "{MODEL}"
revision = "r1"
[[site]]
name = "here"
country = "DE"
[[site.upstream]]
url = "{upstream}"
{key_table("laptop", "secret")}{more}"""


class Alone:
    """One `isochrone gateway` with a file in a folder of its own."""

    def __init__(self, folder: Path, text: str, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.config = folder / "gateway.toml"
        self.output = folder / "output.jsonl"
        self.config.write_text(text)
        self._arguments = arguments
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, listening: int = 1) -> Self:
        """Start it and wait until so many processes of it listen."""
        before = len(self.logged("gateway_listening"))
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "gateway", "--config", str(self.config), *self._arguments],
                env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )
        wait_until(
            lambda: self.ended or len(self.logged("gateway_listening")) >= before + listening,
            "the gateway listens",
        )
        assert not self.ended, self.output.read_text()
        return self

    @property
    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it; returns its exit code."""
        assert self.process is not None
        if not self.ended:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Events of this name in the log; a line that is still being written is not there yet."""
        if not self.output.exists():
            return []
        lines = self.output.read_text().split("\n")[:-1]
        entries = [json.loads(line) for line in lines if line.startswith("{")]
        return [entry for entry in entries if entry.get("event") == event]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.logged('gateway_listening')[-1]['port']}/v1"

    def client(self, secret: str = "secret") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url, api_key=secret, max_retries=0, timeout=DEADLINE_S
        )

    def ask(self, secret: str) -> Reply:
        """One short request on a connection of its own."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello!"}]}
        return ask(self.url, "/chat/completions", secret, body)

    def chat(self, secret: str = "secret") -> str:
        """One short answer; returns the id of the request."""
        reply = self.ask(secret)
        assert reply.status == 200, reply.body
        return str(reply.headers["x-isochrone-request"])

    def status(self, secret: str) -> int:
        """Of one short request."""
        return self.ask(secret).status

    def usage(self, name: str = "usage.jsonl") -> list[dict[str, Any]]:
        """Whole lines of the usage file."""
        path = self.folder / name
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().split("\n")[:-1]]

    def usage_of(self, request: str) -> dict[str, Any]:
        """The one line of a request, once it is there."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            found[:] = [line for line in self.usage() if line["request_id"] == request]
            return bool(found)

        wait_until(written, f"usage of {request}")
        assert len(found) == 1
        return found[0]

    def usage_called(self, client_request: str) -> dict[str, Any]:
        """The one line of a request that its client called so, once it is there."""
        found: list[dict[str, Any]] = []

        def written() -> bool:
            found[:] = [
                line for line in self.usage() if line["client_request_id"] == client_request
            ]
            return bool(found)

        wait_until(written, f"usage of {client_request}")
        assert len(found) == 1
        return found[0]

    def edit(self, before: str, after: str) -> None:
        """Replace a part of the file, as an editor does."""
        text = self.config.read_text()
        assert before in text
        self.config.write_text(text.replace(before, after))


@contextmanager
def a_gateway(folder: Path, text: str, *arguments: str, listening: int = 1) -> Iterator[Alone]:
    """It runs while the block does; what a test left running is killed."""
    gateway = Alone(folder, text, *arguments)
    try:
        yield gateway.start(listening=listening)
    finally:
        if not gateway.ended:
            gateway.stop()
