"""What all exchanges of one gateway share: ports, knowledge and limits."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.ids import RANDOM_BITS, RequestId, SiteName, uuid7_begin, uuid7_of
from isochrone.core.rng import Random
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.prefix import Prefixes
from isochrone.core.routing.sessions import Sessions
from isochrone.core.world.tenant import Class
from isochrone.gateway.detail import Detail
from isochrone.gateway.entitled import Entitled
from isochrone.gateway.journal import Journal
from isochrone.gateway.known_endpoints import KnownEndpoints
from isochrone.gateway.limits import KeyLimits
from isochrone.gateway.measured import Measured
from isochrone.gateway.narrowing import Narrowings
from isochrone.gateway.outbox import Outbox
from isochrone.gateway.outcomes import Outcomes
from isochrone.gateway.paying import Paying
from isochrone.gateway.peer_hop import PeerHops
from isochrone.gateway.request_log import RequestLog
from isochrone.gateway.salts import Salts
from isochrone.gateway.settings import GatewaySettings
from isochrone.gateway.shared_limits import SharedLimits
from isochrone.gateway.site_queues import SiteQueues
from isochrone.gateway.skew import Skew
from isochrone.gateway.spans import Spans
from isochrone.gateway.target import Targets, where_lines
from isochrone.gateway.tenant_slots import TenantSlots
from isochrone.gateway.timeouts import Deadlines
from isochrone.gateway.upstream import UpstreamPool
from isochrone.gateway.view_cache import ViewCache
from isochrone.ports.clock import Clock

if TYPE_CHECKING:
    from isochrone.gateway.forward import Exchange

HEARING_NS = 3_000_000_000  # sites that say nothing for so long are away


@dataclass(slots=True, kw_only=True)
class Context:
    """`spawn` starts a task that lives as long as the gateway. `exchanges` are open requests;
    `spans` is None when nobody traces."""

    settings: GatewaySettings
    site: SiteName
    joined_country: str | None
    clock: Clock
    rng: Random
    view: ViewCache
    loads: Loads
    limits: KeyLimits
    retries: RetryBudget
    deadlines: Mapping[Class, Deadlines]
    salts: Salts
    endpoints: KnownEndpoints
    pool: UpstreamPool
    targets: Targets
    peers: PeerHops
    skew: Skew
    journal: Journal
    detail: Detail
    log: RequestLog
    metrics: Measured
    spans: Spans | None
    outcomes: Outcomes
    outbox: Outbox
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    exchanges: "dict[Exchange, None]" = field(default_factory=dict)
    prefixes: Prefixes = field(default_factory=Prefixes)
    sessions: Sessions = field(default_factory=Sessions)
    narrowings: Narrowings = field(default_factory=Narrowings)
    entitled: Entitled = field(default_factory=Entitled)
    paying: Paying = field(default_factory=Paying)
    waiting_since_ns: int | None = None  # somebody asked whether this gateway is ready
    queues: SiteQueues = field(init=False)
    shared_limits: SharedLimits = field(init=False)
    tenant_slots: TenantSlots = field(init=False)
    site_probes: dict[str, int] = field(
        default_factory=lambda: {"answered": 0, "failed": 0}
    )
    crowded: bool = False  # lately more than one request was open at a time
    stopping: bool = False  # new requests are refused
    ids_of_ms: int = -1  # the last request id's, and what it began with
    ids_begin: str = ""
    quiet: asyncio.Event | None = None  # while draining: set when no request is open

    def __post_init__(self) -> None:
        settings = self.settings
        self.tenant_slots = TenantSlots(self.view.replicas.generation_of)
        self.shared_limits = SharedLimits(self.site, self.clock, self.rng, self.view)
        self.queues = SiteQueues(
            self.clock, self.view, self.entitled, worker=settings.worker,
            workers=settings.workers,
        )

    def begun(self, exchange: "Exchange") -> None:
        """A request is open from now on."""
        self.exchanges[exchange] = None
        if len(self.exchanges) > 1:
            self.crowded, self.outbox.quiet = True, False

    def over(self, exchange: "Exchange") -> None:
        """A request came to its end."""
        self.exchanges.pop(exchange, None)
        if self.quiet is not None and not self.exchanges:
            self.quiet.set()

    def judge_crowd(self) -> None:
        """A few times a second: whether requests come one by one."""
        self.outbox.quiet, self.crowded = not self.crowded and len(self.exchanges) <= 1, False

    @property
    def country(self) -> str | None:
        """As the view says; as joining said before there is a view."""
        own = self.view.own
        return self.joined_country if own is None else own.country

    def has_heard(self, now_ns: int) -> bool:
        """Whether every site that has joined and serves something was heard of, or had the time to
        be since somebody asked for the first time."""
        if self.waiting_since_ns is None:
            self.waiting_since_ns = now_ns
        view = self.view.table.view
        return now_ns - self.waiting_since_ns > HEARING_NS or all(
            self.loads.of(site) is not None
            for sites in view.deployments.values()
            for site in sites
            if site in view.sites and view.sites[site].peer_key is not None
        )

    def country_of(self, site: SiteName) -> str | None:
        """Of a site of the view, or of the own site before there is a view."""
        if site == self.site:
            return self.country
        noun = self.view.site(site)
        return None if noun is None else noun.country

    @property
    def where(self) -> str:
        """The lines of a head that name this site."""
        return where_lines(self.site, self.country)

    def new_request_id(self, wall_ns: int) -> RequestId:
        """Of a request that begins now; most begin in the millisecond of the one before."""
        wall_ms = wall_ns // 1_000_000
        if wall_ms != self.ids_of_ms:
            self.ids_of_ms, self.ids_begin = wall_ms, uuid7_begin(wall_ms)
        return RequestId(uuid7_of(self.ids_begin, self.rng.getrandbits(RANDOM_BITS)))
