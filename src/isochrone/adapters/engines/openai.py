"""Watches one OpenAI-compatible upstream as if it were a replica: vLLM, SGLang, a partner cloud.

Nothing is started. Ready means that its list of models answers with our key, and of vLLM, which
refuses every other name, that ours is on it. Load comes from its metrics page where it has one;
elsewhere, and while that does not answer, it is unknown. The list of models is asked now and then
to see whether the upstream is still there.
"""

import asyncio

import msgspec

from isochrone.adapters.credentials import read_credential
from isochrone.adapters.engines.counters import FAMILIES, LoadReader, family_of, read_series
from isochrone.adapters.http import HttpAnswer, request
from isochrone.core.errors import EngineUnavailable, Unavailable
from isochrone.core.world.engine_load import UNKNOWN_LOAD, EngineLoad
from isochrone.core.world.model import EngineSpec
from isochrone.ports.clock import Clock
from isochrone.ports.engine import EngineStart, EngineTraits

LOAD_TIMEOUT_S = 0.8
BUSY_TIMEOUT_S = 2.0  # of the list of what has a metrics page; hung, it is silent soon
MODELS_TIMEOUT_S = 5.0
MODELS_EVERY_S = 15.0


class OpenAiEngine:
    """One upstream. Made by OpenAiDriver.start only."""

    def __init__(
        self, spec: EngineSpec, model: str, clock: Clock, reader: LoadReader | None
    ) -> None:
        self._spec = spec
        self._model = model
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
        reader, page = self._reader, None
        if reader is not None:
            page = await find_metrics(self._spec, timeout_s=LOAD_TIMEOUT_S)
        is_due = self._clock.monotonic_ns() - self._listed_ns > MODELS_EVERY_S * 1e9
        if is_due or (reader is not None and page is None):
            wait_s = MODELS_TIMEOUT_S if reader is None else BUSY_TIMEOUT_S
            check_served(await list_models(self._spec, timeout_s=wait_s), self._model, reader)
            self._listed_ns = self._clock.monotonic_ns()
        if reader is None or page is None:
            return UNKNOWN_LOAD
        return reader.read(read_series(page))

    async def exited(self) -> str:
        await self._stopped.wait()
        return "stopped"

    async def stop(self, *, deadline_s: float) -> None:
        self._stopped.set()


class OpenAiDriver:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def start(self, start: EngineStart, *, deadline_s: float) -> OpenAiEngine:
        model = start.spec.upstream_model or start.model
        try:
            async with asyncio.timeout(deadline_s):
                listed = await list_models(start.spec)
                reader = await find_reader(start.spec)
        except TimeoutError as error:
            raise EngineUnavailable(
                f"{start.spec.source} did not answer within {deadline_s:g} s"
            ) from error
        check_served(listed, model, reader)
        return OpenAiEngine(start.spec, model, self._clock, reader)

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


class Listed(msgspec.Struct, frozen=True):
    id: str


class Models(msgspec.Struct, frozen=True):
    """A list of models, as far as we read it."""

    data: tuple[Listed, ...] = ()


async def list_models(
    spec: EngineSpec, *, timeout_s: float = MODELS_TIMEOUT_S
) -> tuple[str, ...]:
    """The names on the list at `/models`, none where it cannot be read. Raises EngineUnavailable
    unless it answers with 200."""
    url = f"{spec.source.rstrip('/')}/models"
    answer = await ask(spec, url, timeout_s=timeout_s)
    if answer.status in (401, 403):
        raise EngineUnavailable(f"{url} refuses the key ({answer.status}); check {spec.credential}")
    if answer.status != 200:
        raise EngineUnavailable(f"{url} answers {answer.status}, expected 200")
    try:
        return tuple(each.id for each in msgspec.json.decode(answer.body, type=Models).data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()


def check_served(listed: tuple[str, ...], model: str, reader: LoadReader | None) -> None:
    """Raises EngineUnavailable where an engine that has no other names than those listed lists
    others: each request would be answered with 404, as if the client had asked for nonsense."""
    if reader is not None and reader.family == "vllm" and listed and model not in listed:
        raise EngineUnavailable(f"the upstream serves {', '.join(listed)[:200]}, not {model}")


def metrics_url(spec: EngineSpec) -> str:
    """Engines serve their metrics beside /v1."""
    return f"{spec.source.rstrip('/').removesuffix('/v1')}/metrics"


async def find_metrics(spec: EngineSpec, *, timeout_s: float) -> str | None:
    """The upstream's metrics page, None when it has none or does not answer with it."""
    try:
        answer = await ask(spec, metrics_url(spec), timeout_s=timeout_s)
    except EngineUnavailable:
        return None
    return answer.body.decode("utf-8", "replace") if answer.status == 200 else None


async def find_reader(spec: EngineSpec) -> LoadReader | None:
    """A reader for the engine family whose series the upstream shows, None when it shows none."""
    page = await find_metrics(spec, timeout_s=MODELS_TIMEOUT_S)
    family = None if page is None else family_of(read_series(page))
    return None if family is None else LoadReader(family=family)
