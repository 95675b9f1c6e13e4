"""Prices: the versions of all price sheets, what is in each, and the next version of one.

A new version is written as in the file of `isochrone price create`, and is tried before it is
added: all that is wrong with it is said, then what it changes.
"""

import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from hashlib import sha256

import msgspec
from nicegui import ui

from isochrone.console.api import Api, part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.confirm import Effect, ask
from isochrone.console.parts.facts import card
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import instant, whole
from isochrone.core.errors import InvalidInput

ADDRESS = "/prices?sheet={}"
LINES = 22
MOST = 2_000
EVERYBODY = "everybody"


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
    kinds: tuple[str, ...] = ()
    bound: bool | None = None
    least: str | None = None
    most: str | None = None


class Adjustment(msgspec.Struct, frozen=True):
    name: str
    basis_points: int
    meters: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    bound: bool | None = None


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
        return f"{charge.price} / {whole(charge.size or charge.per)}"
    steps = ", ".join(
        tier.price + (f" to {whole(tier.up_to)}" if tier.up_to is not None else "")
        for tier in charge.tiers
    )
    return f"{charge.model}: {steps} / {whole(charge.per)}"


class Organisation(msgspec.Struct, frozen=True):
    id: str
    name: str


def written_as(sheet: Sheet | None) -> str:
    """A sheet as TOML to begin from, in force from the next hour that is filled in."""
    if sheet is None:
        return FIRST
    lines = [
        f"id = {_toml(sheet.id)}", f"currency = {_toml(sheet.currency)}",
        'valid_from = ""  # the start of an hour, as in 2026-12-01T00:00:00Z',
    ]
    content = msgspec.to_builtins(sheet.sheet)
    for name in ("prices", "adjustments", "recurring", "fees"):
        for entry in content[name]:
            lines += ["", f"[[{name}]]"]
            lines += [
                f"{field} = {_toml(value)}" for field, value in entry.items() if _is_said(value)
            ]
    return "\n".join(lines) + "\n"


FIRST = """id = "standard"
currency = "EUR"
valid_from = ""  # the start of an hour, as in 2026-12-01T00:00:00Z

[[prices]]
name = "output"
meters = ["output_tokens"]
charge = { model = "per_unit", price = "0.60", per = 1_000_000 }
"""


def _toml(value: object) -> str:
    """A value of a sheet; JSON and TOML write texts, numbers and lists of these alike."""
    if isinstance(value, dict):
        pairs = [f"{name} = {_toml(each)}" for name, each in value.items() if _is_said(each)]
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return msgspec.json.encode(value).decode()


def _is_said(value: object) -> bool:
    """Whether a field is more than left out."""
    return value is not None and value not in ("", [], ())


def read(text: str) -> dict[str, object]:
    """What is written, for the API, which judges it. Raises InvalidInput."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput([f"text: not valid TOML: {error}"]) from error
    begins = content.get("valid_from")
    if isinstance(begins, datetime):
        content["valid_from"] = begins.isoformat()
    return content


def in_force(sheets: Sequence[Sheet], tried: Sheet) -> Sheet | None:
    """The version before the one that is tried."""
    before = [each for each in sheets if each.id == tried.id and each.version < tried.version]
    return max(before, key=lambda each: each.version, default=None)


def differences(before: Sheet | None, after: Sheet) -> list[tuple[str, str, str, str]]:
    """What changes: kind, name, before and after; entries that stay are left out."""
    old = {} if before is None else _entries(before.sheet)
    new = _entries(after.sheet)
    return [
        (*key, old.get(key, "–"), new.get(key, "–"))
        for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key)
    ]


def _entries(text: Text) -> dict[tuple[str, str], str]:
    """Kind and name of each entry, and the rest of it in words."""
    found = {("price", each.name): f"{charged(each.charge)}{_where(each)}" for each in text.prices}
    found |= {
        ("adjustment", each.name): f"{each.basis_points / 100:+g} %{_where(each)}"
        for each in text.adjustments
    }
    found |= {("a month", each.name): each.amount for each in text.recurring}
    return found | {
        ("fee", each.name): f"{each.basis_points / 100:g} % of {', '.join(each.of) or 'all'}"
        for each in text.fees
    }


def _where(entry: Price | Adjustment) -> str:
    """What it is restricted to, in words."""
    parts = bounds(entry)
    return f"; {'; '.join(parts)}" if parts else ""


def bounds(entry: Price | Adjustment) -> list[str]:
    """Each restriction in words; empty for what holds for everything."""
    lists = (entry.meters, entry.models, entry.classes, entry.sites)
    return [", ".join(each) for each in lists if each] + further(entry)


def further(entry: Price | Adjustment) -> list[str]:
    """The restrictions that have no column of their own."""
    parts = [", ".join(entry.kinds)] if entry.kinds else []
    if entry.bound is not None:
        parts.append("named by the policy" if entry.bound else "not named by the policy")
    if isinstance(entry, Price):
        parts += [f"{name} {value}" for name, value in
                  (("at least", entry.least), ("at most", entry.most)) if value is not None]
    return parts


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
            hint="Without one, usage is metered and charged nothing.",
        )
    if visit.me.may("prices.write"):
        await _adding(visit, sheets)
    wanted = visit.query.get("sheet") or (sheets[0].name if sheets else "")
    chosen = next((each for each in sheets if each.name == wanted), None)
    if chosen is not None:
        _one(chosen)
    elif wanted:
        with banner("bad", f"There is no sheet {wanted}."):
            pass


async def _adding(visit: Visit, sheets: Sequence[Sheet]) -> None:
    """Write the next version of a sheet, see what it changes, add it."""
    organisations = await shown(visit.api.items("organisations", Organisation, most=MOST))
    wanted = visit.query.get("sheet")
    begun = next((each for each in sheets if each.name == wanted), sheets[0] if sheets else None)
    options = {EVERYBODY: EVERYBODY} | {each.id: each.name for each in organisations or ()}
    with ui.expansion("Add a version", icon="add", value="add" in visit.query).classes(
        "iso-expansion"
    ), card():
        ui.label("As in a file for `isochrone price create`; docs/prices.md has every field."
                 " Nothing is kept before you have seen what it changes.").classes("iso-about")

        async def tried(values: Mapping[str, str]) -> None:
            await _try(visit, values)

        form(
            (
                Field(name="text", label="The sheet, as TOML", value=written_as(begun),
                      lines=LINES),
                Field(name="org_id", label="For", options=options,
                      value=begun.org_id or EVERYBODY if begun else EVERYBODY),
            ),
            "See what it changes", tried,
        )


async def _try(visit: Visit, values: Mapping[str, str]) -> None:
    """Raises InvalidInput with all that is wrong, and other errors of control."""
    content, org_id = read(values["text"]), values["org_id"]
    query = "" if org_id in ("", EVERYBODY) else f"?org_id={part(org_id)}"
    tried = await visit.api.post(f"prices/trials{query}", Sheet, content)
    sheets = await load(visit.api)
    before = in_force(sheets, tried)

    async def add() -> None:
        # The same text on top of the same version is the same addition.
        once = sha256(f"{tried.version}\n{query}\n{values['text']}".encode()).hexdigest()
        made = await visit.api.post(f"prices{query}", Sheet, content, once=once)
        ui.navigate.to(ADDRESS.replace("{}", part(made.name)))

    ask(f"Add {tried.name}?", effects_of(tried, before), "Add it", add)


def effects_of(tried: Sheet, before: Sheet | None) -> list[Effect]:
    """What adding it leads to."""
    changed = differences(before, tried)
    whose = "everybody" if tried.org_id is None else "one organisation"
    reaches_back = tried.valid_from <= tried.created_at
    said = [
        Effect(text=f"From {instant(tried.valid_from)} UTC it prices the usage of {whose}, in"
               f" {tried.currency}."),
        *([Effect(text="What was charged since then is charged anew.")] if reaches_back else []),
        *(
            Effect(text=f"{kind} {name}: {old} → {new}", hurts=new == "–")
            for kind, name, old, new in changed[:MOST_CHANGES]
        ),
    ]
    if len(changed) > MOST_CHANGES:
        said.append(Effect(text=f"And {len(changed) - MOST_CHANGES} more changes."))
    if not changed:
        said.append(Effect(text="Nothing in it differs from the version before."))
    return [*said, Effect(text="A version is never changed; another one can replace it.")]


MOST_CHANGES = 12


def beside(text: Text) -> list[tuple[str, str, str, str]]:
    """What is added to the prices: kind, name, amount, and of what."""
    return [
        *(
            ("adjustment", each.name, f"{each.basis_points / 100:+g} %",
             "; ".join(bounds(each)) or "all")
            for each in text.adjustments
        ),
        *(("a month", each.name, each.amount, "") for each in text.recurring),
        *(("fee", each.name, f"{each.basis_points / 100:g} %", ", ".join(each.of) or "all")
          for each in text.fees),
    ]


def _one(sheet: Sheet) -> None:
    written = sheet.sheet
    with card():
        table(
            (
                Column(title="Price"), Column(title="Amount", kind="number"),
                Column(title="Meters", kind="code"), Column(title="Models"),
                Column(title="Classes"), Column(title="Sites"), Column(title="Only"),
            ),
            [
                (each.name, charged(each.charge), each.meters or "all", each.models or "all",
                 each.classes or "all", each.sites or "all", "; ".join(further(each)))
                for each in written.prices
            ],
            title=f"{sheet.name}, in {sheet.currency}", empty="Nothing has a price in it.",
        )
    also = beside(written)
    if also:
        with card():
            table(
                (Column(title="What"), Column(title="Name"), Column(title="Amount", kind="number"),
                 Column(title="Of")),
                also, title="Added to these", empty="",
            )
