"""What a price sheet keeps to when it is added, beyond what makes it one.

Bounds are wide of every real price and far below what the book holds, so a slip of the hand is told
before anything is charged by it. Sheets that are kept already are read without them.
"""

from collections.abc import Iterator
from typing import Final

from isochrone.core.billing.charge import ChargeModel, Graduated, Package, Volume
from isochrone.core.billing.sheet import LEAST_BASIS_POINTS, PriceSheet, names_of
from isochrone.core.money import PICO

MOST_UNITS_OF_CURRENCY: Final = 10**9
MOST_QUANTITY: Final = 10**18      # of `per`, `size` and `up_to`
MOST_BASIS_POINTS: Final = 10**6   # a hundredfold
LONGEST_NAME: Final = 100


def problems_of_new(sheet: PriceSheet) -> list[str]:
    """Everything that keeps a sheet from being added."""
    return [*_names(sheet), *_amounts(sheet), *_quantities(sheet), *_changes(sheet)]


def _names(sheet: PriceSheet) -> Iterator[str]:
    for name in (sheet.id, *names_of(sheet)):
        if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
            shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
            yield f"{shown!r}: want a name of 1 to {LONGEST_NAME} printable characters"
    if "/" in sheet.id:
        # A charge of what is once a period is known by sheet/version/name.
        yield f"{sheet.id!r}: want an id without '/'"


def _amounts(sheet: PriceSheet) -> Iterator[str]:
    for price in sheet.prices:
        amounts = [*_of(price.charge), price.least_pico or 0, price.most_pico or 0]
        if max(map(abs, amounts)) > MOST_UNITS_OF_CURRENCY * PICO:
            yield f"price {price.name!r}: an amount beyond {MOST_UNITS_OF_CURRENCY}"
        if price.most_pico is not None and price.most_pico < 0:
            yield f"price {price.name!r}: the most that it comes to is below zero"
    for each in sheet.recurring:
        if abs(each.amount_pico) > MOST_UNITS_OF_CURRENCY * PICO:
            yield f"{each.name!r}: an amount beyond {MOST_UNITS_OF_CURRENCY}"


def _of(charge: ChargeModel) -> list[int]:
    if isinstance(charge, Graduated | Volume):
        return [tier.price_pico for tier in charge.tiers]
    return [charge.price_pico]


def _quantities(sheet: PriceSheet) -> Iterator[str]:
    for price in sheet.prices:
        charge = price.charge
        said = [charge.size if isinstance(charge, Package) else charge.per]
        if isinstance(charge, Graduated | Volume):
            said += [tier.up_to or 0 for tier in charge.tiers]
        if max(said) > MOST_QUANTITY:
            yield f"price {price.name!r}: a quantity beyond {MOST_QUANTITY}"


def _changes(sheet: PriceSheet) -> Iterator[str]:
    changes = [(each.name, each.basis_points) for each in sheet.adjustments]
    changes += [(each.name, each.basis_points) for each in sheet.fees]
    for name, basis_points in changes:
        if basis_points > MOST_BASIS_POINTS:
            yield f"{name!r}: more than a hundredfold"
    for price in sheet.prices:
        # Fees are added up, where adjustments follow one another.
        points = sum(
            fee.basis_points for fee in sheet.fees if not fee.of or price.name in fee.of
        )
        if points < LEAST_BASIS_POINTS:
            yield f"price {price.name!r}: its fees together take away more than everything"
