"""Rates the usage of a period: quantities and a sheet in, lines of money out.

Quantities are added up by their facts first. So a period costs the same however its usage came:
batched, in another order, on another day; and "spent so far" is this function, asked earlier. Each
line is rounded once. What no sheet prices becomes no line, and is told.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from isochrone.core.billing.sheet import (
    HOUR_NS,
    Facts,
    Price,
    PriceSheet,
    in_force,
)
from isochrone.core.errors import TooMuchMoney
from isochrone.core.money import bookable, rounded

WHOLE_BP = 10_000
LineKind = Literal["usage", "minimum", "maximum", "recurring", "fee"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """So much of a meter in the hour that begins at `hour_at` (wall nanoseconds UTC)."""

    facts: Facts
    hour_at: int
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Money for one thing. `adjustments` are the names of those that were applied; `facts` and
    `quantity` are None and 0 for what is not about usage."""

    sheet: str
    version: int
    kind: LineKind
    name: str
    facts: Facts | None
    quantity: int
    adjustments: tuple[str, ...]
    amount_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """`unpriced` is usage that no price fits, or of an hour before all sheets: never dropped."""

    currency: str | None
    lines: tuple[Line, ...]
    unpriced: tuple[Quantity, ...]

    @property
    def total_pico(self) -> int:
        return sum(line.amount_pico for line in self.lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From `begin` to `end`, of which the first part, `covered`, is rated: recurring amounts are in
    proportion."""

    begin: int
    end: int
    covered: Fraction = Fraction(1)


def rate(usage: Iterable[Quantity], sheets: Sequence[PriceSheet], period: Period) -> Rated:
    """Lines for all usage of the hours within the period, in a fixed order.

    Sheets of one series replace each other at their instants; each has its own tiers, bounds and
    recurring amounts, those in proportion to its part of the period. Of a period in which nothing
    was used there are no lines. Raises ValueError for sheets of two currencies, TooMuchMoney for
    what comes to more than a book holds.
    """
    currencies = {sheet.currency for sheet in sheets}
    if len(currencies) > 1:
        raise ValueError(f"sheets in several currencies: {', '.join(sorted(currencies))}")
    sums: defaultdict[int, defaultdict[Facts, int]] = defaultdict(lambda: defaultdict(int))
    missing: defaultdict[tuple[Facts, int], int] = defaultdict(int)
    by_version = {id(sheet): number for number, sheet in enumerate(sheets)}
    is_used = False
    for each in usage:
        if not period.begin <= each.hour_at < period.end:
            continue
        is_used = is_used or each.amount != 0
        sheet = in_force(sheets, each.hour_at)
        if sheet is None or sheet.price_of(each.facts) is None:
            missing[each.facts, each.hour_at] += each.amount
        else:
            sums[by_version[id(sheet)]][each.facts] += each.amount
    lines: list[Line] = []
    try:
        for number, sheet in enumerate(sheets if is_used else ()):
            part = _part(sheet, sheets, period)
            if part or sums[number]:
                lines += _lines(sheet, sums[number], part)
        bookable(sum(abs(line.amount_pico) for line in lines))  # so are sums of any of them
    except OverflowError as error:
        raise TooMuchMoney(str(error)) from error
    unpriced = [
        Quantity(facts=facts, hour_at=hour_at, amount=amount)
        for (facts, hour_at), amount in missing.items()
    ]
    return Rated(
        currency=next(iter(currencies), None),
        lines=tuple(lines),
        unpriced=tuple(sorted(unpriced, key=lambda each: (each.hour_at, _order(each.facts)))),
    )


def _part(sheet: PriceSheet, sheets: Sequence[PriceSheet], period: Period) -> Fraction:
    """The part of the period in which a sheet is in force, of what is covered of it."""
    length = period.end - period.begin
    until = period.begin + round(period.covered * length)
    marks = sorted({period.begin, until, *(s.valid_from for s in sheets)})
    held = sum(
        end - begin
        for begin, end in pairwise(marks)
        if period.begin <= begin < until and in_force(sheets, begin) is sheet
    )
    return Fraction(held, max(length, HOUR_NS))


def _lines(sheet: PriceSheet, sums: dict[Facts, int], part: Fraction) -> list[Line]:
    by_price: dict[str, list[Facts]] = {price.name: [] for price in sheet.prices}
    for facts in sorted(sums, key=_order):
        price = sheet.price_of(facts)
        assert price is not None, "only what has a price is summed"
        by_price[price.name].append(facts)
    lines: list[Line] = []
    totals: dict[str, int] = {}
    for price in sheet.prices:
        made = _usage_lines(sheet, price, {facts: sums[facts] for facts in by_price[price.name]})
        made += _bound(sheet, price, sum(line.amount_pico for line in made), part)
        totals[price.name] = sum(line.amount_pico for line in made)
        lines += made
    for recurring in sheet.recurring:
        amount = rounded(recurring.amount_pico * part)
        lines.append(_line(sheet, "recurring", recurring.name, amount))
    for fee in sheet.fees:
        base = sum(totals[name] for name in fee.of or totals)
        amount = rounded(Fraction(base * fee.basis_points, WHOLE_BP))
        lines.append(_line(sheet, "fee", fee.name, amount))
    return lines


def _usage_lines(sheet: PriceSheet, price: Price, parts: dict[Facts, int]) -> list[Line]:
    """One line for each of the facts; each bears its share of what the whole quantity comes to."""
    whole = sum(parts.values())
    if not whole:
        return []
    total = price.charge.of(whole)
    lines = []
    for facts, quantity in parts.items():
        applied = [each for each in sheet.adjustments if each.when.fits(facts)]
        exact = total * quantity / whole
        for each in applied:
            exact = exact * (WHOLE_BP + each.basis_points) / WHOLE_BP
        lines.append(
            Line(
                sheet=sheet.id, version=sheet.version, kind="usage", name=price.name, facts=facts,
                quantity=quantity, adjustments=tuple(each.name for each in applied),
                amount_pico=rounded(exact),
            )
        )
    return lines


def _bound(sheet: PriceSheet, price: Price, total_pico: int, part: Fraction) -> list[Line]:
    """What brings the total of a price within its bounds, which are those of a whole period."""
    if price.least_pico is not None:
        lacking = rounded(price.least_pico * part) - total_pico
        if lacking > 0:
            return [_line(sheet, "minimum", price.name, lacking)]
    if price.most_pico is not None:
        beyond = total_pico - rounded(price.most_pico * part)
        if beyond > 0:
            return [_line(sheet, "maximum", price.name, -beyond)]
    return []


def _line(sheet: PriceSheet, kind: LineKind, name: str, amount_pico: int) -> Line:
    return Line(
        sheet=sheet.id, version=sheet.version, kind=kind, name=name, facts=None, quantity=0,
        adjustments=(), amount_pico=amount_pico,
    )


def _order(facts: Facts) -> tuple[str, str, str, str, bool, str]:
    return (
        facts.meter, facts.model or "", facts.class_ or "", facts.site or "", facts.bound,
        facts.kind or "",
    )
