"""A second reading of residency rules, and requests that travel through gateways by their tables.

`Wish` states an axis as sets, not as text, and judges a site by nothing but these sets: it shares
no code with the rules that it checks. `travel` does with a request what a gateway does, failures
and destinations with another view included.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.residency.rule import UNBOUND, Admitted, parse_axis
from isochrone.core.rng import Random
from isochrone.core.routing.choice import Refused
from isochrone.core.routing.choose import choose
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.prefix import Prefixes
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.site import Link, Site
from isochrone.core.world.view import View
from tests.builders import MODEL

EU = {"DE", "FR"}
EEA = {"DE", "FR", "NO"}
COUNTRIES = {"AU", "DE", "FR", "NA", "NO", "US"}
GROUPS = {"EU": EU, "EEA": EEA}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """An axis as sets by attribute: `place`, `operator`, `parent`, `site`; `via` asks of links."""

    anywhere: bool = False
    allows: Mapping[str, frozenset[str]] = field(default_factory=dict)
    denies: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def admits(self, site: Site) -> bool:
        stated = {
            "place": site.country if site.country in COUNTRIES else None,
            "operator": site.operator, "parent": site.parent, "site": site.name,
        }
        for name, value in stated.items():
            if name not in self.allows and name not in self.denies:
                continue
            if value is None or value in self.denies.get(name, ()):
                return False
            if name in self.allows and value not in self.allows[name]:
                return False
        return self.anywhere or any(name in self.allows for name in stated)

    def admits_link(self, link: Link | None) -> bool:
        if "via" not in self.allows and "via" not in self.denies:
            return True
        if link is None or not link.via:
            return False
        passed = set(link.via)
        if not passed <= COUNTRIES or passed & self.denies.get("via", frozenset()):
            return False
        return "via" not in self.allows or passed <= self.allows["via"]


def wish_of(terms: tuple[str, ...]) -> Wish:
    """The wish that terms such as `DE`, `-EU` or `operator:acme` are meant to express."""
    allows: dict[str, set[str]] = {}
    denies: dict[str, set[str]] = {}
    for term in terms:
        if term == "any":
            continue
        side = denies if term[0] == "-" else allows
        name, _, value = term.lstrip("-").rpartition(":")
        values = {value}
        if name in ("", "via"):
            values = GROUPS.get(value, {value})
        side.setdefault(name or "place", set()).update(values)
    return Wish(
        anywhere="any" in terms,
        allows={name: frozenset(values) for name, values in allows.items()},
        denies={name: frozenset(values) for name, values in denies.items()},
    )


@dataclass(frozen=True, kw_only=True)
class Journey:
    """Where a request came to: `entered`, the sites that were `asked`, and which of them `served`.
    `remembered`: the ingress kept its prefix. `reference`: its record says the client's own id."""

    entered: bool
    asked: tuple[SiteName, ...] = ()
    served: SiteName | None = None
    remembered: bool = False
    reference: bool = False


def travel(
    ingress: RoutingTable, others: Mapping[SiteName, RoutingTable], loads: Loads,
    *, policy_id: PolicyId, narrowing: Narrowing | None, dead: frozenset[SiteName], now_ns: int,
    rng: Random,
) -> Journey:
    """One request as a gateway treats it, with three tries; `dead` sites fail every try."""
    own = ingress.view.own_site
    if not isinstance(ingress.transit_allows(policy_id, narrowing), Admitted):
        return Journey(entered=False)
    standing = ingress.standing(policy_id, narrowing)
    asked: list[SiteName] = []
    tried: list[Refused] = []
    served = None
    prefixes = Prefixes()
    while served is None and len(tried) < 3:
        choice = choose(
            ingress, loads, prefixes, model=MODEL, policy_id=policy_id, class_="on_demand",
            prompt_tokens=100, output_tokens=100, blocks=[7], tried=tried, now_ns=now_ns, rng=rng,
            narrowing=narrowing,
        )
        if choice.site is None:
            break
        if standing.caches:
            prefixes.saw(choice.site, MODEL, [7], now_ns)
        asked.append(choice.site)
        if choice.site in dead:
            tried.append(Refused(site=choice.site, rule="unreachable", detail="dead"))
        elif choice.site == own or _accepts(others[choice.site], policy_id, narrowing):
            served = choice.site
        else:
            tried.append(Refused(site=choice.site, rule="tried_before", detail="refused"))
    return Journey(
        entered=True, asked=tuple(asked), served=served, remembered=len(prefixes) > 0,
        reference=standing.references_leave,
    )


def _accepts(table: RoutingTable, policy_id: PolicyId, narrowing: Narrowing | None) -> bool:
    """What a destination does with what travels."""
    text = "" if narrowing is None else narrowing.hop_text
    travelled = Narrowing(residency=parse_axis(text)) if text else None
    return isinstance(table.residency_allows(policy_id, travelled), Admitted)


def violations(
    journey: Journey, view: View, others: Mapping[SiteName, View], policy_id: PolicyId,
    narrowing: Narrowing | None,
) -> list[str]:
    """Everything in a journey that a policy or the request's own wish forbids."""
    found = []
    wish = narrowing or Narrowing()
    policy = view.policies[policy_id]
    own = view.sites[view.own_site]
    caches = policy.residency if policy.caches is None else policy.caches
    if journey.entered and not _all_admit(own, policy.transit, wish.transit):
        found.append(f"entered at {own.name}")
    for name in journey.asked:
        site = view.sites[name]
        if not _all_admit(site, policy.residency, caches, wish.residency):
            found.append(f"asked {name}")
        link = view.links.get(name)
        ways = [wish_of(axis) for axis in (policy.transit, wish.transit)]
        if name != own.name and not all(each.admits_link(link) for each in ways):
            found.append(f"travelled to {name}")
    if journey.served is not None and journey.served != own.name:
        there = others[journey.served]
        bound = there.policies.get(policy_id)
        site = there.sites[journey.served]
        if bound is None or not _all_admit(
            site, bound.residency, bound.caches or bound.residency, wish.residency
        ):
            found.append(f"served at {journey.served} against its own view")
    if journey.remembered and not _all_admit(own, caches, wish.residency):
        found.append(f"remembered at {own.name}")
    if journey.reference and policy.logs != UNBOUND:
        found.append("a reference left")
    return found


def _all_admit(site: Site, *axes: tuple[str, ...]) -> bool:
    return all(wish_of(axis).admits(site) for axis in axes)
