"""What a request costs at a gateway is what the book makes of it, and never less where it depends
on the quantity of the period."""

from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.billing.charge import Graduated, PerUnit, Tier
from isochrone.core.billing.rate import Period, Quantity, rate
from isochrone.core.billing.sheet import Adjustment, Facts, Fee, Meter, Price, PriceSheet, When
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.limits.rate_card import (
    MOST_TOLD,
    card_in_force,
    card_of,
    cards_of,
    dearest_rates,
    rates_of,
)
from isochrone.core.limits.terms import MOST_AMOUNT
from isochrone.core.metering.event import Tokens
from isochrone.core.world.tenant import Class

TINY, PARIS = ModelName("tiny"), SiteName("paris")
SHEET = PriceSheet(
    id="s", version=1, currency="EUR", valid_from=0,
    prices=(
        Price(
            name="cached", when=When(meters=frozenset(("input_cached_tokens",))),
            charge=PerUnit(price_pico=75_000),
        ),
        Price(
            name="paris", when=When(sites=frozenset((PARIS,)), meters=frozenset(
                ("input_uncached_tokens", "output_tokens"))),
            charge=PerUnit(price_pico=600_001, per=7),
        ),
        Price(
            name="others",
            when=When(meters=frozenset(("input_uncached_tokens", "output_tokens"))),
            charge=Graduated(tiers=(Tier(up_to=10, price_pico=9), Tier(up_to=None, price_pico=5))),
        ),
        Price(
            name="gpu", when=When(meters=frozenset(("gpu_seconds",))),
            charge=PerUnit(price_pico=10**12),
        ),
    ),
    adjustments=(
        Adjustment(name="batch", when=When(classes=frozenset(("batch",))), basis_points=-5_000),
        Adjustment(name="bound", when=When(bound=True), basis_points=2_000),
    ),
    fees=(Fee(name="service", of=frozenset(("paris",)), basis_points=300),),
)
MONTH = Period(begin=0, end=10**18)


@given(
    uncached=st.integers(0, 10**6), cached=st.integers(0, 10**6), output=st.integers(0, 10**6),
    class_=st.sampled_from(("on_demand", "batch")), bound=st.booleans(),
)
def test_it_is_what_the_sheet_makes_of_one_request(
    uncached: int, cached: int, output: int, class_: Class, bound: bool
) -> None:
    tokens = Tokens(
        input_uncached=uncached, input_cached=cached, output=output, source="engine"
    )
    card = card_of(SHEET)
    amounts: dict[Meter, int] = {
        "input_uncached_tokens": uncached, "input_cached_tokens": cached, "output_tokens": output,
        "requests": 1,
    }
    for site in (PARIS, SiteName("oslo")):
        usage = [
            Quantity(
                facts=Facts(meter=meter, model=TINY, class_=class_, site=site, bound=bound),
                hour_at=0, amount=amount,
            )
            for meter, amount in amounts.items()
        ]
        exact = rate(usage, [SHEET], MONTH).total_pico
        cost = rates_of(card, TINY, class_, site, bound).of(tokens)
        if site == PARIS:
            assert abs(cost - exact) <= 4, "each line is rounded by itself"
        else:
            assert cost >= exact - 4, "tiers: the dearest"
        most = dearest_rates(card, TINY, ("on_demand", "batch")).at_most(
            uncached + cached, output
        )
        assert most >= cost


def test_the_card_in_force_is_that_of_the_hour() -> None:
    cards = [card_of(SHEET)]
    assert card_in_force(cards, -1) is None
    assert card_in_force(cards, 5) is cards[0]
    assert rates_of(cards[0], "other", "on_demand", "", False).of(Tokens(output=10)) == 90


def _flat(price_pico: int, per: int = 1, *, version: int = 1) -> PriceSheet:
    price = Price(
        name="all", when=When(meters=frozenset(("output_tokens",))),
        charge=PerUnit(price_pico=price_pico, per=per),
    )
    return replace(SHEET, version=version, prices=(price,), adjustments=(), fees=())


def test_a_version_that_another_replaced_at_its_instant_has_no_card() -> None:
    later = replace(_flat(7), valid_from=10)
    for sheets in ([_flat(3), _flat(5, version=2), later], [_flat(5, version=2), _flat(3), later]):
        cards = cards_of(sheets, since=0)
        assert [(each.valid_from, each.prices[0].price_pico) for each in cards] == [(0, 5), (10, 7)]


def test_cards_of_sheets_that_price_nothing_any_more_are_not_told() -> None:
    """A cloud that changes its prices each hour would tell more than a message holds."""
    sheets = [replace(_flat(at + 1, version=at + 1), valid_from=at) for at in range(1000)]
    cards = cards_of(sheets, since=997)
    assert [each.valid_from for each in cards] == [997, 998, 999]
    assert [each.valid_from for each in cards_of(sheets, since=5_000)] == [999]
    assert cards_of(sheets[500:], since=0) == cards_of(sheets[500:], since=499)


@given(price_pico=st.integers(0, 10**38), per=st.integers(1, 10**30))
def test_rates_fit_into_messages_and_are_never_too_cheap(price_pico: int, per: int) -> None:
    (price,) = card_of(_flat(price_pico, per)).prices
    assert 0 <= price.price_pico <= MOST_TOLD
    assert 1 <= price.per <= MOST_TOLD
    exact = Fraction(price_pico, per)
    told = Fraction(price.price_pico, price.per)
    if exact < MOST_AMOUNT:
        assert exact <= told <= exact * (1 + Fraction(1, 10**9)) + Fraction(1, 10**15)
    else:
        assert told >= MOST_AMOUNT
