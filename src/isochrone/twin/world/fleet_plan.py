"""Makes the fleet of a scenario: which sites get engines, how many, and the ways between all.

Every site of the table is an ingress. Engines stand in the metros with the most people, one site
each, at least `apart_km` from each other as long as there are enough of those.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isochrone.core.estimate.engine_rates_table import EngineRates
from isochrone.core.estimate.hardware import HardwareTable
from isochrone.core.estimate.saturation import saturated_rps
from isochrone.core.ids import ModelName, OrgId, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.world.model import Model
from isochrone.core.world.site import Hardware, Site
from isochrone.core.world.tenant import Policy
from isochrone.twin.fast.fleet import Fleet, FleetReplica, Tenant
from isochrone.twin.world.demand import demand_of
from isochrone.twin.world.round_trips import Measured, Places, Spread, distances_km, round_trips
from isochrone.twin.world.sites_table import PlacedSite

Sharing = Literal["even", "demand"]
CONTEXT_TOKENS = 131_072  # of the model, prompt and answer


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPlan:
    """`residency`: the terms of its policy; `share` of the requests. `clients`: the countries in
    which it has any, all when it is empty. `class_`: of all its requests, None where the workload's
    mix says. `sold`: the part of the fleet's no-cache token work that it was sold, spread over all
    sites as the engines are."""

    name: str
    share: float
    residency: tuple[str, ...]
    clients: frozenset[str] = frozenset()
    class_: int | None = None
    sold: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """`replicas` over `engine_sites`, evenly or by demand, at least one each. `slots` and
    `chunk_tokens` of each; `weights_bytes` it fetches when it starts cold."""

    engine: EngineRates
    engine_sites: int
    replicas: int
    sharing: Sharing = "demand"
    apart_km: float = 150.0
    slots: int = 256
    chunk_tokens: int = 2048
    context_tokens: int = CONTEXT_TOKENS
    weights_bytes: int = 0


def plan_fleet(
    plan: FleetPlan, sites: Sequence[PlacedSite], tenants: Sequence[TenantPlan],
    measured: Measured, spread: Spread, blocs: Blocs, hardware: HardwareTable,
) -> Fleet:
    """The fleet; its ingresses are `sites` in their order."""
    chosen, weights = _chosen(sites, plan)
    counts = _shared(plan.replicas, weights if plan.sharing == "demand" else [1.0] * len(chosen))
    everywhere = _places(sites)
    engines = _places([sites[number] for number in chosen])
    at = {number: place for place, number in enumerate(chosen)}
    physics = plan.engine.physics(slots=plan.slots, chunk_tokens=plan.chunk_tokens)
    name = ModelName(plan.engine.model)
    return Fleet(
        sites=tuple(_site(sites[number], plan) for number in chosen),
        ingresses=tuple(_site(site, None) for site in sites),
        rtt_ms=round_trips(everywhere, engines, measured, spread),
        site_rtt_ms=round_trips(engines, engines, measured, spread),
        home=tuple(at.get(number, -1) for number in range(len(sites))),
        models=(Model(
            name=name, kind="chat", revision=None, context_tokens=plan.context_tokens, created_at=0
        ),),
        replicas=tuple(
            FleetReplica(
                site=place, model=0, physics=physics, stated=plan.engine.stated,
                gpus=plan.engine.gpus, weights_bytes=plan.weights_bytes,
            )
            for place, count in enumerate(counts) for _ in range(count)
        ),
        tenants=tuple(
            Tenant(name=each.name, policy=Policy(
                id=PolicyId(each.name), org_id=OrgId(each.name), residency=each.residency,
                transit=("any",),
            ))
            for each in tenants
        ),
        blocs=blocs, hardware=hardware,
    )


def capacity_rps(fleet: Fleet, prompt_tokens: float, output_tokens: float) -> float:
    """Requests/s of this mean length that all replicas together do with nothing cached: what a
    load is a fraction of."""
    total = 0.0
    for replica in fleet.replicas:
        total += saturated_rps(replica.physics, prompt_tokens, output_tokens)
    return total


def _chosen(sites: Sequence[PlacedSite], plan: FleetPlan) -> tuple[list[int], list[float]]:
    """Sites for engines, the one with the greatest demand first, and the demand of their metros."""
    share = demand_of(sites, flat=True).share
    first: dict[str, int] = {}
    weight: dict[str, float] = {}
    for number, site in enumerate(sites):
        first.setdefault(site.metro, number)
        weight[site.metro] = weight.get(site.metro, 0.0) + float(share[number])
    ordered = sorted(first, key=lambda metro: (-weight[metro], metro))
    places = _places([sites[first[metro]] for metro in ordered])
    km = distances_km(places, places)
    kept: list[int] = []
    for place in range(len(ordered)):
        if len(kept) < plan.engine_sites and all(km[place, each] >= plan.apart_km for each in kept):
            kept.append(place)
    spare = [place for place in range(len(ordered)) if place not in kept]
    kept += spare[: plan.engine_sites - len(kept)]
    return [first[ordered[each]] for each in kept], [weight[ordered[each]] for each in kept]


def _shared(count: int, weights: Sequence[float]) -> list[int]:
    """`count` in proportion to the weights, at least 1 each while there are enough."""
    if count <= len(weights):
        return [1] * count + [0] * (len(weights) - count)
    spare, total = count - len(weights), sum(weights)
    exact = [spare * weight / total for weight in weights]
    found = [1 + int(each) for each in exact]
    rest = sorted(range(len(weights)), key=lambda place: (int(exact[place]) - exact[place], place))
    for place in rest[: count - sum(found)]:
        found[place] += 1
    return found


def _places(sites: Sequence[PlacedSite]) -> Places:
    return Places(
        latitude_deg=np.array([site.latitude_deg for site in sites]),
        longitude_deg=np.array([site.longitude_deg for site in sites]),
    )


def _site(site: PlacedSite, plan: FleetPlan | None) -> Site:
    hardware = () if plan is None else (Hardware(kind=plan.engine.hardware),)
    return Site(
        name=SiteName(site.name), country=site.country, operator=site.operator, parent=None,
        latitude_deg=site.latitude_deg, longitude_deg=site.longitude_deg, host="twin", port=1,
        public_url="http://twin/v1", peer_key="00" * 32, hardware=hardware,
    )
