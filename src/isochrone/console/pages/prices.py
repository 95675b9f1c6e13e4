"""Prices: the versions of all price sheets, and what is in each."""

import msgspec

from isochrone.console.api import Api
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.facts import card
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, instant

ADDRESS = "/prices?sheet={}"


class Tier(msgspec.Struct, frozen=True):
    price: str
    up_to: int | None = None


class Charge(msgspec.Struct, frozen=True):
    """`price` for each `per` units or each package of `size`; else by tiers."""

    model: str
    price: str = ""
    per: int = 1
    size: int | None = None
    tiers: tuple[Tier, ...] = ()


class Price(msgspec.Struct, frozen=True):
    """Empty tuples are for everything."""

    name: str
    charge: Charge
    meters: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()


class Adjustment(msgspec.Struct, frozen=True):
    name: str
    basis_points: int
    meters: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


class Recurring(msgspec.Struct, frozen=True):
    name: str
    amount: str


class Fee(msgspec.Struct, frozen=True):
    name: str
    basis_points: int
    of: tuple[str, ...] = ()


class Text(msgspec.Struct, frozen=True):
    """A sheet as it was written."""

    prices: tuple[Price, ...]
    adjustments: tuple[Adjustment, ...] = ()
    recurring: tuple[Recurring, ...] = ()
    fees: tuple[Fee, ...] = ()


class Sheet(msgspec.Struct, frozen=True):
    """A version; `org_id` is None for a sheet for everybody."""

    id: str
    version: int
    org_id: str | None
    currency: str
    valid_from: int
    created_at: int
    sheet: Text

    @property
    def name(self) -> str:
        return f"{self.id} v{self.version}"


async def load(api: Api) -> tuple[Sheet, ...]:
    """All versions, those that hold last first. Raises IsochroneError."""
    found = await api.items("prices", Sheet, most=10_000)
    return tuple(sorted(found, key=lambda each: (-each.valid_from, each.id, -each.version)))


def charged(charge: Charge) -> str:
    """How a price is charged, in words."""
    if not charge.tiers:
        return f"{charge.price} / {count(charge.size or charge.per)}"
    steps = ", ".join(
        tier.price + (f" to {count(tier.up_to)}" if tier.up_to is not None else "")
        for tier in charge.tiers
    )
    return f"{charge.model}: {steps} / {count(charge.per)}"


async def build(visit: Visit) -> None:
    title("Prices", "Price sheets, version by version; a version is never changed")
    sheets = await shown(load(visit.api))
    if sheets is None:
        return
    with card():
        table(
            (
                Column(title="Sheet", kind="link", link=ADDRESS), Column(title="For"),
                Column(title="Currency"), Column(title="Valid from (UTC)"),
                Column(title="Added (UTC)"), Column(title="Prices", kind="number"),
            ),
            [
                (
                    each.name, each.org_id or "everybody", each.currency, instant(each.valid_from),
                    instant(each.created_at), len(each.sheet.prices),
                )
                for each in sheets
            ],
            title="Sheets", empty="There is no price sheet yet, so nothing has a price.",
            hint="`isochrone price create prices.toml` adds one; docs/prices.md says how.",
        )
    wanted = visit.query.get("sheet") or (sheets[0].name if sheets else "")
    chosen = next((each for each in sheets if each.name == wanted), None)
    if chosen is not None:
        _one(chosen)
    elif wanted:
        with banner("bad", f"There is no sheet {wanted}."):
            pass


def _one(sheet: Sheet) -> None:
    written = sheet.sheet
    with card():
        table(
            (
                Column(title="Price"), Column(title="Amount", kind="number"),
                Column(title="Meters", kind="code"), Column(title="Models"),
                Column(title="Classes"), Column(title="Sites"),
            ),
            [
                (each.name, charged(each.charge), each.meters, each.models or "all",
                 each.classes or "all", each.sites or "all")
                for each in written.prices
            ],
            title=f"{sheet.name}, in {sheet.currency}", empty="Nothing has a price in it.",
        )
    also: list[tuple[object, ...]] = [
        *(
            ("adjustment", each.name, f"{each.basis_points / 100:+g} %",
             each.classes or each.meters or "all")
            for each in written.adjustments
        ),
        *(("a month", each.name, each.amount, "") for each in written.recurring),
        *(("fee", each.name, f"{each.basis_points / 100:g} %", each.of or "all")
          for each in written.fees),
    ]
    if also:
        with card():
            table(
                (Column(title="What"), Column(title="Name"), Column(title="Amount", kind="number"),
                 Column(title="Of")),
                also, title="Added to these", empty="",
            )
