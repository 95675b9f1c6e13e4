"""The first page: whether the cloud serves, what it served today, and where to look next.

It looks again every few seconds, for as long as it is open.
"""

from collections.abc import Sequence

import msgspec
from nicegui import ui

from isochrone.console.estate import Site, Status
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.facts import card, figures
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, refill, table
from isochrone.console.parts.words import count, share

LOOK_AGAIN_S = 5.0
STEPS = (
    ("/playground", "Talk to a model", "and see which site answered, how soon, and what it cost"),
    ("/map", "Watch it on the map", "requests on their way from where they entered"),
    ("/explain", "Ask why there", "which sites were allowed, which were refused, by which rule"),
)


class Day(msgspec.Struct, frozen=True):
    """A sum of usage by day."""

    name: str
    requests: int
    finished: int
    input_uncached: int
    input_cached: int
    output: int


async def build(visit: Visit) -> None:
    title("Overview", "What the cloud is doing now, as control last heard it")
    view = View(visit)
    await view.look()
    ui.timer(LOOK_AGAIN_S, view.look, immediate=False)


class View:
    """The page's widgets, filled anew each time that it looks."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._said = ui.column().classes("iso-said")
        self._figures = ui.column().classes("iso-said")
        self._steps = ui.column().classes("iso-said")
        self._below = ui.column().classes("iso-said")
        self._table: ui.table | None = None

    async def look(self) -> None:
        """Ask control again and show what it says."""
        self._said.clear()
        with self._said:
            status = await shown(self._visit.api.get("status", Status))
            days = await shown(self._visit.api.items("usage", Day, by="day", most=4_000))
            if status is None or days is None:
                return
            _state(status)
        self._figures.clear()
        with self._figures:
            figures([
                ("Sites ready", f"{sum(site.ready for site in status.sites)} of "
                 f"{len(status.sites)}", ""),
                ("Slots in use", _slots(status), "requests that engines work on, of those they"
                 " take"),
                *_day(days[-1] if days else None),
            ])
        self._steps.clear()
        if not days:
            with self._steps:
                _first_steps()
        self._list(status.sites)

    def _list(self, sites: Sequence[Site]) -> None:
        rows = [_row(site) for site in sites]
        if self._table is not None and rows:
            refill(self._table, rows)
            return
        self._below.clear()
        with self._below, card():
            self._table = table(
                (
                    Column(title="Site", kind="link", link="/map?site={}"),
                    Column(title="Country"), Column(title="Health", kind="state"),
                    Column(title="Models"), Column(title="Running", kind="number"),
                    Column(title="Waiting", kind="number"), Column(title="Heard"),
                ),
                rows, title="Sites", empty="There are no sites yet.",
                hint="`isochrone site` and docs/joining.md say how a site joins.",
            )


def _row(site: Site) -> tuple[object, ...]:
    return (
        site.name, site.country, site.standing, [load.model for load in site.loads],
        sum(load.running for load in site.loads), sum(load.waiting for load in site.loads),
        site.heard,
    )


def _state(status: Status) -> None:
    if not status.bus:
        with banner("warn", "Control hears no sites just now: NATS is away. Gateways go on."):
            return
    away = [site.name for site in status.sites if not site.ready]
    if away:
        named = ", ".join(away[:5]) + (f" and {len(away) - 5} more" if len(away) > 5 else "")
        with banner("warn", f"Not ready: {named}."):
            ui.space()


def _first_steps() -> None:
    """What to do where nothing was asked yet."""
    with card("Nothing was asked yet"), ui.element("ol").classes("iso-steps"):
        for address, name, about in STEPS:
            with ui.element("li"):
                ui.link(name, address).classes("iso-strong")
                ui.label(about).classes("iso-about")


def _day(day: Day | None) -> list[tuple[str, str, str]]:
    """What the last day with traffic came to."""
    if day is None:
        return [("Requests", "0", "none so far"), ("Tokens out", "0", "")]
    finished = share(day.finished, day.requests)
    return [
        ("Requests", count(day.requests), f"on {day.name} UTC, {finished} finished"),
        ("Tokens out", count(day.output), f"on {day.name} UTC"),
    ]


def _slots(status: Status) -> str:
    loads = [load for site in status.sites for load in site.loads]
    return f"{sum(load.running for load in loads)} of {sum(load.slots for load in loads)}"
