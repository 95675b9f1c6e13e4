"""Digest: what a GPU site says about its load about once a second."""

from dataclasses import dataclass

from isochrone.core.ids import HostName, ModelName, SiteName
from isochrone.core.world.host import Host
from isochrone.core.world.model import COMMON_ENDPOINTS, Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentLoad:
    """Load of all ready replicas of one model at one site, summed.

    Rates are per replica, measured online: prompt tokens prefilled and output tokens decoded per
    second by one stream. Pending counts cover requests that are queued or running. `endpoints` are
    the APIs that at least one of them has. `arrived` is how many requests came a second lately,
    `spare` how many more than that could be taken until the next digest, below 0: fewer should
    come; both None where the engines' counters do not tell. `pushed`: of those that arrived, how
    many were nearer to another site, whose queue was long. `free`: how many of the replicas
    would begin to read another prompt at once, None where nobody says; `due_ms`: when the one that
    is soonest done has read what it was sent.
    """

    model: ModelName
    revision: str | None
    ready: int
    slots: int
    running: int
    waiting: int
    pending_prompt_tokens: int
    pending_output_tokens: int
    prefill_tok_s: float
    decode_tok_s: float
    endpoints: tuple[Endpoint, ...] = COMMON_ENDPOINTS
    arrived: float | None = None
    spare: float | None = None
    pushed: float = 0.0
    free: int | None = None
    due_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaLoad:
    """One replica in a digest: for status pages and reconciliation, not for routing.

    The token totals are the engine's own counters since it was ready, `kept_tokens` what its cache
    has room for, `held_tokens` what running requests take of it (None where it does not say).
    `silent_s`: for how long it has not answered its agent, which asks all the time; 0 while it
    does. `host` is one of the digest's; None where its agent does not know which.
    """

    id: str
    model: ModelName
    generation: int
    state: str
    pid: int | None
    running: int
    waiting: int
    restarts: int
    prompt_tokens_total: int | None
    cached_tokens_total: int | None
    output_tokens_total: int | None
    kept_tokens: int | None = None
    silent_s: float = 0.0
    held_tokens: int | None = None
    host: HostName | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    """A host in a digest: for status pages, not for routing. `replicas_wanted`: how many replicas
    its agent means to run there, as it last heard what is desired."""

    host: Host
    replicas_wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedRtt:
    """A round trip measured by the agent to a peer gateway (median of recent probes)."""

    peer: SiteName
    rtt_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDigest:
    """The digest of one site; a higher `sequence` of the same `epoch` replaces a lower one.

    `epoch` is drawn at the agent's start; `at` is its wall clock, for display only: receivers
    judge age by their own clock at arrival. `hosts` are those whose replicas the agent keeps, no
    name twice; agents of earlier releases tell none.
    """

    site: SiteName
    epoch: int
    sequence: int
    at: int
    loads: tuple[DeploymentLoad, ...]
    replicas: tuple[ReplicaLoad, ...] = ()
    probes: tuple[ProbedRtt, ...] = ()
    hosts: tuple[HostLoad, ...] = ()
