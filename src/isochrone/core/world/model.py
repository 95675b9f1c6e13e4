"""Model, deployment and replica: what is served, where it should run, and what runs."""

from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.site_policy import SitePolicy

ModelKind = Literal["chat", "embedding"]
EngineKind = Literal["llamacpp", "openai"]
ReplicaState = Literal["starting", "ready", "draining", "failed", "stopped"]
Endpoint = Literal["chat.completions", "completions", "embeddings", "responses", "messages"]

# What every engine that speaks OpenAI's protocol has; the others it must declare.
COMMON_ENDPOINTS: tuple[Endpoint, ...] = ("chat.completions", "completions", "embeddings")
ALL_ENDPOINTS: tuple[Endpoint, ...] = (*COMMON_ENDPOINTS, "responses", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that customers may name. `revision` identifies the weights (sha256 of the file, or
    what the operator of an upstream states); None means unknown. `context_tokens` bounds one
    request (prompt and answer together)."""

    name: ModelName
    kind: ModelKind
    revision: str | None
    context_tokens: int
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """How to run, or reach, one replica. `slots_stated`: `slots` is what it takes at once, and not
    a guess by which nobody may be held back.

    llamacpp: `source` is a path to a GGUF file; `threads` and `slots` as llama.cpp means them.
    `shares_cache`: all who are served by it may know of one another's prompts, so it keeps them
    beside its slots, too, and uses them for whoever asks.
    openai: `source` is the upstream's base URL ending in /v1, `upstream_model` the name it knows,
    and `credential` says where its key is: `file:PATH`, `env:NAME` or None.
    """

    kind: EngineKind
    source: str
    upstream_model: str | None = None
    credential: str | None = None
    slots: int = 4
    threads: int = 1
    embeddings: bool = False
    slots_stated: bool = True
    shares_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """The wish that `replicas` replicas of `model` run at `site` with this engine. `admission`: how
    classes share its slots; None is as usual.

    `restart_up_to`, by index: a replica of a generation up to this was asked to restart; those
    beyond its end were not. `stopped_replicas`: how many ran before an operator stopped the site,
    None while it is not stopped; `at_once`: what is not wanted ends in the middle of its work.
    """

    site: SiteName
    model: ModelName
    replicas: int
    engine: EngineSpec
    context_tokens: int
    admission: SitePolicy | None = None
    restart_up_to: tuple[int, ...] = ()
    stopped_replicas: int | None = None
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """Everything that a site's agent is asked to run; `serial` grows with every change."""

    site: SiteName
    serial: int
    deployments: tuple[Deployment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A running (or starting, or failed) engine as the agent reports it to the site's gateway.

    `base_url` has no trailing slash and ends in /v1. `engine_key` is the engine's own random key;
    for an upstream it is None and `credential` is resolved by the gateway. `generation` grows with
    every start of the same replica, so that a stale report can never shadow a newer one.
    `running_counts`: the engine can report counts in every event (`timings` or `usage`).
    `usage_counts_one_choice`: its final usage covers one choice only when n > 1. `endpoints`: the
    APIs that its engine has. `cache_salt`: it keeps prompts apart by a field of this name.
    `slots_stated` and `shares_cache` as in its `EngineSpec`.
    """

    id: ReplicaId
    site: SiteName
    model: ModelName
    revision: str | None
    generation: int
    state: ReplicaState
    engine: EngineKind
    base_url: str
    engine_key: str | None
    credential: str | None
    upstream_model: str
    slots: int
    pid: int | None
    started_at: int
    restarts: int = 0
    running_counts: Literal["timings", "usage"] | None = None
    usage_counts_one_choice: bool = False
    detail: str | None = None
    endpoints: tuple[Endpoint, ...] = COMMON_ENDPOINTS
    cache_salt: bool = False
    slots_stated: bool = True
    shares_cache: bool = False
