"""A scenario: world, fleet, traffic and length of a simulation, as somebody wrote them down.

The file is read by `wiring/twin_scenario.py`; docs/twin-world.md has every key.
"""

from dataclasses import dataclass
from typing import Literal

from isochrone.twin.world.fleet_plan import Sharing, TenantPlan

WorkloadKind = Literal[
    "recorded", "coding", "servegen", "azure-2024", "lengths", "exponential"
]
Losing = Literal["site", "country", "cable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """`files` are paths, or empty for the packaged sample. `load` is the fraction of what the fleet
    can do with nothing cached; `rate_rps` states the rate itself; exactly one is not None.
    `reserved` and `batch` are parts of the requests, the rest is on demand. `part`: from which
    share of what was recorded to which it is played, in time or, of sessions, in their order.
    `prompt_tokens` and `output_tokens` are means, for the kind `exponential` alone."""

    name: str
    kind: WorkloadKind
    files: tuple[str, ...]
    load: float | None
    rate_rps: float | None
    slo_ms: float
    slo_token_ms: float
    reserved: float
    batch: float
    part: tuple[float, float] = (0.0, 1.0)
    prompt_tokens: float = 100.0
    output_tokens: float = 500.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutagePlan:
    """What is lost from `begin` to `end`, shares of the requests. `site`: the one of that `rank` by
    its engines, from 1; `country`: all its sites; `cable`: all ways between clients in the
    countries `here` and sites elsewhere, and between clients elsewhere and sites there."""

    what: Losing
    begin: float
    end: float
    rank: int = 1
    here: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOrder:
    """`hardware`, `model`, `gpus` and `precision` name one row of the packaged table of engines;
    without `precision`, the widest that is known."""

    hardware: str
    model: str
    gpus: int
    precision: str | None
    engine_sites: int
    replicas: int
    sharing: Sharing
    apart_km: float
    slots: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`sites` and `rtt` are paths, None for the packaged tables; `entries` one of requests by
    country, None for people. `start_hour`: hours since Monday
    00:00 UTC; `hours`: whether places are quieter by night."""

    seed: int
    length_s: float
    warm_s: float
    start_hour: float
    hours: bool
    sites: str | None
    rtt: str | None
    fleet: FleetOrder
    workload: Workload
    tenants: tuple[TenantPlan, ...]
    outages: tuple[OutagePlan, ...] = ()
    entries: str | None = None
