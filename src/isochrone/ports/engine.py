"""Engine: starting, watching and stopping one replica; live drivers are llamacpp and openai.

A driver owns the process of its replica: parent-death signal, own log file, killed after the
deadline of `stop`. Readiness means that the engine answers a real completion.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.engine_load import EngineLoad
from isochrone.core.world.model import COMMON_ENDPOINTS, Endpoint, EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStart:
    """What a driver needs to start one replica."""

    replica: ReplicaId
    site: SiteName
    model: ModelName
    generation: int
    spec: EngineSpec
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTraits:
    """What this engine has and how it states usage; see `Replica` for the meaning."""

    running_counts: Literal["timings", "usage"] | None = None
    usage_counts_one_choice: bool = False
    endpoints: tuple[Endpoint, ...] = COMMON_ENDPOINTS
    cache_salt: bool = False


class Engine(Protocol):
    """One started engine."""

    @property
    def pid(self) -> int | None: ...

    @property
    def base_url(self) -> str:
        """Ends in /v1, no trailing slash."""
        ...

    @property
    def key(self) -> str | None: ...

    @property
    def traits(self) -> EngineTraits: ...

    async def load(self) -> EngineLoad:
        """Raises EngineUnavailable."""
        ...

    async def exited(self) -> str:
        """Return when the engine has died, with a reason; never returns for an upstream."""
        ...

    async def stop(self, *, deadline_s: float) -> None:
        """Return when it is gone. Raises TimeoutError when it does not even end when killed."""
        ...


class EngineDriver(Protocol):
    async def start(self, start: EngineStart, *, deadline_s: float) -> Engine:
        """Return a ready engine. Raises EngineUnavailable with the last lines of its log."""
        ...

    async def revision(self, spec: EngineSpec) -> str | None:
        """Identity of the weights (sha256 of a GGUF), None where nobody states it."""
        ...
