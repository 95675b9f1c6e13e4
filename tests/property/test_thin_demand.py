"""What was sold is reached by demand of which each site has little: where it comes in, or where it
is served."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isochrone.core.admission.cashier import cashiers_of
from isochrone.core.ids import SiteName
from tests.fixtures.sold_cloud import ID, MS, SECOND_NS, Request, SoldCloud, an_entitlement

HOMES = ("ashburn", "frankfurt", "oslo", "sydney")
VOTERS = ("ashburn", "frankfurt", "oslo")
MANY = tuple(f"site {number}" for number in range(40))
GAP_S = 6.0  # between two requests at each of many sites
AT_FOUR = {"ashburn": 400, "frankfurt": 300, "oslo": 200, "sydney": 100}
EVERYWHERE = dict.fromkeys(MANY, 25)


def honoured_of_thin_demand(
    tok_s: dict[str, int], seed: int, *, peer_pays: bool = True, last_s: int = 120
) -> float:
    """What is honoured, of what was sold, when twice that is asked for in requests of which
    each of 40 ingresses has one in six seconds; they are served where slices are at home."""
    cloud = SoldCloud(an_entitlement(tok_s), VOTERS, seed, extra=MANY)
    cloud.pass_ms(20_000)
    sold, gap_s = cloud.entitlement.tok_s, GAP_S / len(MANY)
    mean = 2 * sold * gap_s
    began_ns = next_ns = cloud.now_ns
    measured_ns = began_ns + 20 * SECOND_NS
    end_ns = measured_ns + last_s * SECOND_NS
    requests: list[Request] = []
    while next_ns < end_ns:
        cloud.pass_ms((next_ns - cloud.now_ns) // MS)
        tokens = max(int(mean * cloud.rng.uniform(0.5, 1.5)), 1)
        (serving,) = cloud.rng.choices(HOMES, [tok_s[home] for home in HOMES])
        request = cloud.come_in(
            cloud.rng.choice(MANY), serving, tokens, peer_pays=peer_pays, cashier=False
        )
        if next_ns >= measured_ns:
            requests.append(request)
        next_ns += int(cloud.rng.expovariate(1 / gap_s) * SECOND_NS)
    assert all(cloud.usable(each) == 0 for each in MANY) or not peer_pays
    honoured = sum(each.tokens for each in requests if each.reserved)
    return honoured / (sold * (end_ns - measured_ns) / SECOND_NS)


@given(
    tok_s=st.lists(st.integers(50, 500), min_size=4, max_size=4).map(
        lambda each: dict(zip(HOMES, each, strict=True))
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=4)
def test_what_was_sold_is_reached_by_demand_that_is_thin_at_every_ingress(
    tok_s: dict[str, int], seed: int
) -> None:
    assert honoured_of_thin_demand(tok_s, seed) >= 0.9


def test_thin_demand_needs_peers_that_pay() -> None:
    assert honoured_of_thin_demand(AT_FOUR, 7, peer_pays=False, last_s=20) < 0.3
    assert honoured_of_thin_demand(AT_FOUR, 7) >= 0.9


# -- thin where it is served -----------------------------------------------------------------------


def honoured_of_asked(
    tok_s: dict[str, int], seed: int, *, cashier: bool = True, dead: SiteName | None = None,
    gap_s: float = GAP_S, answers_ms: int = 300, letter_ms: int = 50, warm_s: int = 30,
    last_s: int = 60,
) -> float:
    """What is honoured, of what is asked for, when nine tenths of what was sold are, in requests
    of which each of 40 sites serves one in six seconds that came in anywhere. The heads of answers
    go out after `answers_ms`; letters take up to `letter_ms`, so a payment twice that."""
    cloud = SoldCloud(
        an_entitlement(tok_s), tuple(sorted(tok_s)[:3]), seed,
        extra=tuple(name for name in MANY if name not in tok_s),
    )
    cloud.delay_ms = letter_ms
    cloud.pass_ms(20_000)
    if dead is not None:
        cloud.crash(dead)
    sold, gap_s = cloud.entitlement.tok_s, gap_s / len(MANY)
    next_ns = cloud.now_ns
    measured_ns = cloud.now_ns + warm_s * SECOND_NS
    end_ns = measured_ns + last_s * SECOND_NS
    requests: list[Request] = []
    stands = [name for name in MANY if name != dead]
    while next_ns < end_ns:
        cloud.pass_ms((next_ns - cloud.now_ns) // MS)
        tokens = max(int(0.9 * sold * gap_s * cloud.rng.uniform(0.5, 1.5)), 1)
        request = cloud.come_in(
            cloud.rng.choice(stands), cloud.rng.choice(stands), tokens, cashier=cashier,
            answers_ms=answers_ms, used=int(tokens * cloud.rng.uniform(0.4, 1.6)),
        )
        if next_ns >= measured_ns:
            requests.append(request)
        next_ns += int(cloud.rng.expovariate(1 / gap_s) * SECOND_NS)
    cloud.pass_ms(2_000)
    honoured = sum(each.tokens for each in requests if each.reserved)
    return honoured / sum(each.tokens for each in requests)


@pytest.mark.parametrize("tok_s", [AT_FOUR, EVERYWHERE], ids=["four homes", "forty homes"])
@given(seed=st.integers(0, 1000))
@settings(max_examples=2)
def test_what_was_sold_is_reached_by_demand_that_is_thin_wherever_it_is_served(
    tok_s: dict[str, int], seed: int
) -> None:
    assert honoured_of_asked(tok_s, seed) >= 0.9


@pytest.mark.parametrize("tok_s", [AT_FOUR, EVERYWHERE], ids=["four homes", "forty homes"])
def test_thin_demand_needs_a_cashier(tok_s: dict[str, int]) -> None:
    assert honoured_of_asked(tok_s, 7, cashier=False, last_s=30) < 0.35


def test_payments_are_soon_enough_for_engines_as_they_are() -> None:
    assert honoured_of_asked(EVERYWHERE, 7, answers_ms=200, letter_ms=50) >= 0.95
    assert honoured_of_asked(EVERYWHERE, 7, answers_ms=200, letter_ms=100) >= 0.9
    assert honoured_of_asked(EVERYWHERE, 7, answers_ms=40, letter_ms=100) < 0.5


def test_a_cashier_that_is_dead_has_a_successor() -> None:
    """Once each site has missed it, and its slices have another steward."""
    dead = cashiers_of(ID, map(SiteName, EVERYWHERE), ())[0]
    assert honoured_of_asked(EVERYWHERE, 7, dead=dead, warm_s=50) >= 0.9


def test_a_cashier_that_is_too_far_for_the_engines_is_not_waited_for() -> None:
    """Then it is as it was without: each site borrows for itself."""
    without = honoured_of_asked(AT_FOUR, 7, gap_s=1.0, cashier=False)
    far = honoured_of_asked(AT_FOUR, 7, gap_s=1.0, answers_ms=2, warm_s=90)
    assert far >= without - 0.1
