"""Tries a policy before it holds: what each site may do under it, and what one request would meet.

The same functions decide as at a gateway; here nobody's request waits for them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from isochrone.core.ids import ModelName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.bounds import Narrowing, bounds_of
from isochrone.core.residency.rule import Admitted, Denied, Verdict, admits_all
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.table import compile_table
from isochrone.core.world.site import Site
from isochrone.core.world.tenant import Policy
from isochrone.core.world.view import View

Outcome = Literal["served", "no_entry", "not_deployed", "nowhere_allowed", "nowhere_open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTrial:
    """What one site may do for requests of the policy, links to it aside."""

    site: Site
    entry: Verdict
    processing: Verdict
    caches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrial:
    """What a request would meet. `open_sites` could serve it, the nearest first; health, which
    changes by the second, is not asked. `refused` have the model, and why they could not."""

    outcome: Outcome
    entry: Verdict
    open_sites: tuple[str, ...]
    refused: tuple[Refused, ...]


def try_sites(policy: Policy, sites: Iterable[Site], blocs: Blocs) -> tuple[SiteTrial, ...]:
    """Every site under the policy."""
    bounds = bounds_of(policy, None)
    return tuple(
        SiteTrial(
            site=site, entry=admits_all(bounds.transit, site, blocs),
            processing=admits_all(bounds.processing, site, blocs),
            caches=isinstance(admits_all(bounds.caches, site, blocs), Admitted),
        )
        for site in sites
    )


def try_request(
    policy: Policy, view: View, model: ModelName, narrowing: Narrowing | None, blocs: Blocs
) -> RequestTrial:
    """A request for `model` that enters at `view.own_site`; `view` has to hold the policy."""
    table = compile_table(view, blocs)
    entry = table.transit_allows(policy.id, narrowing)
    found = table.shortlist(model, policy.id, narrowing)
    outcome: Outcome = "served"
    if isinstance(entry, Denied):
        outcome = "no_entry"
    elif not table.is_served(model):
        outcome = "not_deployed"
    elif not found.allowed_exists:
        outcome = "nowhere_allowed"
    elif not found.open_sites:
        outcome = "nowhere_open"
    nearest = sorted(found.open_sites, key=lambda each: (each.rtt_ms, each.name))
    return RequestTrial(
        outcome=outcome, entry=entry, refused=found.refused,
        open_sites=() if outcome == "no_entry" else tuple(each.name for each in nearest),
    )
