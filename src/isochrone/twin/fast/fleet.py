"""The fleet that a simulation runs: sites with replicas, ingresses, and the ways between them.

Sites, ingresses, models, tenants and replicas are numbered by their place in these tuples; inside
the simulation they are known by that number. Sizes are tokens, times seconds or milliseconds as
their names say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from isochrone.core.estimate.batching import Physics
from isochrone.core.estimate.hardware import HardwareTable
from isochrone.core.estimate.service import Rates
from isochrone.core.residency.blocs import Blocs
from isochrone.core.world.model import Model
from isochrone.core.world.site import Site
from isochrone.core.world.site_policy import SitePolicy
from isochrone.core.world.tenant import Policy

RttMs = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]

NO_BLOCS = Blocs(countries=frozenset(), members={})


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplica:
    """One engine: where, of which model, and how it really behaves.

    `stated` is what the hardware table says of it before anything was measured: all that a policy
    may assume. `gpus` it takes. `cache_tokens`: what its prefix cache holds, None: as much as its
    KV memory. `weights_bytes` are fetched at `fetch_bytes_s` when it starts cold, and `load_s` more
    pass until it is ready.
    """

    site: int
    model: int
    physics: Physics
    stated: Rates
    gpus: int = 1
    cache_tokens: int | None = None
    weights_bytes: int = 0
    fetch_bytes_s: float = 1.25e9
    load_s: float = 30.0
    starts_cold: bool = False

    @property
    def cold_start_s(self) -> float:
        """From the wish for it until it answers."""
        return self.weights_bytes / self.fetch_bytes_s + self.load_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Who asks: its policy, and tokens/s (weighted, class `reserved`) that it was sold by site."""

    name: str
    policy: Policy
    sold_tok_s: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """`sites` have replicas, `ingresses` take clients; `rtt_ms[ingress, site]` and
    `site_rtt_ms[site, site]` are round trips without jitter. `home[ingress]` is the site at the
    same place, where its own gateway serves without a hop; -1 for none. `via[ingress, site]`: the
    countries that the way passes, for axes that ask; ways that it lacks deny those. `admission`:
    how classes share the slots, the same everywhere. `hardware`: the table that seeds rates."""

    sites: tuple[Site, ...]
    ingresses: tuple[Site, ...]
    rtt_ms: RttMs
    site_rtt_ms: RttMs
    home: tuple[int, ...]
    models: tuple[Model, ...]
    replicas: tuple[FleetReplica, ...]
    tenants: tuple[Tenant, ...]
    blocs: Blocs = NO_BLOCS
    via: Mapping[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)
    admission: SitePolicy = field(default_factory=SitePolicy)
    hardware: HardwareTable = field(default_factory=dict)

    @cached_property
    def at(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """`at[site][model]`: the numbers of the replicas there."""
        found: list[list[list[int]]] = [[[] for _ in self.models] for _ in self.sites]
        for number, replica in enumerate(self.replicas):
            found[replica.site][replica.model].append(number)
        return tuple(tuple(tuple(each) for each in models) for models in found)

    @property
    def gpus(self) -> int:
        return sum(each.gpus for each in self.replicas)

    def problems(self) -> list[str]:
        """Every way in which the parts do not fit together; empty when there is none."""
        found = []
        if self.rtt_ms.shape != (len(self.ingresses), len(self.sites)):
            found.append(f"rtt_ms is {self.rtt_ms.shape}, not ingresses by sites")
        if self.site_rtt_ms.shape != (len(self.sites), len(self.sites)):
            found.append(f"site_rtt_ms is {self.site_rtt_ms.shape}, not sites by sites")
        if len(self.home) != len(self.ingresses):
            found.append(f"home has {len(self.home)} entries for {len(self.ingresses)} ingresses")
        for ingress, site in enumerate(self.home):
            if not -1 <= site < len(self.sites):
                found.append(f"ingress {ingress} is at home at site {site}, which there is not")
        for number, each in enumerate(self.replicas):
            if not (0 <= each.site < len(self.sites) and 0 <= each.model < len(self.models)):
                found.append(f"replica {number} is at an unknown site or of an unknown model")
        if len({site.name for site in (*self.sites, *self.ingresses)}) < len(self.sites):
            found.append("two sites have one name")
        return found
