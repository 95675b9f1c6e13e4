"""The routing table: what never changes between two views, compiled once into bit sets of sites.

Bit i of a set is site i of the view in the order of names. A policy becomes the sites where its
residency admits processing, a model the sites that serve it; who is allowed is then one `&`. What
remains to a request is the short list of open sites and the refusals that are already known.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from isochrone.core.estimate.hardware import HardwareTable, seed_of
from isochrone.core.estimate.round_trip import Position, great_circle_km
from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.residency.blocs import Blocs
from isochrone.core.residency.bounds import Bounds, Narrowing, Standing, bounds_of
from isochrone.core.residency.rule import (
    ADMITTED,
    UNBOUND,
    Admitted,
    Denied,
    Verdict,
    admits_all,
    admits_link,
)
from isochrone.core.residency.site_sets import SiteSets
from isochrone.core.residency.terms import Axis
from isochrone.core.routing.board import Board, OpenSite, Part
from isochrone.core.routing.choice import Ground, GroundSite, Refused, Rule
from isochrone.core.routing.loads import Loads
from isochrone.core.world.site import RttSource, Site
from isochrone.core.world.view import View

SHORTLISTS_KEPT = 4096  # (model, bounds) pairs remembered; each has a few tuples of its sites
LISTINGS_KEPT = 16_384  # (model, policy) pairs remembered; what is long in them is the shortlist's
NARROWED_KEPT = 1024    # the same for requests that narrow: apart, so that they displace no other
REFUSALS_KEPT = 65_536  # (site, bounds) pairs remembered, a few hundred bytes each
GROUND_ID_BYTES = 10   # the ids of a billion grounds all differ, but for a chance of 1 to 2 million

# Light covers about 200 km of fibre in a millisecond and a round trip goes the way twice, so 100 km
# of distance cost 1 ms; real cables and routes take about double that.
FIBRE_KM_PER_MS = 100.0
DETOUR = 2.0
FARTHEST_KM = 20_015.0  # half of the Earth's circumference


@dataclass(slots=True, kw_only=True, eq=False)
class Shortlist:
    """For one model within some bounds: sites open, and the sites refused that serve the model.

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
    """A compiled view. `sites` are in the order of the bits; the last fields remember."""

    view: View
    blocs: Blocs
    sites: tuple[Site, ...]
    opens: tuple[OpenSite, ...]
    serving: Mapping[ModelName, int]
    sets: SiteSets = field(repr=False, compare=False)
    joined: int
    draining: int
    shortlists: dict[tuple[ModelName, Bounds | None], Shortlist] = field(repr=False, compare=False)
    listings: dict[tuple[ModelName, PolicyId], Listing] = field(repr=False, compare=False)
    narrowed: dict[tuple[ModelName, PolicyId, Narrowing], Listing] = field(
        repr=False, compare=False
    )
    standings: dict[PolicyId, Standing] = field(repr=False, compare=False)
    narrowed_standings: dict[tuple[PolicyId, Narrowing], Standing] = field(
        repr=False, compare=False
    )
    boards: dict[ModelName, Board] = field(repr=False, compare=False)
    ground_sites: tuple[GroundSite, ...] = field(repr=False, compare=False)
    refusals: dict[tuple[int, Bounds | None], Refused] = field(repr=False, compare=False)

    def is_served(self, model: ModelName) -> bool:
        """Whether any site of the view has a deployment of the model."""
        return self.serving.get(model, 0) != 0

    def listing(
        self, model: ModelName, policy_id: PolicyId, narrowing: Narrowing | None = None
    ) -> Listing:
        """What a choice for this model under this policy starts from."""
        if narrowing is not None:
            return self._narrowed_listing(model, policy_id, narrowing)
        listing = self.listings.get((model, policy_id))
        if listing is None:
            listing = self._make_listing(model, policy_id, None)
            if len(self.listings) >= LISTINGS_KEPT:
                self.listings.clear()
            self.listings[model, policy_id] = listing
        return listing

    def _narrowed_listing(
        self, model: ModelName, policy_id: PolicyId, narrowing: Narrowing
    ) -> Listing:
        listing = self.narrowed.get((model, policy_id, narrowing))
        if listing is None:
            listing = self._make_listing(model, policy_id, narrowing)
            if len(self.narrowed) >= NARROWED_KEPT:
                self.narrowed.clear()
            self.narrowed[model, policy_id, narrowing] = listing
        return listing

    def _make_listing(
        self, model: ModelName, policy_id: PolicyId, narrowing: Narrowing | None
    ) -> Listing:
        shortlist = self.shortlist(model, policy_id, narrowing)
        ground = _ground(self, model, policy_id, narrowing, shortlist)
        return Listing(shortlist=shortlist, ground=ground)

    def ground(self, model: ModelName, policy_id: PolicyId) -> Ground:
        """What all choices for this model under this policy have in common."""
        return self.listing(model, policy_id).ground

    def shortlist(
        self, model: ModelName, policy_id: PolicyId, narrowing: Narrowing | None = None
    ) -> Shortlist:
        """Open and refused sites for this model under this policy; unknown policies open none."""
        bounds = self._bounds(policy_id, narrowing)
        if narrowing is not None:
            return _shortlist(self, model, bounds)  # its listing is remembered
        known = self.shortlists.get((model, bounds))
        if known is None:
            known = _shortlist(self, model, bounds)
            if len(self.shortlists) >= SHORTLISTS_KEPT:
                self.shortlists.clear()
            self.shortlists[model, bounds] = known
        return known

    def part(self, model: ModelName, shortlist: Shortlist, loads: Loads) -> Part:
        """The costs at a shortlist's sites; all shortlists of a model share one board."""
        board = self.boards.get(model)
        if board is None or board.loads is not loads:
            takers = self.serving.get(model, 0) & self.joined & ~self.draining
            board = Board(
                model, tuple(self.opens[bit] for bit in _members(takers)), loads
            )
            if takers:
                self.boards[model] = board
        part = shortlist.part = Part(
            board, shortlist.open_sites, self.view.own_site
        )
        return part

    def open_site(self, name: SiteName) -> OpenSite | None:
        """What is known of a site of the view."""
        bit = self.sets.bit_of.get(name, 0)
        return self.opens[bit.bit_length() - 1] if bit else None

    def may_process(
        self, site: SiteName, policy_id: PolicyId, narrowing: Narrowing | None = None
    ) -> bool:
        """Whether a site may process for this policy and be reached: asked again before it is tried
        again."""
        bounds = self._bounds(policy_id, narrowing)
        if bounds is None:
            return False
        return _allowed(self.sets, bounds) & self.sets.bit_of.get(site, 0) != 0

    def models(
        self, policy_id: PolicyId, narrowing: Narrowing | None = None
    ) -> tuple[ModelName, ...]:
        """The models of the view that some site serves which this policy allows, by name."""
        bounds = self._bounds(policy_id, narrowing)
        allowed = 0 if bounds is None else _allowed(self.sets, bounds)
        return tuple([
            name for name in sorted(self.view.models) if self.serving.get(name, 0) & allowed
        ])

    def standing(self, policy_id: PolicyId, narrowing: Narrowing | None = None) -> Standing:
        """What the own site may do for this policy's requests."""
        if narrowing is not None:
            return self._narrowed_standing(policy_id, narrowing)
        known = self.standings.get(policy_id)
        if known is None:
            known = self._stand(policy_id, None)
            if len(self.standings) >= LISTINGS_KEPT:
                self.standings.clear()
            self.standings[policy_id] = known
        return known

    def _narrowed_standing(self, policy_id: PolicyId, narrowing: Narrowing) -> Standing:
        known = self.narrowed_standings.get((policy_id, narrowing))
        if known is None:
            known = self._stand(policy_id, narrowing)
            if len(self.narrowed_standings) >= NARROWED_KEPT:
                self.narrowed_standings.clear()
            self.narrowed_standings[policy_id, narrowing] = known
        return known

    def _stand(self, policy_id: PolicyId, narrowing: Narrowing | None) -> Standing:
        bounds = self._bounds(policy_id, narrowing)
        if bounds is None:
            denied = _unknown_policy(policy_id)
            return Standing(processing=denied, caches=False, logs=False, references_leave=False)
        return Standing(
            processing=self._own_site_on(bounds.processing),
            caches=isinstance(self._own_site_on(bounds.caches), Admitted),
            logs=isinstance(self._own_site_on(bounds.logs), Admitted),
            references_leave=not bounds.logs,
        )

    def residency_allows(
        self, policy_id: PolicyId, narrowing: Narrowing | None = None
    ) -> Verdict:
        """Whether the own site may process for this policy: what a destination re-checks."""
        return self.standing(policy_id, narrowing).processing

    def transit_allows(
        self, policy_id: PolicyId, narrowing: Narrowing | None = None
    ) -> Verdict:
        """Whether requests of this policy may enter at the own site."""
        bounds = self._bounds(policy_id, narrowing)
        if bounds is None:
            return _unknown_policy(policy_id)
        verdict = self._own_site_on(bounds.transit)
        if isinstance(verdict, Denied) and verdict.rule == "residency":
            return Denied(rule="transit", detail=verdict.detail)
        return verdict

    def allowed_ingresses(
        self, policy_id: PolicyId, narrowing: Narrowing | None = None
    ) -> tuple[Site, ...]:
        """Sites where requests of this policy may enter now, by name."""
        bounds = self._bounds(policy_id, narrowing)
        if bounds is None:
            return ()
        entering = self.joined & ~self.draining
        for _, axis in bounds.transit:
            entering &= self.sets.admitted(axis)
        return tuple(self.sites[bit] for bit in _members(entering))

    def _bounds(self, policy_id: PolicyId, narrowing: Narrowing | None) -> Bounds | None:
        policy = self.view.policies.get(policy_id)
        return None if policy is None else bounds_of(policy, narrowing)

    def _own_site_on(self, axes: tuple[tuple[str, Axis], ...]) -> Verdict:
        own = self.view.sites.get(self.view.own_site)
        if own is None:
            detail = f"site {self.view.own_site} is not in its own view yet"
            return Denied(rule="attribute_missing", detail=detail)
        return admits_all(axes, own, self.blocs)


def compile_table(
    view: View, blocs: Blocs, hardware: HardwareTable | None = None
) -> RoutingTable:
    """Compile a view. `hardware` seeds the rates of sites that have not measured their own.

    Cost: O(sites + models + policies), about 1 us a policy.
    """
    sites = tuple(view.sites[name] for name in sorted(view.sites))
    index = {site.name: bit for bit, site in enumerate(sites)}
    sets = SiteSets(sites, view.links, view.own_site, blocs)
    opens = tuple(_open_site(site, view, hardware or {}) for site in sites)
    for policy in view.policies.values():
        sets.keep((policy.residency, policy.caches or policy.residency))
    return RoutingTable(
        view=view,
        blocs=blocs,
        sites=sites,
        opens=opens,
        serving={
            model: _union(1 << index[name] for name in names if name in index)
            for model, names in view.deployments.items()
        },
        sets=sets,
        joined=_bits(
            site.peer_key is not None or site.name == view.own_site for site in sites
        ),
        draining=_bits(site.draining for site in sites),
        shortlists={},
        listings={},
        narrowed={},
        standings={},
        narrowed_standings={},
        boards={},
        ground_sites=tuple(
            GroundSite(site=each.name, rtt_ms=each.rtt_ms, rtt_source=each.rtt_source)
            for each in opens
        ),
        refusals={},
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
    kind, seed = seed_of(site.hardware, hardware)
    return OpenSite(name=site.name, rtt_ms=rtt_ms, rtt_source=source, seed=seed, kind=kind)


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


def _allowed(sets: SiteSets, bounds: Bounds) -> int:
    """The sites that may process within these bounds and be reached from the own one."""
    return sets.processing(bounds) & sets.in_reach(bounds)


def _shortlist(table: RoutingTable, model: ModelName, bounds: Bounds | None) -> Shortlist:
    serving = table.serving.get(model, 0)
    allowed = 0 if bounds is None else _allowed(table.sets, bounds)
    open_bits = serving & allowed & table.joined & ~table.draining
    members = list(_members(open_bits))
    opens = tuple([table.opens[bit] for bit in members])
    ground_sites = tuple([table.ground_sites[bit] for bit in members])
    refused = tuple([
        _known_refusal(table, bit, bounds, allowed) for bit in _members(serving & ~open_bits)
    ])
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


def _known_refusal(
    table: RoutingTable, bit: int, bounds: Bounds | None, allowed: int
) -> Refused:
    """The same for every model, so most of them are known."""
    key = (bit, bounds)
    refused = table.refusals.get(key)
    if refused is None:
        refused = _refused(table, bit, bounds, allowed)
        if len(table.refusals) >= REFUSALS_KEPT:
            table.refusals.clear()
        table.refusals[key] = refused
    return refused


def _members(bits: int) -> Iterator[int]:
    """The numbers of the set bits, ascending."""
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _refused(
    table: RoutingTable, bit: int, bounds: Bounds | None, allowed: int
) -> Refused:
    """Why a site that serves the model is not open."""
    site = table.sites[bit]
    if not allowed >> bit & 1:
        return _not_allowed(table, site, bounds)
    if not table.joined >> bit & 1:
        detail = f"{site.name} has not joined: it has no identity to prove itself with"
        return Refused(site=site.name, rule="not_joined", detail=detail)
    detail = f"{site.name} is being emptied and takes no new requests"
    return Refused(site=site.name, rule="draining", detail=detail)


def _ground(
    table: RoutingTable, model: ModelName, policy_id: PolicyId, narrowing: Narrowing | None,
    shortlist: Shortlist,
) -> Ground:
    policy = table.view.policies.get(policy_id)
    residency = () if policy is None else policy.residency
    transit = () if policy is None else policy.transit
    caches = () if policy is None else policy.caches or ()
    logs = UNBOUND if policy is None else policy.logs
    wish = narrowing or Narrowing()
    own = table.view.sites.get(table.view.own_site)
    ingress = "unknown" if own is None or own.country is None else own.country
    said = repr((
        model, policy_id, residency, transit, ingress, caches, logs, wish.residency, wish.transit,
    ))
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
        caches=caches,
        logs=logs,
        narrowed=wish.residency,
        narrowed_transit=wish.transit,
    )


def _not_allowed(table: RoutingTable, site: Site, bounds: Bounds | None) -> Refused:
    if bounds is None:
        detail = "the key's policy is not in this gateway's view, so nothing is allowed"
        return Refused(site=site.name, rule="residency", detail=detail)
    verdict = admits_all(bounds.processing, site, table.blocs)
    if isinstance(verdict, Admitted) and site.name != table.view.own_site:
        verdict = _way_there(table, site, bounds)
    assert isinstance(verdict, Denied), "the bit set and the rule disagree"
    rule: Rule = "residency"
    if verdict.rule in ("attribute_missing", "transit"):
        rule = "attribute_missing" if verdict.rule == "attribute_missing" else "transit"
    return Refused(site=site.name, rule=rule, detail=verdict.detail)


def _way_there(table: RoutingTable, site: Site, bounds: Bounds) -> Verdict:
    """Whether a request may travel to that site."""
    link = table.view.links.get(site.name)
    for whose, axis in bounds.transit:
        verdict = admits_link(axis, link, table.blocs, whose=whose)
        if isinstance(verdict, Denied):
            return verdict
    return ADMITTED
