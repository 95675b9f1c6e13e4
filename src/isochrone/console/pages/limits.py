"""Limits: of which key, project or organisation, how much of each is used now; set and remove."""

from collections.abc import Mapping
from decimal import Decimal

import msgspec
from nicegui import ui

from isochrone.console.api import part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.pages.keys import Project, names_of
from isochrone.console.parts.facts import card
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import empty, shown
from isochrone.core.world.limit import BudgetPeriod, LimitKind

MOST = 100_000
LOOK_AGAIN_S = 5.0
NEARLY = 0.8  # of a limit: from here on it is shown as busy
KINDS: Mapping[str, str] = {
    "requests_per_min": "requests a minute", "tokens_per_min": "tokens a minute",
    "concurrent": "requests at once", "budget": "a budget",
}


class Named(msgspec.Struct, frozen=True):
    """A key."""

    id: str
    name: str
    revoked_at: int | None = None


class SiteUse(msgspec.Struct, frozen=True):
    site: str
    used: Decimal
    held: Decimal


class Use(msgspec.Struct, frozen=True):
    """As a gateway that keeps the limit said lately."""

    used: Decimal
    held: Decimal
    sites: tuple[SiteUse, ...]


class Limit(msgspec.Struct, frozen=True):
    """What GET /limits says of one, as far as it is shown."""

    id: str
    org_id: str
    project_id: str | None
    key_id: str | None
    kind: LimitKind
    amount: Decimal
    period: BudgetPeriod | None
    currency: str | None
    spent: Decimal | None
    use: Use | None


async def build(visit: Visit) -> None:
    title("Limits", "How much may be used, over all sites, and how much of it is")
    projects = await shown(visit.api.items("projects", Project, most=MOST))
    keys: tuple[Named, ...] | None = ()
    if visit.me.may("keys.read"):
        keys = await shown(visit.api.items("keys", Named, most=MOST))
    if projects is None or keys is None:
        return
    view = View(visit, projects, keys)
    await view.look()
    ui.timer(LOOK_AGAIN_S, view.look, immediate=False)


class View:
    """The page's widgets; the list is filled anew each time that it looks."""

    def __init__(
        self, visit: Visit, projects: tuple[Project, ...], keys: tuple[Named, ...]
    ) -> None:
        self._visit = visit
        self._names = names_of(projects) | {each.id: each.name for each in keys}
        whose = {f"project_id {each.id}": f"project {self._names[each.id]}" for each in projects}
        whose |= {
            f"key_id {each.id}": f"key {each.name}" for each in keys if each.revoked_at is None
        }
        if visit.me.may("limits.write") and whose:
            with card(), ui.expansion("Set a limit", icon="add").classes("iso-expansion"):
                self._form(whose)
        self._found: tuple[Limit, ...] | None = None
        self._said = ui.column().classes("iso-said")
        self._list = ui.column().classes("iso-said")

    async def look(self) -> None:
        """Ask for the limits again and show them."""
        self._said.clear()
        with self._said:
            found = await shown(self._visit.api.items("limits", Limit, most=MOST))
        if found is None or found == self._found:
            return  # who moves by keyboard keeps their place
        self._found = found
        self._list.clear()
        with self._list, card("In force" if found else ""):
            if not found:
                empty("There are no limits.", "What keys may use is not bounded.", icon="speed")
            for each in found:
                self._row(each)

    def _form(self, whose: Mapping[str, str]) -> None:
        form(
            [
                Field(name="whose", label="Of", options=whose, value=next(iter(whose))),
                Field(name="kind", label="What", options=KINDS, value="requests_per_min",
                      hint="takes the place of one of the same kind"),
                Field(name="amount", label="How much", hint="of a budget with digits: 10.00"),
                Field(name="period", label="A budget is for", value="",
                      options={"": "no budget", "day": "each day", "month": "each month"}),
                Field(name="currency", label="In the currency", hint="of a budget only: EUR"),
            ],
            "Set it", self._set,
        )

    async def _set(self, values: Mapping[str, str]) -> None:
        await self._visit.api.put("limits", Limit, new_limit(values))
        await self.look()

    def _row(self, limit: Limit) -> None:
        with ui.element("div").classes("iso-key"):
            with ui.element("div").classes("iso-key-who"):
                ui.label(self._whose(limit)).classes("iso-strong")
                ui.label(said(limit)).classes("iso-about")
            with ui.element("div").classes("iso-key-what"):
                taken = float(used(limit) / limit.amount) if limit.amount else 1.0
                tone = "iso-tone-5" if taken >= NEARLY else "iso-tone-3"
                with ui.element("div").classes("iso-track").props('aria-hidden="true"'):
                    ui.element("div").classes(f"iso-bar {tone}").style(
                        f"width: {min(100 * taken, 100):.1f}%"
                    )
            with ui.element("div").classes("iso-key-what"):
                ui.label(f"{used(limit):f} of {limit.amount:f}, {taken:.0%}")
                sites = limit.use.sites if limit.use is not None else ()
                busy = [each.site for each in sites if each.used or each.held]
                ui.label(
                    f"now at {', '.join(busy)}" if busy else "no gateway uses it now"
                ).classes("iso-about")
            if self._visit.me.may("limits.write") and self._is_theirs(limit):
                with ui.row().classes("iso-key-acts"):
                    act = ui.button("Remove", on_click=lambda _: self._remove(limit))
                    act.props("outline no-caps dense").classes("iso-act")
                    act.props["aria-label"] = f"Remove {said(limit)} of {self._whose(limit)}"

    async def _remove(self, limit: Limit) -> None:
        with self._said:
            gone = await shown(self._visit.api.delete(f"limits/{part(limit.id)}", Limit))
        if gone is not None:
            await self.look()

    def _is_theirs(self, limit: Limit) -> bool:
        """Those of a whole organisation are the operator's."""
        return limit.project_id is not None or self._visit.me.role == "operator"

    def _whose(self, limit: Limit) -> str:
        if limit.key_id is not None:
            return f"key {self._names.get(limit.key_id, limit.key_id)}"
        if limit.project_id is not None:
            return f"project {self._names.get(limit.project_id, limit.project_id)}"
        return f"organisation {limit.org_id}"


def new_limit(values: Mapping[str, str]) -> dict[str, str]:
    """The body of PUT /limits for what was filled in."""
    kind, _, name = values["whose"].partition(" ")
    body = {kind: name, "kind": values["kind"], "amount": values["amount"].strip()}
    for optional in ("period", "currency"):
        if values.get(optional, "").strip():
            body[optional] = values[optional].strip()
    return body


def used(limit: Limit) -> Decimal:
    """What is booked, used since, and held by requests that run."""
    since = limit.use.used + limit.use.held if limit.use is not None else Decimal(0)
    return (limit.spent or Decimal(0)) + since


def said(limit: Limit) -> str:
    """What it bounds, in words."""
    if limit.kind == "budget":
        return f"{limit.amount:f} {limit.currency} a {limit.period}"
    return f"{limit.amount:f} {KINDS[limit.kind]}"
