"""A price sheet as people write it, as the Control API takes it and as the book keeps it.

Amounts are decimal texts in units of the currency ("0.15"), instants RFC 3339 or wall nanoseconds
where callers write them and wall nanoseconds in the book. `sheet_of` gives the noun and says all
that is wrong.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from isochrone.core.billing.charge import (
    ChargeModel,
    Graduated,
    Package,
    PerUnit,
    Tier,
    Volume,
)
from isochrone.core.billing.sheet import (
    Adjustment,
    Fee,
    Meter,
    Price,
    PriceSheet,
    Recurring,
    When,
    problems_of,
)
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import ModelName, SiteName
from isochrone.core.money import pico, written
from isochrone.core.world.tenant import Class


class TierText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The last tier has no `up_to`."""

    price: str
    up_to: int | None = None


class ChargeText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`model`: per_unit (price, per), graduated or volume (tiers, per), package (price, size)."""

    model: str
    price: str | None = None
    per: int = 1
    size: int | None = None
    tiers: tuple[TierText, ...] = ()


class PriceText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is left out fits everything."""

    name: str
    charge: ChargeText
    meters: tuple[Meter, ...] = ()
    models: tuple[str, ...] = ()
    classes: tuple[Class, ...] = ()
    sites: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    bound: bool | None = None
    least: str | None = None
    most: str | None = None


class AdjustmentText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """-5000 basis points halve what fits."""

    name: str
    basis_points: int
    meters: tuple[Meter, ...] = ()
    models: tuple[str, ...] = ()
    classes: tuple[Class, ...] = ()
    sites: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    bound: bool | None = None


class RecurringText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    amount: str


class FeeText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    basis_points: int
    of: tuple[str, ...] = ()


class SheetText(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All of a sheet but its version, which the book gives."""

    id: str
    currency: str
    valid_from: str | int
    prices: tuple[PriceText, ...]
    adjustments: tuple[AdjustmentText, ...] = ()
    recurring: tuple[RecurringText, ...] = ()
    fees: tuple[FeeText, ...] = ()


def sheet_text_of(value: object) -> SheetText:
    """From JSON-like data. Raises InvalidInput with a problem for each entry that does not fit."""
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidInput([f"a text of the sheet is none: {error.reason}"]) from error
    try:
        return msgspec.convert(value, SheetText)
    except msgspec.ValidationError as error:
        first = _told(error)
        found = _misfits(value) if isinstance(value, dict) else []
        raise InvalidInput(found if first in found else [first, *found]) from error


_USED: Mapping[str, tuple[str, ...]] = {
    "per_unit": ("price", "per"), "graduated": ("tiers", "per"), "volume": ("tiers", "per"),
    "package": ("price", "size"),
}
_ENTRIES: Mapping[str, type[msgspec.Struct]] = {
    "prices": PriceText, "adjustments": AdjustmentText, "recurring": RecurringText,
    "fees": FeeText,
}


def _misfits(value: Mapping[str, object]) -> list[str]:
    """What is wrong with each entry, looked at alone."""
    found: list[str] = []
    for name, kind in _ENTRIES.items():
        entries = value.get(name, ())
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            try:
                msgspec.convert(entry, kind)
            except msgspec.ValidationError as error:
                said, place = _told(error), f"{name}[{number}]"
                where, parted, path = said.rpartition(" - at ")
                found.append(f"{where} - at {place}.{path}" if parted else f"{said} - at {place}")
    return found


def _told(error: msgspec.ValidationError) -> str:
    return str(error).replace("$.", "").replace("`", "")


def sheet_of(text: SheetText, *, version: int, valid_from: int) -> PriceSheet:
    """Raises InvalidInput with all problems."""
    faults: list[str] = []
    sheet = PriceSheet(
        id=text.id, version=version, currency=text.currency, valid_from=valid_from,
        prices=tuple(_price(each, faults) for each in text.prices),
        adjustments=tuple(
            Adjustment(name=each.name, when=_when(each), basis_points=each.basis_points)
            for each in text.adjustments
        ),
        recurring=tuple(
            Recurring(name=each.name, amount_pico=_pico(each.amount, each.name, faults))
            for each in text.recurring
        ),
        fees=tuple(
            Fee(name=each.name, of=frozenset(each.of), basis_points=each.basis_points)
            for each in text.fees
        ),
    )
    if not text.id.strip() or len(text.id) > 100:
        faults.append("id: want a name of at most 100 characters")
    if not faults:
        faults += problems_of(sheet)
    if faults:
        raise InvalidInput(faults)
    return sheet


def text_of(sheet: PriceSheet) -> SheetText:
    """The other way round."""
    return SheetText(
        id=sheet.id, currency=sheet.currency, valid_from=sheet.valid_from,
        prices=tuple(
            PriceText(
                name=each.name, charge=_charge_text(each.charge), **_when_text(each.when),
                least=_written(each.least_pico), most=_written(each.most_pico),
            )
            for each in sheet.prices
        ),
        adjustments=tuple(
            AdjustmentText(
                name=each.name, basis_points=each.basis_points, **_when_text(each.when)
            )
            for each in sheet.adjustments
        ),
        recurring=tuple(
            RecurringText(name=each.name, amount=written(each.amount_pico))
            for each in sheet.recurring
        ),
        fees=tuple(
            FeeText(name=each.name, basis_points=each.basis_points, of=tuple(sorted(each.of)))
            for each in sheet.fees
        ),
    )


def _price(text: PriceText, faults: list[str]) -> Price:
    return Price(
        name=text.name, when=_when(text), charge=_charge(text, faults),
        least_pico=None if text.least is None else _pico(text.least, text.name, faults),
        most_pico=None if text.most is None else _pico(text.most, text.name, faults),
    )


def _charge(text: PriceText, faults: list[str]) -> ChargeModel:
    charge, name = text.charge, text.name
    faults += [f"price {name!r}: charge.{each}: not of {charge.model}" for each in _idle(charge)]
    tiers = tuple(
        Tier(up_to=each.up_to, price_pico=_pico(each.price, name, faults)) for each in charge.tiers
    )
    if charge.model == "graduated":
        return Graduated(tiers=tiers, per=charge.per)
    if charge.model == "volume":
        return Volume(tiers=tiers, per=charge.per)
    if charge.price is None:
        faults.append(f"price {name!r}: charge.price is missing")
    price_pico = _pico(charge.price or "0", name, faults)
    if charge.model == "package":
        if charge.size is None:
            faults.append(f"price {name!r}: charge.size is missing")
        return Package(price_pico=price_pico, size=1 if charge.size is None else charge.size)
    if charge.model != "per_unit":
        faults.append(
            f"price {name!r}: charge.model {charge.model!r}: want per_unit, graduated, volume or"
            " package"
        )
    return PerUnit(price_pico=price_pico, per=charge.per)


def _idle(charge: ChargeText) -> list[str]:
    """Fields that were written and that the model does not look at: it is another, or they are."""
    used = _USED.get(charge.model)
    said = {
        "price": charge.price is not None, "per": charge.per != 1,
        "size": charge.size is not None, "tiers": bool(charge.tiers),
    }
    return [] if used is None else [each for each, is_said in said.items()
                                    if is_said and each not in used]


def _charge_text(charge: ChargeModel) -> ChargeText:
    if isinstance(charge, PerUnit):
        return ChargeText(model="per_unit", price=written(charge.price_pico), per=charge.per)
    if isinstance(charge, Package):
        return ChargeText(model="package", price=written(charge.price_pico), size=charge.size)
    return ChargeText(
        model="graduated" if isinstance(charge, Graduated) else "volume", per=charge.per,
        tiers=tuple(
            TierText(price=written(each.price_pico), up_to=each.up_to) for each in charge.tiers
        ),
    )


def _when(text: PriceText | AdjustmentText) -> When:
    return When(
        meters=frozenset(text.meters), models=frozenset(map(ModelName, text.models)),
        classes=frozenset(text.classes), sites=frozenset(map(SiteName, text.sites)),
        kinds=frozenset(text.kinds), bound=text.bound,
    )


def _when_text(when: When) -> dict[str, Any]:  # fields of PriceText and AdjustmentText
    return {
        "meters": _sorted(when.meters), "models": _sorted(when.models),
        "classes": _sorted(when.classes), "sites": _sorted(when.sites),
        "kinds": _sorted(when.kinds), "bound": when.bound,
    }


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def _pico(text: str, name: str, faults: list[str]) -> int:
    try:
        return pico(text)
    except ValueError as error:
        faults.append(f"{name!r}: {error}")
        return 0


def _written(amount_pico: int | None) -> str | None:
    return None if amount_pico is None else written(amount_pico)
