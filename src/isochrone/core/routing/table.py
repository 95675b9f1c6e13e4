"""The routing table: what never changes between two views, compiled once into bit sets of sites.

Bit i of a set is site i of the view in the order of names. A policy becomes the sites where its
residency admits processing, a model the sites that serve it; who is allowed is then one `&`. What
remains to a request is the short list of open sites and the refusals that are already known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from isochrone.core.estimate.hardware import HardwareTable, seed_rates
from isochrone.core.estimate.round_trip import Position, great_circle_km
from isochrone.core.estimate.service import Rates
from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import Admitted, Denied, Verdict, admits, allowed_countries
from isochrone.core.routing.choice import Refused, Rule
from isochrone.core.world.site import RttSource, Site
from isochrone.core.world.view import View

SHORTLISTS_KEPT = 256  # (model, axis) pairs remembered; each is at most a tuple as long as the view

# Light covers about 200 km of fibre in a millisecond and a round trip goes the way twice, so 100 km
# of distance cost 1 ms; real cables and routes take about double that.
FIBRE_KM_PER_MS = 100.0
DETOUR = 2.0
FARTHEST_KM = 20_015.0  # half of the Earth's circumference

Axis = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSite:
    """A site that every lasting rule allows, with what a choice needs of it."""

    name: SiteName
    rtt_ms: float
    rtt_source: RttSource
    seed: Rates


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortlist:
    """For one model and one residency axis: sites open, sites refused, as in `Choice`."""

    open_sites: tuple[OpenSite, ...]
    refused: tuple[Refused, ...]
    allowed_exists: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """A compiled view. `sites` are in the order of the bits; `shortlists` only remembers."""

    view: View
    blocs: Blocs
    sites: tuple[Site, ...]
    opens: tuple[OpenSite, ...]
    serving: Mapping[ModelName, int]
    allowed: Mapping[Axis, int]
    joined: int
    draining: int
    shortlists: dict[tuple[ModelName, Axis | None], Shortlist] = field(repr=False, compare=False)

    def is_served(self, model: ModelName) -> bool:
        """Whether any site of the view has a deployment of the model."""
        return self.serving.get(model, 0) != 0

    def shortlist(self, model: ModelName, policy_id: PolicyId) -> Shortlist:
        """Open and refused sites for this model under this policy; unknown policies open none."""
        policy = self.view.policies.get(policy_id)
        axis = None if policy is None else policy.residency
        known = self.shortlists.get((model, axis))
        if known is None:
            known = _shortlist(self, model, axis)
            if len(self.shortlists) >= SHORTLISTS_KEPT:
                self.shortlists.clear()
            self.shortlists[model, axis] = known
        return known

    def residency_allows(self, policy_id: PolicyId) -> Verdict:
        """Whether the own site may process for this policy: what a destination re-checks."""
        policy = self.view.policies.get(policy_id)
        if policy is None:
            return _unknown_policy(policy_id)
        return self._own_site_on(policy.residency)

    def transit_allows(self, policy_id: PolicyId) -> Verdict:
        """Whether requests of this policy may enter at the own site."""
        policy = self.view.policies.get(policy_id)
        if policy is None:
            return _unknown_policy(policy_id)
        verdict = self._own_site_on(policy.transit)
        if isinstance(verdict, Denied) and verdict.rule == "residency":
            return Denied(rule="transit", detail=verdict.detail)
        return verdict

    def allowed_ingresses(self, policy_id: PolicyId) -> tuple[Site, ...]:
        """Sites where requests of this policy may enter now, by name."""
        policy = self.view.policies.get(policy_id)
        if policy is None:
            return ()
        return tuple(
            site
            for bit, site in enumerate(self.sites)
            if self.joined >> bit & 1
            and not site.draining
            and isinstance(admits(policy.transit, site.country, self.blocs), Admitted)
        )

    def _own_site_on(self, axis: Axis) -> Verdict:
        own = self.view.sites.get(self.view.own_site)
        if own is None:
            detail = f"site {self.view.own_site} is not in its own view yet"
            return Denied(rule="attribute_missing", detail=detail)
        return admits(axis, own.country, self.blocs)


def compile_table(
    view: View, blocs: Blocs, hardware: HardwareTable | None = None
) -> RoutingTable:
    """Compile a view. `hardware` seeds the rates of sites that have not measured their own.

    Cost: O(sites + models + policies), about 1 us a policy.
    """
    sites = tuple(view.sites[name] for name in sorted(view.sites))
    index = {site.name: bit for bit, site in enumerate(sites)}
    in_country: dict[str, int] = {}
    for bit, site in enumerate(sites):
        if site.country is not None:
            in_country[site.country] = in_country.get(site.country, 0) | 1 << bit
    everywhere = (1 << len(sites)) - 1
    allowed: dict[Axis, int] = {}
    for policy in view.policies.values():
        if policy.residency not in allowed:
            countries = allowed_countries(policy.residency, blocs)
            allowed[policy.residency] = (
                everywhere
                if countries is None
                else _union(in_country.get(country, 0) for country in countries)
            )
    return RoutingTable(
        view=view,
        blocs=blocs,
        sites=sites,
        opens=tuple(_open_site(site, view, hardware or {}) for site in sites),
        serving={
            model: _union(1 << index[name] for name in names if name in index)
            for model, names in view.deployments.items()
        },
        allowed=allowed,
        joined=_bits(
            site.peer_key is not None or site.name == view.own_site for site in sites
        ),
        draining=_bits(site.draining for site in sites),
        shortlists={},
    )


def _bits(flags: Iterable[bool]) -> int:
    return _union(1 << bit for bit, flag in enumerate(flags) if flag)


def _union(sets: Iterable[int]) -> int:
    union = 0
    for each in sets:
        union |= each
    return union


def _open_site(site: Site, view: View, hardware: HardwareTable) -> OpenSite:
    rtt_ms, source = _round_trip(site, view)
    return OpenSite(
        name=site.name, rtt_ms=rtt_ms, rtt_source=source, seed=seed_rates(site.hardware, hardware)
    )


def _round_trip(site: Site, view: View) -> tuple[float, RttSource]:
    """The link of the view; without one, what light in fibre needs, doubled for detours."""
    if site.name == view.own_site:
        return 0.0, "stated"
    link = view.links.get(site.name)
    if link is not None:
        return link.rtt_ms, link.source
    own = view.sites.get(view.own_site)
    if own is None:
        return DETOUR * FARTHEST_KM / FIBRE_KM_PER_MS, "distance"
    km = great_circle_km(
        Position(latitude_deg=own.latitude_deg, longitude_deg=own.longitude_deg),
        Position(latitude_deg=site.latitude_deg, longitude_deg=site.longitude_deg),
    )
    return DETOUR * km / FIBRE_KM_PER_MS, "distance"


def _unknown_policy(policy_id: PolicyId) -> Denied:
    detail = f"policy {policy_id} is not in this gateway's view, so nothing is allowed"
    return Denied(rule="policy_unknown", detail=detail)


def _shortlist(table: RoutingTable, model: ModelName, axis: Axis | None) -> Shortlist:
    serving = table.serving.get(model, 0)
    allowed = 0 if axis is None else table.allowed[axis]
    open_bits = serving & allowed & table.joined & ~table.draining
    opens = []
    refused = []
    for bit, site in enumerate(table.sites):
        if open_bits >> bit & 1:
            opens.append(table.opens[bit])
        elif not serving >> bit & 1:
            detail = f"{site.name} has no deployment of {model}"
            refused.append(Refused(site=site.name, rule="model_not_served", detail=detail))
        elif not allowed >> bit & 1:
            refused.append(_not_allowed(table, site, axis))
        elif not table.joined >> bit & 1:
            detail = f"{site.name} has not joined: it has no identity to prove itself with"
            refused.append(Refused(site=site.name, rule="not_joined", detail=detail))
        else:
            detail = f"{site.name} is being emptied and takes no new requests"
            refused.append(Refused(site=site.name, rule="draining", detail=detail))
    return Shortlist(
        open_sites=tuple(opens),
        refused=tuple(refused),
        allowed_exists=serving & allowed != 0,
    )


def _not_allowed(table: RoutingTable, site: Site, axis: Axis | None) -> Refused:
    if axis is None:
        detail = "the key's policy is not in this gateway's view, so nothing is allowed"
        return Refused(site=site.name, rule="residency", detail=detail)
    verdict = admits(axis, site.country, table.blocs)
    assert isinstance(verdict, Denied), "the bit set and the rule disagree"
    rule: Rule = "attribute_missing" if verdict.rule == "attribute_missing" else "residency"
    return Refused(site=site.name, rule=rule, detail=verdict.detail)
