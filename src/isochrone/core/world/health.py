"""Health: what a gateway says of the replicas and sites that it does not trust fully just now."""

from dataclasses import dataclass

from isochrone.core.ids import ModelName, ReplicaId, SiteName


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenReplica:
    """A replica that the gateway asks itself. `state` as `core/lifecycle/health.py` names it, `why`
    the last thing that was said against it."""

    id: ReplicaId
    model: ModelName
    generation: int
    state: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenSite:
    """Another site, of its models the worst."""

    site: SiteName
    state: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """Of one worker of a site's gateway: everything that is not healthy; the rest is. A later one
    replaces it, and so does silence."""

    site: SiteName
    worker: int
    replicas: tuple[SeenReplica, ...] = ()
    sites: tuple[SeenSite, ...] = ()
