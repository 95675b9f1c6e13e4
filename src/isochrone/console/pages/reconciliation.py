"""Reconciliation: whether what engines counted, what was booked and what was charged agree."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from nicegui import ui

from isochrone.console.api import Api
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.facts import card, figures
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, instant, whole
from isochrone.core.billing.period import DAY_NS

NS_PER_S = 1_000_000_000
ADDRESS = "/reconciliation?day={}"


class Counts(msgspec.Struct, frozen=True):
    input_uncached: int
    input_cached: int
    output: int

    @property
    def whole(self) -> int:
        return self.input_uncached + self.input_cached + self.output


class Range(msgspec.Struct, frozen=True):
    least: Counts
    most: Counts


class Replica(msgspec.Struct, frozen=True):
    """What its engines counted against what was booked: `exact` from the engine's own final
    counts, `other` from others; `difference` is what the engine counted beyond, `allowed` what of
    it is explained."""

    replica: str
    model: str
    engine: Counts
    exact: Counts
    other: Counts
    requests: int
    others: int
    difference: Counts
    allowed: Range
    verdict: str


class Meter(msgspec.Struct, frozen=True):
    meter: str
    used: int
    charged: int
    waiting: int
    unpriced: int


class Report(msgspec.Struct, frozen=True):
    """A day as the book is now."""

    day_at: int
    agrees: bool
    findings: tuple[str, ...]
    explained: tuple[str, ...]
    replicas: tuple[Replica, ...]
    meters: tuple[Meter, ...]
    wrong_sums: int
    parked: int
    unmetered: int


class Kept(msgspec.Struct, frozen=True):
    """A report as it was made after its day."""

    day_at: int
    agrees: bool
    made_at: int
    findings: tuple[str, ...]


class Now(msgspec.Struct, frozen=True):
    """Of GET /live only control's clock."""

    at: int


class Books(msgspec.Struct, frozen=True):
    report: Report
    kept: tuple[Kept, ...]
    now: int

    @property
    def is_over(self) -> bool:
        """Whether the day is: before, engines are still heard of what was booked already."""
        return self.now >= self.report.day_at + DAY_NS


async def load(api: Api, day: str | None) -> Books:
    """A day like 2026-11-20, None for today. Raises IsochroneError."""
    return Books(
        report=await api.get("reconciliation", Report, day=day),
        kept=await api.items("reconciliation/reports", Kept, most=365),
        now=(await api.get("live", Now)).at,
    )


def day_named(at: int) -> str:
    return datetime.fromtimestamp(at // NS_PER_S, UTC).strftime("%Y-%m-%d")


async def build(visit: Visit) -> None:
    title("Reconciliation", "Engines, usage and charges of a day, compared")
    wanted = visit.query.get("day") or None
    books = await shown(load(visit.api, wanted))
    if books is None:
        _choose(wanted or "")
        return
    report = books.report
    _day(report, is_over=books.is_over)
    if report.findings:
        with card():
            table(
                (Column(title="Finding"),), [(each,) for each in report.findings],
                title="Findings", empty="",
            )
    if report.explained:
        with card():
            table(
                (Column(title="Engines that agree within what is explained"),),
                [(each,) for each in report.explained], title="Explained", empty="",
            )
    _replicas(report.replicas)
    _meters(report.meters)
    with card():
        table(
            (
                Column(title="Day", kind="link", link=ADDRESS),
                Column(title="Agrees", kind="state"), Column(title="Made (UTC)"),
                Column(title="Findings", kind="number"),
                Column(title="The first"),
            ),
            [
                (day_named(each.day_at), "yes" if each.agrees else "no", instant(each.made_at),
                 len(each.findings), each.findings[0] if each.findings else None)
                for each in books.kept
            ],
            title="Kept reports", empty="None was made yet.",
            hint="One is made an hour after each day that had traffic.",
        )


def _day(report: Report, *, is_over: bool) -> None:
    day, found = day_named(report.day_at), len(report.findings)
    findings = f"{found} finding{'' if found == 1 else 's'}"
    if report.agrees:
        within = " within what is explained below" if report.explained else ""
        with banner("good", f"{day}: engines, usage and charges agree{within}."):
            pass
    elif is_over:
        with banner("bad", f"{day}: {findings}."):
            pass
    else:
        with banner("info", f"{day} goes on: {findings} so far. While requests run, engines are "
                    "heard a moment after what they did is booked; look again when it is quiet."):
            pass
    _choose(day)
    figures([
        ("Replicas compared", count(len(report.replicas)), ""),
        ("Meters compared", count(len(report.meters)), ""),
        ("Wrong sums", count(report.wrong_sums), "by hour, not those of requests and events"),
        ("Parked", count(report.parked), "messages that could not be booked"),
        ("Unmetered", count(report.unmetered), "events of no meter"),
    ])


def _choose(day: str) -> None:
    def go() -> None:
        ui.navigate.to(ADDRESS.replace("{}", str(field.value or "")))

    with ui.row().classes("iso-ask"):
        field = ui.input("Day (UTC)", value=day).props("outlined dense type=date")
        field.on("keydown.enter", go)
        ui.button("Show", on_click=go).props("unelevated no-caps")


def _replicas(rows: Sequence[Replica]) -> None:
    with card():
        table(
            (
                Column(title="Replica", kind="code"), Column(title="Model"),
                Column(title="Verdict", kind="state"), Column(title="Requests", kind="number"),
                Column(title="Engine's tokens", kind="number"),
                Column(title="Booked exactly", kind="number"),
                Column(title="Booked otherwise", kind="number"),
                Column(title="Difference", kind="number"),
                Column(title="Explained", kind="number"),
            ),
            [
                (each.replica, each.model, each.verdict, each.requests, whole(each.engine.whole),
                 whole(each.exact.whole), whole(each.other.whole), whole(each.difference.whole),
                 explained(each.allowed))
                for each in rows
            ],
            title="Engines against usage", empty="No engine counted anything on this day.",
        )


def explained(allowed: Range) -> str | None:
    """By how many tokens, over all classes, engine and book may differ; None where by none."""
    least, most = allowed.least.whole, allowed.most.whole
    return f"{whole(least)} to +{whole(most)}" if least or most else None


def _meters(rows: Sequence[Meter]) -> None:
    with card():
        table(
            (
                Column(title="Meter", kind="code"), Column(title="Used", kind="number"),
                Column(title="Charged", kind="number"),
                Column(title="Waiting for its hour", kind="number"),
                Column(title="Without a price", kind="number"),
            ),
            [(each.meter, whole(each.used), whole(each.charged), whole(each.waiting),
              whole(each.unpriced)) for each in rows],
            title="Usage against charges", empty="Nothing was used on this day.",
        )
