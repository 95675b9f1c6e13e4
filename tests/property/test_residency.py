"""Residency holds: exhaustively on small worlds, and on large random ones whose gateways disagree.

`RESIDENCY_REQUESTS=1000000` makes the random part long.
"""

import os
from dataclasses import replace
from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.ids import PolicyId, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.residency.rule import (
    Admitted,
    admits,
    admits_link,
    check_axis,
    parse_axis,
    render_axis,
)
from isochrone.core.residency.site_sets import SiteSets
from isochrone.core.rng import Random, stream
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.table import RoutingTable
from isochrone.core.world.site import Link, Site
from isochrone.core.world.tenant import Policy
from isochrone.core.world.view import View
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_digest,
    a_policy,
    a_site,
    a_table,
    a_view,
    idle_loads,
    some_blocs,
)
from tests.property.residency_worlds import travel, violations, wish_of

QUICK = settings(max_examples=100)
BLOCS = some_blocs()
REQUESTS = int(os.environ.get("RESIDENCY_REQUESTS", "4000"))

PLACES = (None, "DE", "FR", "US", "XX")
TERMS = (
    "any", "DE", "EU", "-FR", "-EEA", "operator:acme", "operator:beta", "-operator:acme",
    "parent:big", "-parent:big", "site:s0", "-site:s1", "via:DE", "-via:US",
)
AXES = [axis for size in range(4) for axis in combinations(TERMS, size)]


def stating(
    name: str, country: str | None, operator: str | None = "acme", parent: str | None = None
) -> Site:
    return replace(a_site(name, country), operator=operator, parent=parent)


def test_the_rule_and_its_bit_sets_agree_with_a_second_reading_on_every_small_case() -> None:
    sites = [
        stating(f"s{number}", *stated)
        for number, stated in enumerate(
            product(PLACES, (None, "acme", "beta"), (None, "big", "small"))
        )
    ]
    sets = SiteSets(sites, {}, SiteName("nowhere"), BLOCS)
    for axis in AXES:
        expected = {site.name for site in sites if wish_of(axis).admits(site)}
        ruled = {site.name for site in sites if isinstance(admits(axis, site, BLOCS), Admitted)}
        compiled = {name for name, bit in sets.bit_of.items() if sets.admitted(axis) & bit}
        assert ruled == compiled == expected, axis


def test_links_are_judged_alike_on_every_small_case() -> None:
    ways = [None, (), ("DE",), ("DE", "FR"), ("DE", "US"), ("DE", "XX"), ("AU",)]
    sites = [a_site(f"s{number}") for number in range(len(ways) + 2)]
    links = {
        site.name: Link(peer=site.name, rtt_ms=1.0, source="stated", via=via)
        for site, via in zip(sites, ways, strict=False)
    }
    own = sites[-1].name  # the one before it has no link at all
    sets = SiteSets(sites, links, own, BLOCS)
    for axis in AXES:
        expected = {
            site.name for site in sites
            if site.name == own or wish_of(axis).admits_link(links.get(site.name))
        }
        ruled = {
            site.name for site in sites
            if site.name == own
            or isinstance(admits_link(axis, links.get(site.name), BLOCS), Admitted)
        }
        compiled = {name for name, bit in sets.bit_of.items() if sets.reached(axis) & bit}
        assert ruled == compiled == expected, axis


POLICIES = (
    a_policy("eu", ("EU",)),
    a_policy("closed", ("DE",), ("DE",)),
    a_policy("not-fr", ("-FR", "any"), ("-US", "any")),
    a_policy("acme", ("EEA", "operator:acme")),
    a_policy("not-big", ("-parent:big", "EU")),
    replace(a_policy("cached", ("EU",)), caches=("DE",), logs=("DE",)),
    replace(a_policy("wide-caches", ("DE",)), caches=("any",)),
    a_policy("by-land", ("EU",), ("any", "via:EU")),
)
NARROWINGS = (
    None,
    Narrowing(residency=("DE",)),
    Narrowing(residency=("-operator:acme", "any")),
    Narrowing(residency=("US",)),  # beyond most of the policies
    Narrowing(transit=("FR",)),
    Narrowing(residency=("EU",), transit=("any", "via:DE")),
)


def test_no_journey_through_a_small_world_is_a_violation() -> None:
    journeys = 0
    stated = (
        ("DE", "acme", None), ("FR", "beta", "big"), ("US", "acme", "big"), (None, None, None),
    )
    for kinds in product(stated, repeat=3):
        sites = [stating(f"s{number}", *kind) for number, kind in enumerate(kinds)]
        view = replace(a_view(sites, policies=POLICIES), links=stated_links(sites))
        views = {site.name: replace(view, own_site=site.name) for site in sites}
        tables = {name: a_table(each) for name, each in views.items()}
        loads, rng = idle_loads(view), stream(1, "journeys")
        for policy, narrowing in product(POLICIES, NARROWINGS):
            for size in range(3):
                for dead in combinations(views, size):
                    journey = travel(
                        tables[view.own_site], tables, loads, policy_id=policy.id,
                        narrowing=narrowing, dead=frozenset(dead), now_ns=0, rng=rng,
                    )
                    assert violations(journey, view, views, policy.id, narrowing) == []
                    allowed = eligible(view, policy, narrowing) - set(dead)
                    assert (journey.served is not None) == (journey.entered and bool(allowed))
                    journeys += 1
    assert journeys == 4**3 * len(POLICIES) * len(NARROWINGS) * 7


def stated_links(sites: list[Site]) -> dict[SiteName, Link]:
    """From the first site; each passes the countries of its ends, unless one states none."""
    own, *others = sites
    links = {}
    for site in others:
        ends = {own.country, site.country}
        via = tuple(sorted(end for end in ends if end is not None))
        links[site.name] = Link(
            peer=site.name, rtt_ms=10.0, source="stated", via=None if None in ends else via
        )
    return links


def eligible(view: View, policy: Policy, narrowing: Narrowing | None) -> set[SiteName]:
    """Sites that the second reading lets serve a request that was let in."""
    wish = narrowing or Narrowing()
    axes = (policy.residency, policy.caches or policy.residency, wish.residency)
    ways = (wish_of(policy.transit), wish_of(wish.transit))
    return {
        name for name, site in view.sites.items()
        if all(wish_of(axis).admits(site) for axis in axes)
        and (
            name == view.own_site
            or all(way.admits_link(view.links.get(name)) for way in ways)
        )
    }


# -- large and random ------------------------------------------------------------------------------


def an_axis(rng: Random, sites: int, *, via: bool = False) -> tuple[str, ...]:
    """A usable axis; wide more often than narrow."""
    if rng.random() < 0.2:
        return ("any",)
    terms = {"any"} if rng.random() < 0.3 else set()
    if not terms:
        places = ["DE", "FR", "NO", "US", "EU", "EEA", "AU"]
        terms = set(rng.sample(places, rng.randint(1, 4)))
        if rng.random() < 0.3:
            terms.add(rng.choice(["operator:acme", "operator:beta", "parent:big"]))
    denials = ["-FR", "-EU", "-operator:beta", "-parent:big", f"-site:s{rng.randrange(sites)}"]
    if rng.random() < 0.4:
        terms.add(rng.choice(denials))
    if via and rng.random() < 0.3:
        terms.add(rng.choice(["via:EEA", "-via:US"]))
    return tuple(sorted(terms))


def a_random_view(rng: Random, *, sites: int, policies: int) -> View:
    """What one gateway may know; some attributes and links are not stated."""
    nouns = [
        stating(
            f"s{number}", rng.choice(["DE", "FR", "NO", "US", "AU", None, "XX"]),
            rng.choice(["acme", "beta", None]), rng.choice(["big", "small", None]),
        )
        for number in range(sites)
    ]
    links = {
        site.name: Link(
            peer=site.name, rtt_ms=rng.uniform(1, 200), source="probed",
            via=rng.choice([None, ("DE",), ("DE", "FR"), ("FR", "US"), ("NO",)]),
        )
        for site in nouns if rng.random() < 0.9
    }
    bound = [
        Policy(
            id=PolicyId(f"p{number}"), org_id=a_policy().org_id, residency=an_axis(rng, sites),
            transit=an_axis(rng, sites, via=True),
            caches=an_axis(rng, sites) if rng.random() < 0.3 else None,
            logs=an_axis(rng, sites),
        )
        for number in range(policies)
    ]
    serving = [site.name for site in nouns if rng.random() < 0.8] or [nouns[0].name]
    return replace(a_view(nouns, policies=bound, serving=serving), links=links)


def changed(rng: Random, view: View) -> View:
    """The same cloud a moment later: places corrected, policies replaced or revoked."""
    sites = {
        name: replace(site, country=rng.choice(["DE", "US", None]))
        if rng.random() < 0.2 else site
        for name, site in view.sites.items()
    }
    policies = {
        policy_id: replace(policy, residency=an_axis(rng, len(sites)))
        if rng.random() < 0.3 else policy
        for policy_id, policy in view.policies.items() if rng.random() < 0.9
    }
    return replace(view, sites=sites, policies=policies)


def random_epoch(seed: int, count: int) -> tuple[int, list[str]]:
    """`count` requests in one random cloud, some of whose gateways know an older view than others.
    How many were served, and every violation."""
    rng = stream(seed, "residency")
    old = a_random_view(rng, sites=24, policies=8)
    new = changed(rng, old)
    views = {
        name: replace(new if rng.random() < 0.5 else old, own_site=name) for name in old.sites
    }
    tables: dict[SiteName, RoutingTable] = {name: a_table(view) for name, view in views.items()}
    ingresses = rng.sample(sorted(views), 3)
    loads = {name: idle_loads(old) for name in ingresses}
    narrowings = [None, None] + [
        Narrowing(residency=an_axis(rng, 24), transit=an_axis(rng, 24, via=True))
        for _ in range(6)
    ]
    served, found = 0, []
    for number in range(count):
        ingress = rng.choice(ingresses)
        policy_id = rng.choice(sorted(views[ingress].policies))
        narrowing = rng.choice(narrowings)
        dead = frozenset(rng.sample(sorted(views), rng.choice([0, 2, 12, 20])))
        disturb(rng, loads[ingress], sorted(views), number)
        journey = travel(
            tables[ingress], tables, loads[ingress], policy_id=policy_id, narrowing=narrowing,
            dead=dead, now_ns=number, rng=rng,
        )
        served += journey.served is not None
        found += [
            f"seed {seed}, request {number}: {each}"
            for each in violations(journey, views[ingress], views, policy_id, narrowing)
        ]
    return served, found


def disturb(rng: Random, loads: Loads, names: list[SiteName], number: int) -> None:
    """Sites are lost and heard of again, and get work."""
    name = rng.choice(names)
    draw = rng.random()
    if draw < 0.05:
        loads.lost(name, number)
    elif draw < 0.2:
        loads.heard(a_digest(name, epoch=number + 2), number + 120 * SECOND_NS)
    elif draw < 0.4:
        loads.dispatched(name, MODEL, rng.randrange(5000), 100, number)


def test_no_journey_through_a_large_world_is_a_violation() -> None:
    served, seed, left = 0, 0, REQUESTS
    while left > 0:
        count = min(left, 500)
        done, found = random_epoch(seed, count)
        assert found == []
        served += done
        left -= count
        seed += 1
    assert served > REQUESTS // 10, "a world where nothing is served proves nothing"


# -- narrowing, and the text of axes ---------------------------------------------------------------


@QUICK
@given(st.integers(0, 2**32), st.data())
def test_a_header_never_widens(seed: int, data: st.DataObject) -> None:
    rng = stream(seed, "narrowing")
    view = a_random_view(rng, sites=6, policies=3)
    table = a_table(view)
    policy_id = data.draw(st.sampled_from(sorted(view.policies)))
    narrowing = Narrowing(
        residency=data.draw(st.sampled_from(AXES)), transit=data.draw(st.sampled_from(AXES))
    )
    free = {site.name for site in table.shortlist(MODEL, policy_id).open_sites}
    bound = {site.name for site in table.shortlist(MODEL, policy_id, narrowing).open_sites}
    assert bound <= free
    assert set(table.allowed_ingresses(policy_id, narrowing)) <= set(
        table.allowed_ingresses(policy_id)
    )
    for name in view.sites:
        own = a_table(replace(view, own_site=name))
        for may in (own.residency_allows, own.transit_allows):
            if isinstance(may(policy_id, narrowing), Admitted):
                assert isinstance(may(policy_id), Admitted)
        wide, narrow = own.standing(policy_id), own.standing(policy_id, narrowing)
        assert wide.caches or not narrow.caches
        assert (wide.logs, wide.references_leave) == (narrow.logs, narrow.references_leave)


@QUICK
@given(st.lists(st.sampled_from([term for term in TERMS if "site" not in term]), unique=True))
def test_canonical_terms_stay_as_they_are(terms: list[str]) -> None:
    axis = tuple(terms)
    assert parse_axis(render_axis(axis) if axis else "") == axis


@QUICK
@given(st.text(max_size=40))
def test_any_text_is_read_once_and_for_all(text: str) -> None:
    axis = parse_axis(text)
    assert parse_axis(",".join(axis)) == axis
    if not check_axis(axis, BLOCS, links=True):
        assert wish_of(axis).anywhere or wish_of(axis).allows
    admits(axis, a_site(), BLOCS)
