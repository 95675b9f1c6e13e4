"""A price sheet: versioned, dated data that says what each quantity costs.

Prices stand in an order, and the first that fits a quantity is its price, as in a list of rules
that people read from the top. Adjustments all apply that fit, one after the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from isochrone.core.billing.charge import ChargeModel
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.money import is_currency
from isochrone.core.world.tenant import Class

Meter = Literal[
    "input_uncached_tokens",
    "input_cached_tokens",
    "output_tokens",
    "requests",
    "gpu_seconds",
    "link_megabit_seconds",
    "bytes",
    "storage_gib_seconds",
    "peak_streams",
    "active_users",
]
METERS: tuple[Meter, ...] = get_args(Meter)
HOUR_NS = 3_600_000_000_000
LEAST_BASIS_POINTS = -10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a price may depend on. `bound`: the policy named the country that served. `kind` is the
    hardware of GPU time or the tier of storage."""

    meter: Meter
    model: ModelName | None = None
    class_: Class | None = None
    site: SiteName | None = None
    bound: bool = False
    kind: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """Which quantities something is about; what is None or empty fits all."""

    meters: frozenset[Meter] = frozenset()
    models: frozenset[ModelName] = frozenset()
    classes: frozenset[Class] = frozenset()
    sites: frozenset[SiteName] = frozenset()
    kinds: frozenset[str] = frozenset()
    bound: bool | None = None

    def fits(self, facts: Facts) -> bool:
        return (
            (not self.meters or facts.meter in self.meters)
            and (not self.models or facts.model in self.models)
            and (not self.classes or facts.class_ in self.classes)
            and (not self.sites or facts.site in self.sites)
            and (not self.kinds or facts.kind in self.kinds)
            and (self.bound is None or self.bound == facts.bound)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One entry of a sheet. `least_pico` and `most_pico` bound what it comes to in a period."""

    name: str
    when: When
    charge: ChargeModel
    least_pico: int | None = None
    most_pico: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """Changes what fits by `basis_points` of a hundredth of a per cent: -5000 halves it."""

    name: str
    when: When
    basis_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurring:
    """A fixed amount for each period, in proportion where only a part of one is covered."""

    name: str
    amount_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fee:
    """`basis_points` of what the named prices come to; of all of them where none is named."""

    name: str
    of: frozenset[str]
    basis_points: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSheet:
    """Valid from the start of an hour (wall nanoseconds UTC) until the next version is."""

    id: str
    version: int
    currency: str
    valid_from: int
    prices: tuple[Price, ...]
    adjustments: tuple[Adjustment, ...] = ()
    recurring: tuple[Recurring, ...] = ()
    fees: tuple[Fee, ...] = ()

    def price_of(self, facts: Facts) -> Price | None:
        """The first price that fits; None when there is none, which is reported and never free."""
        return next((price for price in self.prices if price.when.fits(facts)), None)


def problems_of(sheet: PriceSheet) -> list[str]:
    """Everything that is wrong with a sheet."""
    found = []
    if not is_currency(sheet.currency):
        found.append(f"currency {sheet.currency!r}: want three capital letters")
    if sheet.version < 1:
        found.append(f"version {sheet.version}: want 1 or more")
    if sheet.valid_from % HOUR_NS:
        found.append("valid_from: want the start of an hour, since usage is booked by the hour")
    found += [f"{name!r}: is there twice" for name in sorted(_twice(names_of(sheet)))]
    for price in sheet.prices:
        found += [f"price {price.name!r}: {why}" for why in _price_problems(price)]
    changes = {each.name: each.basis_points for each in sheet.adjustments}
    changes |= {each.name: each.basis_points for each in sheet.fees}
    found += [
        f"{name!r}: takes away more than everything"
        for name, points in changes.items() if points < LEAST_BASIS_POINTS
    ]
    known = {price.name for price in sheet.prices}
    found += [
        f"fee {fee.name!r}: there is no price {name!r}"
        for fee in sheet.fees for name in sorted(fee.of - known)
    ]
    return found


def names_of(sheet: PriceSheet) -> list[str]:
    """Of all entries of a sheet."""
    return [
        *(each.name for each in sheet.prices), *(each.name for each in sheet.adjustments),
        *(each.name for each in sheet.recurring), *(each.name for each in sheet.fees),
    ]


def _price_problems(price: Price) -> Iterable[str]:
    yield from price.charge.problems()
    if len({_unit_of(meter) for meter in price.when.meters or METERS}) > 1:
        yield "is about meters of different units: name meters of one unit"
    least, most = price.least_pico, price.most_pico
    if least is not None and least < 0:
        yield "the least that it comes to is below zero"
    if least is not None and most is not None and least > most:
        yield "the least that it comes to is more than the most"


def _unit_of(meter: Meter) -> str:
    return "tokens" if meter.endswith("_tokens") else meter


def _twice(names: Sequence[str]) -> set[str]:
    return {name for name in names if names.count(name) > 1}


def in_force(sheets: Sequence[PriceSheet], at: int) -> PriceSheet | None:
    """The sheet that prices the hour of an instant: of those that are valid by then the one that
    became so last; of two for the same instant the higher version, or else the later in order."""
    begun = [sheet for sheet in reversed(sheets) if sheet.valid_from <= at]
    return max(begun, key=lambda sheet: (sheet.valid_from, sheet.version), default=None)


def of_usage_alone(sheet: PriceSheet) -> PriceSheet:
    """Without what is once a period: bounds and recurring amounts. Fees on usage stay."""
    prices = tuple(replace(price, least_pico=None, most_pico=None) for price in sheet.prices)
    return replace(sheet, prices=prices, recurring=())


def applying(general: Sequence[PriceSheet], own: Sequence[PriceSheet]) -> list[PriceSheet]:
    """The sheets that price an organisation's usage: those for everybody until the first that was
    made for it alone becomes valid, and from then on its own only."""
    begins = min((sheet.valid_from for sheet in own), default=None)
    return [
        *(sheet for sheet in general if begins is None or sheet.valid_from < begins), *own
    ]
