"""The engine driver in memory: its replicas are FakeEngineServers, started and crashed at will.

Faults: a replica crashes, falls silent, is too busy to say its load or cannot be killed, or the
next starts fail; `die` is its agent's death.
Starting takes `start_s` of the loop's time. Process numbers are invented, so that callers treat
these engines as processes.
"""

import asyncio
import itertools
from collections.abc import Iterator
from hashlib import sha256

from isochrone.core.errors import EngineUnavailable
from isochrone.core.ids import ReplicaId
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from isochrone.core.world.model import EngineSpec
from isochrone.ports.engine import EngineStart, EngineTraits
from isochrone.ports.network import Network
from isochrone.twin.fakes.engine_server import FakeEngineServer, FakeSpeed

FIRST_PID = 100_000
KILL_WAIT_S = 5.0


class FakeEngine:
    """One running replica. Made by FakeEngineDriver.start only."""

    def __init__(self, start: EngineStart, server: FakeEngineServer, pid: int) -> None:
        self.start = start
        self.server = server
        self.silent = False
        self.busy = False
        self.unkillable = False
        self._pid = pid
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._before = (0, 0.0, 0, 0.0)

    @property
    def pid(self) -> int | None:
        return self._pid

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/v1"

    @property
    def key(self) -> str | None:
        return self.server.key

    @property
    def traits(self) -> EngineTraits:
        return EngineTraits(running_counts="timings", usage_counts_one_choice=True)

    @property
    def running(self) -> bool:
        return not self._ended.done()

    async def load(self) -> EngineLoad:
        if self.silent or not self.running:
            raise EngineUnavailable(f"{self.start.replica} does not answer")
        if self.busy:
            return UNKNOWN_LOAD
        counters = self.server.counters
        now = (counters.prompt_tokens, counters.prompt_s, counters.output_tokens, counters.output_s)
        before, self._before = self._before, now
        return EngineLoad(
            running=self.server.running,
            waiting=self.server.waiting,
            prompt_tokens_total=counters.prompt_tokens,
            cached_tokens_total=counters.cached_tokens,
            output_tokens_total=counters.output_tokens,
            prefill_tok_s=_rate(now[0] - before[0], now[1] - before[1]),
            decode_tok_s=_rate(now[2] - before[2], now[3] - before[3]),
            running_output_tokens=self.server.decoding_tokens,
        )

    async def exited(self) -> str:
        return await asyncio.shield(self._ended)

    async def stop(self, *, deadline_s: float) -> None:
        if self.unkillable:
            await asyncio.sleep(deadline_s + KILL_WAIT_S)
            raise TimeoutError
        await self.end("stopped")

    async def end(self, reason: str) -> None:
        """Its process is gone."""
        if self.running:
            self._ended.set_result(reason)
            await self.server.crash()


class FakeEngineDriver:
    """Starts FakeEngines that listen on `network`; `engines` holds those that run."""

    def __init__(
        self, network: Network, *, speed: FakeSpeed | None = None, start_s: float = 0.2
    ) -> None:
        self._network = network
        self._speed = speed or FakeSpeed()
        self._start_s = start_s
        self._pids: Iterator[int] = itertools.count(FIRST_PID)
        self.engines: dict[ReplicaId, FakeEngine] = {}
        self.starts: list[EngineStart] = []
        self.all: list[FakeEngine] = []  # those that ended, too
        self.failing_starts = 0

    async def start(self, start: EngineStart, *, deadline_s: float) -> FakeEngine:
        self.starts.append(start)
        if self._start_s > deadline_s:
            await asyncio.sleep(deadline_s)
            raise EngineUnavailable(f"{start.replica}: not ready within {deadline_s:g} s")
        await asyncio.sleep(self._start_s)
        if self.failing_starts > 0:
            self.failing_starts -= 1
            raise EngineUnavailable(f"{start.replica} did not start: told to fail")
        secret = sha256(f"{start.replica} {start.generation}".encode()).hexdigest()
        server = FakeEngineServer(
            start.model, key=secret, slots=start.spec.slots, context_tokens=start.context_tokens,
            embeddings=start.spec.embeddings, speed=self._speed,
        )
        await server.listen(self._network)
        engine = FakeEngine(start, server, next(self._pids))
        self.engines[start.replica] = engine
        self.all.append(engine)
        return engine

    async def revision(self, spec: EngineSpec) -> str | None:
        """Stands for the weights: the hash of the source's name."""
        return sha256(spec.source.encode()).hexdigest() if spec.kind == "llamacpp" else None

    async def die(self) -> None:
        """Every engine's process gets the signal that its parent has died."""
        for engine in self.all:
            await engine.end("its agent died")

    async def crash(self, replica: ReplicaId) -> None:
        """Kill -9 of one replica's process."""
        await self.engines[replica].end("ended by signal SIGKILL")


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
