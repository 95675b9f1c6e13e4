"""Prices, charge models and the lines they make: worked examples and what is refused."""

from dataclasses import replace
from fractions import Fraction

import pytest

from isochrone.core.billing.charge import Graduated, Package, PerUnit, Tier, Volume
from isochrone.core.billing.rate import Period, Quantity, rate
from isochrone.core.billing.sheet import (
    HOUR_NS,
    Adjustment,
    Facts,
    Fee,
    Price,
    PriceSheet,
    Recurring,
    When,
    in_force,
    problems_of,
)
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.money import PICO, pico, rounded, written

MILLION = 1_000_000
DAY = 24 * HOUR_NS
MONTH = Period(begin=0, end=30 * DAY)
BIG, SMALL = ModelName("big"), ModelName("small")
SHEET = PriceSheet(
    id="list", version=1, currency="EUR", valid_from=0,
    prices=(
        Price(
            name="big input", charge=PerUnit(price_pico=pico("0.60"), per=MILLION),
            when=When(meters=frozenset({"input_uncached_tokens"}), models=frozenset({BIG})),
        ),
        Price(
            name="cached input", charge=PerUnit(price_pico=pico("0.06"), per=MILLION),
            when=When(meters=frozenset({"input_cached_tokens"})),
        ),
        Price(
            name="output", when=When(meters=frozenset({"output_tokens"})),
            charge=Graduated(
                per=MILLION,
                tiers=(
                    Tier(up_to=10 * MILLION, price_pico=pico("2")),
                    Tier(up_to=None, price_pico=pico("1.5")),
                ),
            ),
        ),
        Price(
            name="gpu hour", charge=PerUnit(price_pico=pico("2.49"), per=3600),
            when=When(meters=frozenset({"gpu_seconds"}), kinds=frozenset({"h100"})),
            least_pico=pico("100"),
        ),
    ),
    adjustments=(
        Adjustment(name="batch", when=When(classes=frozenset({"batch"})), basis_points=-5000),
        Adjustment(name="in country", when=When(bound=True), basis_points=1000),
    ),
    recurring=(Recurring(name="support", amount_pico=pico("300")),),
    fees=(Fee(name="handling", of=frozenset({"output"}), basis_points=250),),
)


def used(meter: str, amount: int, *, hour: int = 0, **facts: object) -> Quantity:
    return Quantity(
        facts=Facts(meter=meter, **facts),  # type: ignore[arg-type]
        hour_at=hour * HOUR_NS, amount=amount,
    )


def worked_example() -> list[Quantity]:
    return [
        used("input_uncached_tokens", 5 * MILLION, model=BIG, class_="on_demand"),
        used("input_cached_tokens", 20 * MILLION, model=BIG, class_="on_demand"),
        used("output_tokens", 9 * MILLION, model=BIG, class_="on_demand", bound=True),
        used("output_tokens", 3 * MILLION, model=SMALL, class_="batch", hour=5),
        used("gpu_seconds", 1000, kind="h100"),
    ]


def test_worked_example() -> None:
    rated = rate(worked_example(), [SHEET], MONTH)
    assert not rated.unpriced
    # Output: 10 million at 2 and 2 million at 1.5 make 23 for 12 million. Nine twelfths of it are
    # in country (+ 10 %), three twelfths are batch (- 50 %).
    assert [(line.kind, line.name, written(line.amount_pico)) for line in rated.lines] == [
        ("usage", "big input", "3.00"),
        ("usage", "cached input", "1.20"),
        ("usage", "output", "18.975"),
        ("usage", "output", "2.875"),
        ("usage", "gpu hour", "0.691666666667"),
        ("minimum", "gpu hour", "99.308333333333"),
        ("recurring", "support", "300.00"),
        ("fee", "handling", "0.54625"),
    ]
    assert [line.adjustments for line in rated.lines[2:4]] == [("in country",), ("batch",)]
    assert written(rated.total_pico) == "426.59625"


def test_what_no_price_fits_is_told_and_never_free() -> None:
    usage = [
        used("input_uncached_tokens", 7, model=SMALL), used("gpu_seconds", 9, kind="l4"),
        used("input_uncached_tokens", 5, model=SMALL),
    ]
    rated = rate(usage, [replace(SHEET, recurring=(), fees=())], MONTH)
    assert [(each.facts.meter, each.amount) for each in rated.unpriced] == [
        ("gpu_seconds", 9), ("input_uncached_tokens", 12),
    ]
    assert [line.kind for line in rated.lines] == ["minimum"]
    early = rate([used("output_tokens", 1)], [replace(SHEET, valid_from=DAY)], MONTH)
    assert [each.amount for each in early.unpriced] == [1]


def test_who_used_nothing_owes_nothing_of_what_is_once_a_period() -> None:
    """An event that was told for the wrong month and replaced leaves hours of nothing behind."""
    for usage in ([], [used("output_tokens", 0)], [used("output_tokens", 1, hour=30 * 24)]):
        assert rate(usage, [SHEET], MONTH).lines == ()
    assert len(rate([used("requests", 1)], [SHEET], MONTH).lines) == 3, "it used something"


def test_sheets_follow_each_other_within_a_period() -> None:
    dearer = replace(
        SHEET, version=2, valid_from=15 * DAY,
        recurring=(Recurring(name="support", amount_pico=pico("600")),),
    )
    corrected = replace(dearer, version=3)
    usage = [used("output_tokens", MILLION), used("output_tokens", MILLION, hour=15 * 24)]
    rated = rate(usage, [SHEET, dearer, corrected], MONTH)
    support = {line.version: line.amount_pico for line in rated.lines if line.name == "support"}
    assert support == {1: pico("150"), 3: pico("300")}
    assert {line.version for line in rated.lines if line.kind == "usage"} == {1, 3}
    assert in_force([SHEET, dearer, corrected], 15 * DAY - 1) is SHEET
    with pytest.raises(ValueError, match="EUR, USD"):
        rate(usage, [SHEET, replace(dearer, currency="USD")], MONTH)


def test_spent_so_far_is_the_same_question_asked_earlier() -> None:
    usage = [used("output_tokens", MILLION, hour=hour) for hour in range(20)]
    so_far = Period(begin=0, end=MONTH.end, covered=Fraction(1, 3))
    rated = rate(usage, [SHEET], so_far)
    assert {line.name: line.amount_pico for line in rated.lines if line.kind != "fee"} == {
        "output": pico("35"), "support": pico("100"),
        "gpu hour": rounded(Fraction(pico("100"), 3)),
    }
    half = rate(usage, [SHEET], Period(begin=0, end=10 * HOUR_NS))
    assert sum(line.quantity for line in half.lines) == 10 * MILLION


def test_spent_so_far_has_nothing_of_a_sheet_that_is_not_in_force_yet() -> None:
    support = Recurring(name="support", amount_pico=pico("3000"))
    sheets = [SHEET, replace(SHEET, version=2, valid_from=20 * DAY, recurring=(support,))]
    usage = [used("output_tokens", MILLION)]

    def once(days: int) -> dict[tuple[int, str], str]:
        so_far = replace(MONTH, covered=Fraction(days, 30))
        return {
            (line.version, line.name): written(line.amount_pico)
            for line in rate(usage, sheets, so_far).lines if line.kind not in ("usage", "fee")
        }

    first = {(1, "gpu hour"): "33.333333333333", (1, "support"): "100.00"}
    assert once(10) == first
    whole = {(1, "gpu hour"): "66.666666666667", (1, "support"): "200.00"}
    assert once(20) == whole
    assert once(25) == {
        **whole, (2, "gpu hour"): "16.666666666667", (2, "support"): "500.00"
    }
    assert once(30) == {
        **whole, (2, "gpu hour"): "33.333333333333", (2, "support"): "1000.00"
    }


@pytest.mark.parametrize(
    ("quantity", "graduated", "volume", "package"),
    [(0, "0", "0", "0"), (1, "2", "2", "7"), (10, "20", "20", "7"), (11, "21", "11", "14"),
     (30, "40", "30", "21")],
)
def test_charge_models(quantity: int, graduated: str, volume: str, package: str) -> None:
    tiers = (Tier(up_to=10, price_pico=pico("2")), Tier(up_to=None, price_pico=pico("1")))
    assert Graduated(tiers=tiers).of(quantity) == pico(graduated)
    assert Volume(tiers=tiers).of(quantity) == pico(volume)
    assert Package(price_pico=pico("7"), size=10).of(quantity) == pico(package)


def test_every_fault_of_a_sheet_is_told() -> None:
    tiers = (Tier(up_to=None, price_pico=1), Tier(up_to=5, price_pico=-1))
    wrong = PriceSheet(
        id="x", version=0, currency="euro", valid_from=1,
        prices=(
            Price(name="a", when=When(), charge=Graduated(tiers=tiers)),
            Price(
                name="a", when=When(meters=frozenset({"requests"})),
                charge=Package(price_pico=1, size=0), least_pico=2, most_pico=1,
            ),
        ),
        adjustments=(Adjustment(name="b", when=When(), basis_points=-10_001),),
        fees=(Fee(name="c", of=frozenset({"nothing"}), basis_points=1),),
    )
    said = "\n".join(problems_of(wrong))
    for part in (
        "'euro'", "version 0", "start of an hour", "'a': is there twice", "different units",
        "price is below zero", "has an end", "is not the last", "less than one unit",
        "more than the most", "more than everything", "no price 'nothing'",
    ):
        assert part in said, part
    assert problems_of(SHEET) == []


def test_tiers_have_to_rise() -> None:
    tiers = tuple(Tier(up_to=end, price_pico=1) for end in (5, 5, None))
    price = Price(
        name="a", when=When(meters=frozenset({"requests"})), charge=Volume(tiers=tiers)
    )
    assert problems_of(replace(SHEET, prices=(price,), fees=())) == [
        "price 'a': its tiers do not rise"
    ]


def test_the_first_price_that_fits_is_the_price() -> None:
    site = When(meters=frozenset({"output_tokens"}), sites=frozenset({SiteName("here")}))
    special = Price(name="here", when=site, charge=PerUnit(price_pico=1))
    sheet = replace(SHEET, prices=(special, *SHEET.prices))
    found = [
        sheet.price_of(Facts(meter="output_tokens", site=SiteName(name)))
        for name in ("here", "there")
    ]
    assert [price.name for price in found if price is not None] == ["here", "output"]


@pytest.mark.parametrize(
    ("text", "amount"),
    [("0.15", 150_000_000_000), ("-1", -PICO), ("0.000000000001", 1), ("12", 12 * PICO)],
)
def test_money_is_read_exactly(text: str, amount: int) -> None:
    assert pico(text) == amount
    assert pico(written(amount)) == amount


@pytest.mark.parametrize("text", ["", "1e3", "+1", "1.", ".5", "0.0000000000001", "1,5", "NaN"])
def test_what_is_no_money_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="plain decimal"):
        pico(text)


def test_rounding_is_half_to_even_and_bounded() -> None:
    assert [rounded(Fraction(n, 2)) for n in (1, 3, 5, -1, -3)] == [0, 2, 2, 0, -2]
    with pytest.raises(OverflowError):
        rounded(Fraction(10**38))
