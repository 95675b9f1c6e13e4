"""A period costs the same however its usage came."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from isochrone.core.billing.charge import ChargeModel, Graduated, Package, PerUnit, Tier, Volume
from isochrone.core.billing.rate import Period, Quantity, rate
from isochrone.core.billing.sheet import (
    HOUR_NS,
    METERS,
    Adjustment,
    Facts,
    Price,
    PriceSheet,
    When,
    problems_of,
)
from isochrone.core.ids import ModelName

HOURS = 6
PERIOD = Period(begin=0, end=HOURS * HOUR_NS)
MODELS = [ModelName("a"), ModelName("b")]


@st.composite
def charges(draw: st.DrawFn) -> ChargeModel:
    price_pico = draw(st.integers(0, 10**13))
    per = draw(st.sampled_from([1, 3600, 1_000_000]))
    ends = sorted(draw(st.sets(st.integers(1, 10**7), max_size=3)))
    tiers = tuple(
        Tier(up_to=end, price_pico=draw(st.integers(0, 10**13))) for end in (*ends, None)
    )
    models: list[ChargeModel] = [
        PerUnit(price_pico=price_pico, per=per), Package(price_pico=price_pico, size=per),
        Graduated(tiers=tiers, per=per), Volume(tiers=tiers, per=per),
    ]
    return draw(st.sampled_from(models))


@st.composite
def sheets(draw: st.DrawFn) -> list[PriceSheet]:
    """One or two that follow each other, the first from the beginning."""
    begins = [0, *draw(st.lists(st.integers(1, HOURS - 1), max_size=1))]
    found = []
    for number, hour in enumerate(begins):
        meters = draw(st.sets(st.sampled_from(METERS), min_size=1))
        prices = tuple(
            Price(name=f"p{i}", when=When(meters=frozenset({meter})), charge=draw(charges()))
            for i, meter in enumerate(sorted(meters))
        )
        adjustment = Adjustment(
            name="adjusted", when=When(models=frozenset(MODELS[:1])),
            basis_points=draw(st.integers(-10_000, 20_000)),
        )
        found.append(
            PriceSheet(
                id="s", version=number + 1, currency="EUR", valid_from=hour * HOUR_NS,
                prices=prices, adjustments=(adjustment,),
            )
        )
    return found


QUANTITIES = st.builds(
    Quantity,
    facts=st.builds(Facts, meter=st.sampled_from(METERS), model=st.sampled_from(MODELS)),
    hour_at=st.integers(0, HOURS - 1).map(lambda hour: hour * HOUR_NS),
    amount=st.integers(0, 10**7),
)


@st.composite
def in_pieces(draw: st.DrawFn, usage: list[Quantity]) -> list[Quantity]:
    """The same usage, cut and in another order."""
    pieces = []
    for each in usage:
        first = draw(st.integers(0, each.amount))
        pieces += [
            Quantity(facts=each.facts, hour_at=each.hour_at, amount=amount)
            for amount in (first, each.amount - first)
        ]
    return draw(st.permutations(pieces))


@given(st.data(), sheets(), st.lists(QUANTITIES, max_size=8))
def test_pieces_and_order_do_not_matter(
    data: st.DataObject, priced: list[PriceSheet], usage: list[Quantity]
) -> None:
    assert not any(problems_of(sheet) for sheet in priced)
    whole, cut = rate(usage, priced, PERIOD), rate(data.draw(in_pieces(usage)), priced, PERIOD)
    assert cut.lines == whole.lines
    assert [each for each in cut.unpriced if each.amount] == [
        each for each in whole.unpriced if each.amount
    ]


@given(sheets(), st.lists(QUANTITIES, max_size=8))
def test_all_usage_is_in_a_line_or_told(priced: list[PriceSheet], usage: list[Quantity]) -> None:
    rated = rate(usage, priced, PERIOD)
    there = sum(line.quantity for line in rated.lines)
    assert there + sum(each.amount for each in rated.unpriced) == sum(each.amount for each in usage)
    assert all(line.amount_pico >= 0 for line in rated.lines)


@given(sheets(), st.lists(QUANTITIES, max_size=8))
def test_lines_differ_from_the_exact_amount_by_half_a_pico_each(
    priced: list[PriceSheet], usage: list[Quantity]
) -> None:
    sheet = priced[0]
    rated = rate(usage, [sheet], PERIOD)
    exact = Fraction(0)
    for price in sheet.prices:
        parts = [each for each in usage if sheet.price_of(each.facts) is price]
        whole = sum(each.amount for each in parts)
        for each in parts:
            share = price.charge.of(whole) * each.amount / whole if whole else Fraction(0)
            for adjustment in sheet.adjustments:
                if adjustment.when.fits(each.facts):
                    share = share * (10_000 + adjustment.basis_points) / 10_000
            exact += share
    assert abs(rated.total_pico - exact) <= Fraction(len(rated.lines), 2)
