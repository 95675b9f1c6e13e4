"""Watches one OpenAI-compatible upstream as if it were a replica: vLLM, SGLang, a partner cloud.

Nothing is started. Ready means that its list of models answers with our key. Load comes from its
metrics page where it has one; elsewhere it is unknown, and the list of models is asked now and then
to see whether the upstream is still there.
"""

import asyncio

from isochrone.adapters.credentials import read_credential
from isochrone.adapters.engines.counters import FAMILIES, LoadReader, family_of, read_series
from isochrone.adapters.http import HttpAnswer, request
from isochrone.core.errors import EngineUnavailable, Unavailable
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from isochrone.core.world.model import EngineSpec
from isochrone.ports.clock import Clock
from isochrone.ports.engine import EngineStart, EngineTraits

LOAD_TIMEOUT_S = 0.8
MODELS_TIMEOUT_S = 5.0
MODELS_EVERY_S = 15.0


class OpenAiEngine:
    """One upstream. Made by OpenAiDriver.start only."""

    def __init__(self, spec: EngineSpec, clock: Clock, reader: LoadReader | None) -> None:
        self._spec = spec
        self._clock = clock
        self._reader = reader
        self._listed_ns = clock.monotonic_ns()
        self._stopped = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return None

    @property
    def base_url(self) -> str:
        return self._spec.source.rstrip("/")

    @property
    def key(self) -> str | None:
        """None: gateways resolve the credential themselves when they use it."""
        return None

    @property
    def traits(self) -> EngineTraits:
        return EngineTraits() if self._reader is None else FAMILIES[self._reader.family].traits

    async def load(self) -> EngineLoad:
        if self._reader is not None:
            answer = await ask(self._spec, metrics_url(self._spec), timeout_s=LOAD_TIMEOUT_S)
            if answer.status != 200:
                raise EngineUnavailable(f"{self.base_url}: metrics answer {answer.status}")
            return self._reader.read(read_series(answer.body.decode("utf-8", "replace")))
        if self._clock.monotonic_ns() - self._listed_ns > MODELS_EVERY_S * 1e9:
            await list_models(self._spec)
            self._listed_ns = self._clock.monotonic_ns()
        return UNKNOWN_LOAD

    async def exited(self) -> str:
        await self._stopped.wait()
        return "stopped"

    async def stop(self, *, deadline_s: float) -> None:
        self._stopped.set()


class OpenAiDriver:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def start(self, start: EngineStart, *, deadline_s: float) -> OpenAiEngine:
        try:
            async with asyncio.timeout(deadline_s):
                await list_models(start.spec)
                reader = await find_reader(start.spec)
        except TimeoutError as error:
            raise EngineUnavailable(
                f"{start.spec.source} did not answer within {deadline_s:g} s"
            ) from error
        return OpenAiEngine(start.spec, self._clock, reader)

    async def revision(self, spec: EngineSpec) -> str | None:
        """Nobody states the weights of an upstream."""
        return None


async def ask(spec: EngineSpec, url: str, *, timeout_s: float) -> HttpAnswer:
    """GET with the upstream's key; raises EngineUnavailable when nobody answers."""
    try:
        key = read_credential(spec.credential)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return await request("GET", url, headers=headers, timeout_s=timeout_s)
    except Unavailable as error:
        raise EngineUnavailable(error.message) from error


async def list_models(spec: EngineSpec) -> None:
    """Raises EngineUnavailable unless `/models` answers with 200."""
    url = f"{spec.source.rstrip('/')}/models"
    answer = await ask(spec, url, timeout_s=MODELS_TIMEOUT_S)
    if answer.status in (401, 403):
        raise EngineUnavailable(f"{url} refuses the key ({answer.status}); check {spec.credential}")
    if answer.status != 200:
        raise EngineUnavailable(f"{url} answers {answer.status}, expected 200")


def metrics_url(spec: EngineSpec) -> str:
    """Engines serve their metrics beside /v1."""
    return f"{spec.source.rstrip('/').removesuffix('/v1')}/metrics"


async def find_reader(spec: EngineSpec) -> LoadReader | None:
    """A reader for the engine family whose series the upstream shows, None when it shows none."""
    try:
        answer = await ask(spec, metrics_url(spec), timeout_s=MODELS_TIMEOUT_S)
    except EngineUnavailable:
        return None
    if answer.status != 200:
        return None
    family = family_of(read_series(answer.body.decode("utf-8", "replace")))
    return None if family is None else LoadReader(family=family)
