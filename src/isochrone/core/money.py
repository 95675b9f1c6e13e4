"""Money: exact integers of 10^-12 of a currency's unit (pico), never a float.

A price of 0.15 for a million tokens is 150,000 pico a token. Prices that no such integer holds, as
an hour's over its seconds, stay fractions until a line is rounded, once, half to even.
"""

import re
from fractions import Fraction
from typing import Final

PICO: Final = 10**12
DECIMALS: Final = 12
LARGEST: Final = 10**38 - 1  # what NUMERIC(38, 0) holds

_DECIMAL: Final = re.compile(r"(-?)([0-9]{1,26})(?:\.([0-9]{1,12}))?")
_CURRENCY: Final = re.compile(r"[A-Z]{3}")


def pico(text: str) -> int:
    """Of a plain decimal such as `0.15`: no exponent, no sign but a minus, at most twelve decimals.
    Raises ValueError."""
    found = _DECIMAL.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a plain decimal with at most {DECIMALS} decimals")
    sign, whole, part = found.groups()
    amount = int(whole) * PICO + int((part or "").ljust(DECIMALS, "0"))
    return -amount if sign else amount


def written(amount_pico: int) -> str:
    """As a plain decimal, with at least two decimals and no needless ones."""
    whole, part = divmod(abs(amount_pico), PICO)
    decimals = f"{part:0{DECIMALS}d}".rstrip("0").ljust(2, "0")
    return f"{'-' if amount_pico < 0 else ''}{whole}.{decimals}"


def rounded(exact_pico: Fraction) -> int:
    """To a whole number of pico, half to even. Raises OverflowError beyond what a book holds."""
    return bookable(round(exact_pico))


def bookable(amount_pico: int) -> int:
    """The same. Raises OverflowError beyond what a book holds."""
    if abs(amount_pico) > LARGEST:
        raise OverflowError("an amount of money is beyond 38 digits")
    return amount_pico


def is_currency(text: str) -> bool:
    """Whether it looks like a code of ISO 4217."""
    return _CURRENCY.fullmatch(text) is not None
