"""What is remembered of requests that narrow: bounded, and apart from everybody else's."""

import sys
import tracemalloc
from dataclasses import replace

import pytest

from isochrone.core.ids import ModelName, OrgId, PolicyId
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.routing.table import LISTINGS_KEPT, NARROWED_KEPT, compile_table
from isochrone.core.world.site import Link
from isochrone.gateway.models_route import allowed_models
from isochrone.gateway.narrowing import MOST_BYTES, Narrowings
from isochrone.gateway.narrowing import MOST_KEPT as HEADERS_KEPT
from isochrone.gateway.replies import Refusal
from isochrone.gateway.salts import MOST_KEPT, MOST_WISHES, Salts
from tests.builders import MODEL, a_model, a_policy, a_site, a_view, some_blocs

SITES = [a_site("sydney", "AU"), a_site("frankfurt", "DE"), a_site("ashburn", "US")]
RTT_MS = {"frankfurt": 290.0, "ashburn": 206.0}
DE = a_policy("de", ("DE",), ("DE",))


def test_what_is_remembered_of_invented_wishes_is_bounded_and_displaces_nobody_else() -> None:
    """docs/residency.md, cost: a client may send another header with each request."""
    table, anywhere = compile_table(a_view([a_site("here")]), some_blocs()), PolicyId("anywhere")
    before = table.standing(anywhere), table.listing(MODEL, anywhere)
    invented = range(LISTINGS_KEPT + 2 * NARROWED_KEPT)
    wishes = [Narrowing(residency=("any", f"-site:s{number}")) for number in invented]
    held = max(sys.getrefcount(wish) for wish in wishes)
    for wish in wishes:
        assert table.standing(anywhere, wish).caches
        table.listing(MODEL, anywhere, wish)
    assert sum(sys.getrefcount(wish) > held for wish in wishes) <= NARROWED_KEPT
    assert table.standing(anywhere) is before[0]
    assert table.listing(MODEL, anywhere) is before[1]


def test_salts_of_invented_wishes_are_bounded_and_displace_nobody_else() -> None:
    salts, org, policy = Salts(b"secret"), OrgId("org"), PolicyId("anywhere")
    plain = salts.of_sessions(org, MODEL, policy, "")
    texts = [f"any,-site:s{number}\nany" for number in range(MOST_KEPT + 10)]
    held = max(sys.getrefcount(text) for text in texts)
    first = [salts.of_sessions(org, MODEL, policy, text) for text in texts]
    assert sum(sys.getrefcount(text) > held for text in texts) <= MOST_WISHES
    assert ("sessions", org, MODEL, policy, "") in salts._numbers
    assert salts.of_sessions(org, MODEL, policy, "") == plain
    assert [salts.of_sessions(org, MODEL, policy, text) for text in texts[:3]] == first[:3]
    assert len({plain, *first}) == 1 + len(first)


@pytest.mark.parametrize("wish", [
    None, Narrowing(residency=("DE",)), Narrowing(residency=("any", "-DE")),
    Narrowing(transit=("any", "via:FR")), Narrowing(residency=("US", "AU"), transit=("any", "-DE")),
])
def test_models_are_listed_without_a_choice_for_each(wish: Narrowing | None) -> None:
    """Of hundreds of models a client with a new wish would keep the gateway from all else."""
    view = a_view(SITES, rtt_ms=RTT_MS, policies=[DE])
    names = {ModelName(f"m{number}"): number for number in range(8)}
    view = replace(
        view, models={name: a_model(name) for name in names},
        deployments={
            name: frozenset(
                site for bit, site in enumerate(view.sites) if number >> bit & 1
            ) for name, number in names.items()
        },
    )
    table, other = compile_table(view, some_blocs()), compile_table(view, some_blocs())
    for policy_id in (PolicyId("anywhere"), DE.id, PolicyId("unknown")):
        listed = [each.name for each in allowed_models(table, policy_id, wish)]
        assert listed == [
            name for name in names if other.listing(name, policy_id, wish).shortlist.allowed_exists
        ]
    assert (table.listings, table.narrowed, table.shortlists, table.refusals) == ({}, {}, {}, {})


def test_whether_a_site_may_be_tried_again_is_also_asked_of_the_way_there() -> None:
    """One that is reached without a hop has nobody else who asks, while a request waits for it."""
    by_land = replace(a_policy("by-land", ("AU", "DE")), transit=("any", "via:AU", "via:DE"))
    link = Link(peer=SITES[1].name, rtt_ms=9.0, source="stated", via=("AU", "DE"))
    view = a_view(SITES, policies=[by_land])
    for via, may in ((("AU", "DE"), True), (("AU", "US", "DE"), False), (None, False)):
        links = {SITES[1].name: replace(link, via=via)}
        table = compile_table(replace(view, links=links), some_blocs())
        assert table.may_process(SITES[1].name, by_land.id) == may
        assert table.may_process(SITES[0].name, by_land.id), "to itself it needs no way"
        wish = Narrowing(transit=("any", "via:AU", "via:DE"))
        assert table.may_process(SITES[1].name, PolicyId("anywhere"), wish) == may


def test_headers_that_are_too_large_are_refused_and_not_kept() -> None:
    narrowings, blocs, name = Narrowings(), some_blocs(), b"x-isochrone-residency"
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(HEADERS_KEPT):
        large = b"site:%d," % number + b"a" * 30_000
        assert isinstance(narrowings.of({name: large}, blocs), Refusal)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept < HEADERS_KEPT * MOST_BYTES
    assert narrowings.of({name: b"DE"}, blocs) == Narrowing(residency=("DE",), transit=("any",))
