"""Where clients are sent: never to an unhealthy or forbidden ingress, always to a nearest one, and
never under a scope that holds for others than it says."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.estimate.round_trip import (
    DistanceRtt,
    Position,
    distance_rtt_ms,
    great_circle_km,
)
from isochrone.core.ids import SiteName
from isochrone.core.residency.rule import Admitted, admits
from isochrone.core.rng import stream
from isochrone.core.steering.ingress import Ingress, IngressMap
from isochrone.core.steering.place import (
    NOWHERE,
    WIDTH_BITS,
    AtSite,
    Family,
    Place,
    Places,
    Subnet,
)
from isochrone.core.steering.reach import BLIND_FROM_SITES, FAILURES, SUCCESSES, Reach, unreachable
from isochrone.core.steering.steer import (
    Steering,
    Ties,
    Unbound,
    Unfit,
    left_out,
    openings_of,
    steer,
    unfitness,
)
from tests.builders import some_blocs

BLOCS = some_blocs()
BANDS = (
    DistanceRtt(km=100.0, rtt_ms=8.0), DistanceRtt(km=1000.0, rtt_ms=30.0),
    DistanceRtt(km=10_000.0, rtt_ms=190.0),
)
SPAN_BITS = 6  # addresses of the small world differ in their first bits only

positions = st.builds(
    Position, latitude_deg=st.floats(-90, 90), longitude_deg=st.floats(-180, 180)
)
countries = st.sampled_from([None, "DE", "FR", "US", "AU", "NA", "ZZ"])
axes = st.sampled_from(
    [("any",), ("DE",), ("EU",), ("DE", "US"), ("EEA", "AU"), ("ZZ",), ()]
)
unfits = st.sampled_from(
    [None, Unfit(rule="digest_stale", detail="old"), Unfit(rule="unreachable", detail="silent")]
)


@st.composite
def ingresses(draw: st.DrawFn) -> list[Ingress]:
    count = draw(st.integers(0, 8))
    return [
        Ingress(
            site=SiteName(f"site-{number}"), country=draw(countries), position=draw(positions),
            joined=draw(st.integers(0, 4)) > 0, draining=draw(st.integers(0, 4)) == 0,
            ipv4=(bytes([192, 0, 2, number]),) if draw(st.integers(0, 4)) else (),
            ipv6=(bytes(15) + bytes([number]),) if draw(st.booleans()) else (),
        )
        for number in range(count)
    ]


@st.composite
def steerings(draw: st.DrawFn) -> tuple[Steering, Mapping[SiteName, Unfit], Ties, int]:
    found = draw(ingresses())
    names = [each.site for each in found]
    unfit = {
        name: why for name in names for why in (draw(unfits),) if why is not None
    }
    links = {
        name: {peer: draw(st.floats(0, 300)) for peer in names if draw(st.booleans())}
        for name in names[:2]
    }
    entry = draw(
        st.one_of(axes, st.just(Unbound(rule="policy_unknown", detail="no such policy")))
    )
    place: Place = draw(
        st.one_of(
            positions, st.just(NOWHERE),
            st.builds(AtSite, site=st.sampled_from([*names, SiteName("elsewhere")])),
        )
    )
    ties = Ties(ms=draw(st.floats(0, 50)), share=draw(st.floats(0, 0.5)))
    most = draw(st.integers(1, 4))
    family: Family = draw(st.sampled_from([4, 6]))
    openings = openings_of(IngressMap(found, links, BANDS), entry, unfit, BLOCS)
    rng = stream(draw(st.integers(0, 1000)), "steer")
    return steer(openings, place, family, most=most, ties=ties, rng=rng), unfit, ties, most


def may_have(steering: Steering, ingress: Ingress, unfit: Mapping[SiteName, Unfit]) -> bool:
    """What the rules say of one ingress, asked of the rules themselves."""
    entry = steering.openings.binding
    return (
        not isinstance(entry, Unbound)
        and isinstance(admits(entry, ingress, BLOCS), Admitted)
        and unfitness(ingress, unfit) is None
    )


@given(steerings())
@settings(max_examples=600)
def test_nobody_is_sent_to_a_forbidden_or_unhealthy_ingress(
    case: tuple[Steering, Mapping[SiteName, Unfit], Ties, int],
) -> None:
    steering, unfit, _, most = case
    for each in steering.chosen:
        ingress = each.ingress
        assert may_have(steering, ingress, unfit)
        assert ingress.joined
        assert not ingress.draining
        assert ingress.site not in unfit
        assert ingress.addresses(steering.family)
    assert len({each.ingress.site for each in steering.chosen}) == len(steering.chosen) <= most


@given(steerings())
@settings(max_examples=600)
def test_the_nearest_that_may_have_them_get_them(
    case: tuple[Steering, Mapping[SiteName, Unfit], Ties, int],
) -> None:
    steering, unfit, ties, most = case
    ingress_map = steering.openings.map
    rtt_ms = ingress_map.rtt_ms(steering.place)
    able = [
        (float(rtt_ms[number]), ingress)
        for number, ingress in enumerate(ingress_map.ingresses)
        if may_have(steering, ingress, unfit) and ingress.addresses(steering.family)
    ]
    assert bool(steering.chosen) == bool(able) == (steering.outcome == "served")
    if not able:
        return
    nearest_ms = min(ms for ms, _ in able)
    within_ms = nearest_ms + max(ties.ms, ties.share * nearest_ms)
    assert all(each.rtt_ms <= within_ms for each in steering.chosen)
    near = sum(ms <= within_ms for ms, _ in able)
    assert len(steering.chosen) == min(most, near)


@given(steerings())
def test_everybody_else_is_told_why_not(
    case: tuple[Steering, Mapping[SiteName, Unfit], Ties, int],
) -> None:
    steering, unfit, _, _ = case
    chosen = {each.ingress.site for each in steering.chosen}
    refused = left_out(steering)
    by_site = {each.site: each for each in refused}
    sites = {each.site for each in steering.openings.map.ingresses}
    assert len(by_site) == len(refused)
    assert by_site.keys() | chosen == sites
    assert by_site.keys() & chosen == set()
    for ingress in steering.openings.map.ingresses:
        if ingress.site in by_site:
            able = may_have(steering, ingress, unfit)
            lasting = by_site[ingress.site].rule not in ("farther", "not_drawn", "no_address")
            assert able != lasting
    if steering.outcome == "none_allowed":
        assert all(
            each.rule in ("transit", "attribute_missing", "policy_unknown", "not_joined")
            for each in refused
        )


@given(st.lists(positions, min_size=1, max_size=6), positions)
def test_round_trips_are_those_of_the_estimate(sites: list[Position], client: Position) -> None:
    found = [
        Ingress(
            site=SiteName(f"s{number}"), country=None, position=each, joined=True, draining=False,
            ipv4=(), ipv6=(),
        )
        for number, each in enumerate(sites)
    ]
    rtt_ms = IngressMap(found, {}, BANDS).rtt_ms(client)
    for ms, site in zip(rtt_ms, sites, strict=True):
        assert ms == pytest.approx(distance_rtt_ms(great_circle_km(client, site), BANDS), abs=1e-6)


# -- subnets -------------------------------------------------------------------------------------


def a_subnet(family: Family, value: int, length: int) -> Subnet:
    """A subnet of the small world: `value` are its first bits."""
    width = WIDTH_BITS[family]
    bits = value << (width - SPAN_BITS)
    return Subnet(family=family, bits=bits, length=width).within(length)


small_subnets = st.builds(
    a_subnet, st.sampled_from([4, 6]), st.integers(0, 2**SPAN_BITS - 1), st.integers(0, SPAN_BITS)
)


def holds(subnet: Subnet, other: Subnet) -> bool:
    return (
        subnet.family == other.family
        and subnet.length <= other.length
        and other.within(subnet.length) == subnet
    )


def longest(told: Mapping[Subnet, Place], client: Subnet) -> Subnet | None:
    """The longest subnet that holds all of the client's block, by looking at every one."""
    return max(
        (subnet for subnet in told if holds(subnet, client)),
        key=lambda subnet: subnet.length, default=None,
    )


def a_place(number: int) -> Place:
    return AtSite(site=SiteName(f"site-{number}"))


@given(st.lists(small_subnets, max_size=12), small_subnets)
@settings(max_examples=1000)
def test_the_longest_subnet_counts(subnets: list[Subnet], client: Subnet) -> None:
    entries = [(subnet, a_place(number)) for number, subnet in enumerate(subnets)]
    told = dict(entries)
    found = Places(entries, unknown=NOWHERE).find(client)
    expected = longest(told, client)
    assert found.subnet == expected
    assert found.place == (NOWHERE if expected is None else told[expected])


@given(st.lists(small_subnets, max_size=12), small_subnets)
@settings(max_examples=1000)
def test_the_scope_holds_for_all_of_its_block_and_is_no_longer_than_needed(
    subnets: list[Subnet], client: Subnet
) -> None:
    told = {subnet: a_place(number) for number, subnet in enumerate(subnets)}
    found = Places(told.items()).find(client)

    def uniform(length: int) -> bool:
        """Whether all addresses around the client's first one are matched alike."""
        width = WIDTH_BITS[client.family]
        address = Subnet(family=client.family, bits=client.bits, length=width)
        block = address.within(length)
        every = [a_subnet(client.family, value, SPAN_BITS) for value in range(2**SPAN_BITS)]
        inside = [each for each in every if holds(block, each)]
        return len({longest(told, each) for each in inside}) <= 1

    matched = 0 if found.subnet is None else found.subnet.length
    assert found.scope >= matched
    if found.scope <= client.length:
        assert uniform(found.scope)
        assert found.scope == matched or not uniform(found.scope - 1)
    else:
        assert not uniform(client.length), "the client's block would have been enough"


@given(st.lists(small_subnets, max_size=8), small_subnets)
def test_the_later_of_two_entries_counts(subnets: list[Subnet], client: Subnet) -> None:
    first = [(subnet, a_place(1)) for subnet in subnets]
    second = [(subnet, a_place(2)) for subnet in subnets]
    found = Places([*first, *second]).find(client)
    assert found.place == (NOWHERE if found.subnet is None else a_place(2))


# -- reach ---------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_an_ingress_is_turned_round_by_a_row_of_probes_only(probes: list[bool]) -> None:
    reach = Reach()
    for number, answered in enumerate(probes):
        before, reach = reach, reach.probed(answered)
        if number == 0:
            assert reach.answers == answered
        elif reach.answers != before.answers:
            needed = SUCCESSES if answered else FAILURES
            row = probes[max(0, number + 1 - needed) : number + 1]
            assert row == [answered] * needed


@given(st.lists(st.booleans(), max_size=8))
def test_silence_of_all_is_our_own(answers: list[bool]) -> None:
    reaches = {
        SiteName(f"s{number}"): Reach(answers=each) for number, each in enumerate(answers)
    }
    silent = {site for site, reach in reaches.items() if not reach.answers}
    if len(silent) == len(answers) >= BLIND_FROM_SITES:
        assert unreachable(reaches) == set()
    else:
        assert unreachable(reaches) == silent
