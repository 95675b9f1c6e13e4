"""Reads the files of a scenario and makes what the twin simulates: the fleet and its arrivals."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from isochrone.adapters.packaged import load_blocs, load_engine_rates, load_hardware
from isochrone.core.errors import InvalidInput
from isochrone.core.estimate.engine_rates_table import EngineRates, row_of
from isochrone.twin.fast.arrivals import Arrivals
from isochrone.twin.fast.fleet import Fleet
from isochrone.twin.scenario import FleetOrder, Scenario
from isochrone.twin.workloads.placing import Mix, placed
from isochrone.twin.world.demand import Demand, Floats, demand_of, of_countries
from isochrone.twin.world.fleet_plan import FleetPlan, TenantPlan, capacity_rps, plan_fleet
from isochrone.twin.world.sites_table import PlacedSite
from isochrone.wiring.twin_places import entries_of, sites_of, ways_of
from isochrone.wiring.twin_traffic import Nature, Traffic, traffic_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinWorld:
    """`arrivals()` begins anew with each call, always the same; `rate_rps` is their mean rate in a
    week, of the `capacity_rps` that load 1 is. `share[ingress]` is each ingress's part of the
    demand. `nature`: what prefixes the traffic has."""

    fleet: Fleet
    arrivals: Callable[[], Iterator[Arrivals]]
    rate_rps: float
    capacity_rps: float
    share: tuple[float, ...]
    nature: Nature = "calls"


def twin_world(scenario: Scenario) -> TwinWorld:
    """Raises InvalidInput with the problems of every file that cannot be used."""
    problems: list[str] = []
    files = ", ".join(scenario.workload.files)
    sites = _read(lambda: sites_of(scenario.sites), scenario.sites, problems)
    ways = _read(lambda: ways_of(scenario.rtt), scenario.rtt, problems)
    traffic = _read(lambda: traffic_of(scenario.workload), files, problems)
    entries = _read(
        lambda: entries_of(scenario.entries) if scenario.entries else {}, scenario.entries, problems
    )
    if sites is None or ways is None or traffic is None or entries is None:
        raise InvalidInput(problems)
    tenants = scenario.tenants
    fleet = plan_fleet(
        _plan(scenario.fleet), sites, tenants, *ways, load_blocs(), load_hardware(),
    )
    workload = scenario.workload
    most_rps = capacity_rps(fleet, traffic.prompt_tokens, traffic.output_tokens)
    rate_rps = workload.rate_rps or (workload.load or 1.0) * most_rps
    demand = demand_of(sites, start_s=scenario.start_hour * 3600.0, flat=not scenario.hours)
    if rate_rps / demand.mean_activity() > traffic.most_rps:
        raise InvalidInput([
            f"{files}: has so few requests in so long a time that {rate_rps:.3g} requests/s are "
            "more than a million copies of it; is one of its times wrong, or in another unit?"
        ])
    if entries:
        demand = _entering(demand, sites, entries)
    places = _places(tenants, sites, demand)
    mix = Mix(
        tenants=tuple(each.share for each in tenants),
        classes=(
            workload.reserved, max(1.0 - workload.reserved - workload.batch, 0.0), workload.batch
        ),
        slo_ms=workload.slo_ms, slo_token_ms=workload.slo_token_ms,
        expected_tokens=max(round(traffic.output_tokens), 1),
        places=places, tenant_class=tuple(each.class_ for each in tenants),
    )
    return TwinWorld(
        fleet=_sold(fleet, tenants, most_rps, traffic), rate_rps=rate_rps, capacity_rps=most_rps,
        share=tuple(_share(demand.share, tenants, places).tolist()), nature=traffic.nature,
        arrivals=lambda: placed(
            traffic.source, demand, mix, rate_rps=rate_rps, length_s=scenario.length_s,
            seed=scenario.seed,
        ),
    )


def _entering(
    demand: Demand, sites: Sequence[PlacedSite], entries: Mapping[str, float]
) -> Demand:
    try:
        return of_countries(demand, sites, entries)
    except ValueError as error:
        raise InvalidInput([f"entries: {error}"]) from error


def _places(
    tenants: Sequence[TenantPlan], sites: Sequence[PlacedSite], demand: Demand
) -> tuple[Floats | None, ...]:
    """Where each has clients; None for everywhere. Raises InvalidInput where that is nowhere."""
    found: list[Floats | None] = []
    problems = []
    for tenant in tenants:
        places = np.array([float(site.country in tenant.clients) for site in sites])
        found.append(places if tenant.clients else None)
        here = ", ".join(sorted(tenant.clients))
        if tenant.clients and not places.any():
            problems.append(f"tenant {tenant.name}: no site is in {here}")
        elif tenant.clients and not (places * demand.share).any():
            problems.append(f"tenant {tenant.name}: by the entries, nobody asks in {here}")
    if problems:
        raise InvalidInput(problems)
    return tuple(found)


def _share(
    share: Floats, tenants: Sequence[TenantPlan], places: Sequence[Floats | None]
) -> Floats:
    """Each ingress's part of the demand of all tenants together."""
    total = np.zeros_like(share)
    for tenant, own in zip(tenants, places, strict=True):
        there = share if own is None else share * own
        total += tenant.share * there / there.sum()
    result: Floats = total / total.sum()
    return result


def _sold(
    fleet: Fleet, tenants: Sequence[TenantPlan], most_rps: float, traffic: Traffic
) -> Fleet:
    """With what tenants were sold at each site, in the tokens that entitlements count."""
    tokens = traffic.prompt_tokens + fleet.admission.output_weight * traffic.output_tokens
    counts = Counter(each.site for each in fleet.replicas)
    each_tok_s = most_rps * tokens / len(fleet.replicas)
    return replace(fleet, tenants=tuple(
        replace(tenant, sold_tok_s={
            site: round(plan.sold * count * each_tok_s) for site, count in sorted(counts.items())
        }) if plan.sold else tenant
        for tenant, plan in zip(fleet.tenants, tenants, strict=True)
    ))


def _read(read: Callable[[], T], file: str | None, problems: list[str]) -> T | None:
    """None where it cannot be, and why added to `problems`."""
    try:
        return read()
    except InvalidInput as error:
        problems += error.problems
    except csv.Error as error:  # as a quotation mark that is never closed
        problems.append(f"{file}: is no table with commas between ({error})")
    return None


def engine_of(order: FleetOrder) -> EngineRates:
    """The row of the packaged table that it names."""
    engine = row_of(
        load_engine_rates(), order.hardware, order.model, order.gpus, order.precision
    )
    if engine is None:
        raise ValueError("a scenario is checked for this when it is read")
    return engine


def _plan(order: FleetOrder) -> FleetPlan:
    """With the row of the table that was measured, where there is one."""
    return FleetPlan(
        engine=engine_of(order), engine_sites=order.engine_sites, replicas=order.replicas,
        sharing=order.sharing, apart_km=order.apart_km, slots=order.slots,
        chunk_tokens=order.chunk_tokens,
    )
