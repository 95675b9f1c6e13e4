"""Audit log: who changed what, when, and how it was before and after; the latest first."""

from collections.abc import Mapping
from urllib.parse import urlencode

import msgspec
from nicegui import ui

from isochrone.console.api import Api
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.facts import card
from isochrone.console.parts.notices import shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import NOTHING, instant, text

MOST = 500
LONGEST = 120  # of a field's value, in letters
BESIDE = ("id", "org_id", "created_at")  # of what was made: the entry says these itself
FILTERS: Mapping[str, str] = {
    "kind": "Kind of record", "subject": "Record", "actor": "By", "org": "Organisation",
}


class Entry(msgspec.Struct, frozen=True):
    """A change of one record; fields are None before it was made and after it was removed."""

    serial: int
    at: int
    org_id: str | None
    actor: str
    kind: str
    subject: str
    change: str
    before: dict[str, object] | None
    after: dict[str, object] | None


async def load(api: Api, wanted: Mapping[str, str]) -> tuple[Entry, ...]:
    """The latest entries that match. Raises IsochroneError."""
    chosen = {name: wanted.get(name) or None for name in FILTERS}
    return await api.items("audit", Entry, most=MOST, order="newest", **chosen)


def told(entry: Entry) -> str:
    """The fields that differ, as `name: before → after`. Of a record that was made or removed all
    but what is hidden, empty, or said by the entry beside."""
    before, after = entry.before or {}, entry.after or {}
    if entry.before is None or entry.after is None:
        return "; ".join(
            f"{name}: {_short(name, value)}" for name, value in (after or before).items()
            if name not in BESIDE and value not in (None, "", "(hidden)", entry.subject)
        ) or "nothing more that is shown"
    return "; ".join(
        f"{name}: {_short(name, before.get(name))} → {_short(name, after.get(name))}"
        for name in sorted({*before, *after}) if before.get(name) != after.get(name)
    ) or "nothing that is shown"


def _short(name: str, value: object) -> str:
    if name.endswith("_at") and isinstance(value, int):
        return instant(value)
    said = text(msgspec.json.encode(value).decode() if isinstance(value, dict) else value)
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


class Organisation(msgspec.Struct, frozen=True):
    id: str
    name: str


class Person(msgspec.Struct, frozen=True):
    id: str
    name: str | None


async def names_of(api: Api) -> dict[str, str]:
    """Who is meant by `principal:ID`. Raises IsochroneError."""
    people = await api.items("principals", Person, most=5000)
    return {f"principal:{each.id}": each.name or each.id for each in people}


async def build(visit: Visit) -> None:
    title("Audit log", "Who changed what, and how it was before and after")
    _filters(visit)
    rows = await shown(load(visit.api, visit.query))
    people = await shown(names_of(visit.api))
    known = await shown(visit.api.items("organisations", Organisation, most=5000))
    if rows is None or people is None or known is None:
        return
    orgs = {each.id: each.name for each in known}
    with card():
        table(
            (
                Column(title="When (UTC)"), Column(title="By"), Column(title="What"),
                Column(title="Record", kind="link", link="/audit?subject={}"),
                Column(title="Organisation"), Column(title="Fields", kind="long"),
            ),
            [
                (
                    instant(row.at), people.get(row.actor, row.actor),
                    f"{row.kind} {row.change}", row.subject,
                    orgs.get(row.org_id, row.org_id) if row.org_id else NOTHING, told(row),
                )
                for row in rows
            ],
            title="Changes, the latest first", empty="Nothing like that was changed.",
        )
        if len(rows) == MOST:
            ui.label(
                f"These are the latest {MOST}; choose more narrowly, or use `isochrone audit`."
            ).classes("iso-about")


def _filters(visit: Visit) -> None:
    written = {name: visit.query.get(name, "") for name in FILTERS}

    def go() -> None:
        asked = {name: said.strip() for name, said in written.items() if said and said.strip()}
        ui.navigate.to("/audit?" + urlencode(asked))

    with ui.row().classes("iso-ask"):
        for name, label in FILTERS.items():
            one = ui.input(label).bind_value(written, name).props("outlined dense clearable")
            one.classes("iso-choice").on("keydown.enter", go)
        ui.button("Show", on_click=go).props("unelevated no-caps")
