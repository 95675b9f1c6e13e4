"""Charge models: what a quantity of a whole period comes to. Exact: fractions of pico.

A charge is a function of the quantity of the period, so it does not matter in what pieces or order
the usage came. Where parts of a quantity have to be told apart, each bears its share of the whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class PerUnit:
    """`price_pico` for every `per` of the unit, and as much less for fewer."""

    price_pico: int
    per: int = 1

    def of(self, quantity: int) -> Fraction:
        return Fraction(quantity * self.price_pico, self.per)

    def problems(self) -> Iterable[str]:
        return _problems_of_price(self.price_pico, self.per)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Up to `up_to` of the unit in a period; None is without end."""

    up_to: int | None
    price_pico: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Graduated:
    """Each tier prices the units within it; `per` as in PerUnit."""

    tiers: tuple[Tier, ...]
    per: int = 1

    def of(self, quantity: int) -> Fraction:
        total, begun = 0, 0
        for tier in self.tiers:
            end = quantity if tier.up_to is None else min(quantity, tier.up_to)
            total += max(end - begun, 0) * tier.price_pico
            begun = max(begun, end)
        return Fraction(total, self.per)

    def problems(self) -> Iterable[str]:
        return _problems_of_tiers(self.tiers, self.per)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """The tier in which the quantity of the period ends prices all of it; so late usage can lower
    what earlier usage came to."""

    tiers: tuple[Tier, ...]
    per: int = 1

    def of(self, quantity: int) -> Fraction:
        tier = next(
            each for each in self.tiers if each.up_to is None or quantity <= each.up_to
        )
        return Fraction(quantity * tier.price_pico, self.per)

    def problems(self) -> Iterable[str]:
        return _problems_of_tiers(self.tiers, self.per)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """`price_pico` for every `size` that is begun."""

    price_pico: int
    size: int

    def of(self, quantity: int) -> Fraction:
        return Fraction(-(-quantity // self.size) * self.price_pico)

    def problems(self) -> Iterable[str]:
        return _problems_of_price(self.price_pico, self.size)


ChargeModel = PerUnit | Graduated | Volume | Package


def _problems_of_price(price_pico: int, per: int) -> Iterable[str]:
    if price_pico < 0:
        yield "its price is below zero"
    if per < 1:
        yield "its price is for less than one unit"


def _problems_of_tiers(tiers: tuple[Tier, ...], per: int) -> Iterable[str]:
    for tier in tiers:
        yield from _problems_of_price(tier.price_pico, per)
    if not tiers or tiers[-1].up_to is not None:
        yield "its last tier has an end, so more than that would have no price"
    ends = [tier.up_to for tier in tiers[:-1]]
    if any(end is None for end in ends):
        yield "a tier without end is not the last"
    known = [0, *(end for end in ends if end is not None)]
    if any(later <= earlier for earlier, later in pairwise(known)):
        yield "its tiers do not rise"
