"""The routing table: what never changes between two views, compiled once into bit sets of sites.

Bit i of a set is site i of the view in the order of names. A policy becomes the sites where its
residency admits processing, a model the sites that serve it; who is allowed is then one `&`. What
remains to a request is the short list of open sites and the refusals that are already known.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from isochrone.core.estimate.hardware import HardwareTable, seed_rates
from isochrone.core.estimate.round_trip import Position, great_circle_km
from isochrone.core.ids import ModelName, PolicyId
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.rule import Admitted, Denied, Verdict, admits, allowed_countries
from isochrone.core.routing.board import Board, OpenSite, Part
from isochrone.core.routing.choice import Ground, GroundSite, Refused, Rule
from isochrone.core.routing.loads import Loads
from isochrone.core.world.site import RttSource, Site
from isochrone.core.world.view import View

SHORTLISTS_KEPT = 256  # (model, axis) pairs remembered; each is at most a tuple as long as the view
LISTINGS_KEPT = 4096   # (model, policy) pairs remembered; what is long in them is the shortlist's
GROUND_ID_BYTES = 10   # the ids of a billion grounds all differ, but for a chance of 1 to 2 million

# Light covers about 200 km of fibre in a millisecond and a round trip goes the way twice, so 100 km
# of distance cost 1 ms; real cables and routes take about double that.
FIBRE_KM_PER_MS = 100.0
DETOUR = 2.0
FARTHEST_KM = 20_015.0  # half of the Earth's circumference

Axis = tuple[str, ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Shortlist:
    """For one model and one residency axis: sites open, and the sites refused that serve the model.

    `ground_sites` are `open_sites` as explanations keep them. `digest` identifies all of this.
    `part` is remembered by `choose`: what these sites would cost, by one gateway's loads.
    """

    open_sites: tuple[OpenSite, ...]
    ground_sites: tuple[GroundSite, ...]
    refused: tuple[Refused, ...]
    allowed_exists: bool
    elsewhere: int
    digest: bytes
    part: Part | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """For one model and one policy: what to choose from, and how an explanation says it."""

    shortlist: Shortlist
    ground: Ground


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingTable:
    """A compiled view. `sites` are in the order of the bits; the last three fields remember."""

    view: View
    blocs: Blocs
    sites: tuple[Site, ...]
    opens: tuple[OpenSite, ...]
    serving: Mapping[ModelName, int]
    allowed: Mapping[Axis, int]
    joined: int
    draining: int
    shortlists: dict[tuple[ModelName, Axis | None], Shortlist] = field(repr=False, compare=False)
    listings: dict[tuple[ModelName, PolicyId], Listing] = field(repr=False, compare=False)
    boards: dict[ModelName, Board] = field(repr=False, compare=False)

    def is_served(self, model: ModelName) -> bool:
        """Whether any site of the view has a deployment of the model."""
        return self.serving.get(model, 0) != 0

    def listing(self, model: ModelName, policy_id: PolicyId) -> Listing:
        """What a choice for this model under this policy starts from."""
        listing = self.listings.get((model, policy_id))
        if listing is None:
            shortlist = self.shortlist(model, policy_id)
            listing = Listing(
                shortlist=shortlist, ground=_ground(self, model, policy_id, shortlist)
            )
            if len(self.listings) >= LISTINGS_KEPT:
                self.listings.clear()
            self.listings[model, policy_id] = listing
        return listing

    def ground(self, model: ModelName, policy_id: PolicyId) -> Ground:
        """What all choices for this model under this policy have in common."""
        return self.listing(model, policy_id).ground

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

    def part(self, model: ModelName, shortlist: Shortlist, loads: Loads) -> Part:
        """The costs at a shortlist's sites; all shortlists of a model share one board."""
        board = self.boards.get(model)
        if board is None or board.loads is not loads:
            takers = self.serving.get(model, 0) & self.joined & ~self.draining
            board = Board(model, tuple(self.opens[bit] for bit in _members(takers)), loads)
            if takers:
                self.boards[model] = board
        part = shortlist.part = Part(board, shortlist.open_sites)
        return part

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
        listings={},
        boards={},
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
    opens = tuple(table.opens[bit] for bit in _members(open_bits))
    ground_sites = tuple(
        GroundSite(site=each.name, rtt_ms=each.rtt_ms, rtt_source=each.rtt_source)
        for each in opens
    )
    refused = tuple(
        _refused(table, bit, axis, allowed) for bit in _members(serving & ~open_bits)
    )
    allowed_exists = serving & allowed != 0
    elsewhere = len(table.sites) - serving.bit_count()
    said = repr((
        [(each.site, each.rtt_ms, each.rtt_source) for each in ground_sites],
        [(each.site, each.rule, each.detail) for each in refused],
        allowed_exists, elsewhere,
    ))
    return Shortlist(
        open_sites=opens,
        ground_sites=ground_sites,
        refused=refused,
        allowed_exists=allowed_exists,
        elsewhere=elsewhere,
        digest=blake2b(said.encode(), digest_size=32).digest(),
    )


def _members(bits: int) -> Iterator[int]:
    """The numbers of the set bits, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _refused(table: RoutingTable, bit: int, axis: Axis | None, allowed: int) -> Refused:
    """Why a site that serves the model is not open."""
    site = table.sites[bit]
    if not allowed >> bit & 1:
        return _not_allowed(table, site, axis)
    if not table.joined >> bit & 1:
        detail = f"{site.name} has not joined: it has no identity to prove itself with"
        return Refused(site=site.name, rule="not_joined", detail=detail)
    detail = f"{site.name} is being emptied and takes no new requests"
    return Refused(site=site.name, rule="draining", detail=detail)


def _ground(
    table: RoutingTable, model: ModelName, policy_id: PolicyId, shortlist: Shortlist
) -> Ground:
    policy = table.view.policies.get(policy_id)
    residency = () if policy is None else policy.residency
    transit = () if policy is None else policy.transit
    own = table.view.sites.get(table.view.own_site)
    ingress = "unknown" if own is None or own.country is None else own.country
    said = repr((model, policy_id, residency, transit, ingress))
    return Ground(
        id=blake2b(shortlist.digest + said.encode(), digest_size=GROUND_ID_BYTES).hexdigest(),
        model=model,
        policy_id=policy_id,
        residency=residency,
        transit=transit,
        plaintext_ingress=ingress,
        open_sites=shortlist.ground_sites,
        refused=shortlist.refused,
        allowed_exists=shortlist.allowed_exists,
        elsewhere=shortlist.elsewhere,
    )


def _not_allowed(table: RoutingTable, site: Site, axis: Axis | None) -> Refused:
    if axis is None:
        detail = "the key's policy is not in this gateway's view, so nothing is allowed"
        return Refused(site=site.name, rule="residency", detail=detail)
    verdict = admits(axis, site.country, table.blocs)
    assert isinstance(verdict, Denied), "the bit set and the rule disagree"
    rule: Rule = "attribute_missing" if verdict.rule == "attribute_missing" else "residency"
    return Refused(site=site.name, rule=rule, detail=verdict.detail)
