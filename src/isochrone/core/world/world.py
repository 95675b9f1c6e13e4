"""World: the cloud that an operator describes in a file - models, sites, what runs where, links."""

from dataclasses import dataclass

from isochrone.core.ids import ModelName, SiteName
from isochrone.core.world.model import Deployment, ModelKind
from isochrone.core.world.site import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldModel:
    """A model as the operator describes it. `file` is a path to a GGUF file or `bundled:NAME`,
    None for a model that only upstreams serve."""

    name: ModelName
    kind: ModelKind
    file: str | None
    revision: str | None
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSite:
    """A site before it has joined: what the operator states about it. An `EngineSpec.source` of
    kind llamacpp is the model's `file` as written. `elsewhere`: its processes run on another host,
    so nobody here starts them and no distance to it is emulated."""

    name: SiteName
    country: str | None
    operator: str | None
    parent: str | None
    latitude_deg: float
    longitude_deg: float
    hardware: tuple[Hardware, ...]
    deployments: tuple[Deployment, ...]
    elsewhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldLink:
    """A round trip that the operator states, for both directions, and the countries that the way
    passes (None: not stated)."""

    between: tuple[SiteName, SiteName]
    rtt_ms: float
    via: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`emulate_distance`: the sites share a machine, so peer hops add the round trips of `links`
    and of the packaged tables."""

    emulate_distance: bool
    models: tuple[WorldModel, ...]
    sites: tuple[WorldSite, ...]
    links: tuple[WorldLink, ...]
