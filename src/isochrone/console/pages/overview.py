"""The first page: whether the cloud serves, what it served today, and where to look next."""

import msgspec
from nicegui import ui

from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.facts import card, figures
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, duration, share


class Load(msgspec.Struct, frozen=True):
    model: str
    replicas_wanted: int
    ready: int
    slots: int
    running: int
    waiting: int


class SiteStatus(msgspec.Struct, frozen=True):
    name: str
    country: str | None
    ready: bool
    health: str
    digest_age_ms: float | None
    loads: tuple[Load, ...]


class Status(msgspec.Struct, frozen=True):
    ready: bool
    bus: bool
    sites: tuple[SiteStatus, ...]


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
    status = await shown(visit.api.get("status", Status))
    days = await shown(visit.api.items("usage", Day, by="day", most=4_000))
    if status is None or days is None:
        return
    _state(status)
    serving = [site for site in status.sites if site.ready]
    figures([
        ("Sites ready", f"{len(serving)} of {len(status.sites)}", ""),
        ("Slots in use", _slots(status), "requests that engines work on, of those they take"),
        *_day(days[-1] if days else None),
    ])
    with card():
        table(
            (
                Column(title="Site"), Column(title="Country"), Column(title="Health", kind="state"),
                Column(title="Models"), Column(title="Running", kind="number"),
                Column(title="Waiting", kind="number"), Column(title="Heard"),
            ),
            [
                (
                    site.name, site.country, site.health, [load.model for load in site.loads],
                    sum(load.running for load in site.loads),
                    sum(load.waiting for load in site.loads),
                    _heard(site),
                )
                for site in status.sites
            ],
            title="Sites", empty="There are no sites yet.",
            hint="`isochrone site` and docs/joining.md say how a site joins.",
        )


def _heard(site: SiteStatus) -> str:
    return "never" if site.digest_age_ms is None else f"{duration(site.digest_age_ms)} ago"


def _state(status: Status) -> None:
    if not status.bus:
        with banner("warn", "Control hears no sites just now: NATS is away. Gateways go on."):
            return
    away = [site.name for site in status.sites if not site.ready]
    if away:
        named = ", ".join(away[:5]) + (f" and {len(away) - 5} more" if len(away) > 5 else "")
        with banner("warn", f"Not ready: {named}."):
            ui.space()


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
