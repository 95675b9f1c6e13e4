"""Traffic: how many requests, how soon they were answered, what was refused, what went elsewhere.

It looks again every few seconds, for as long as it is open.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from nicegui import ui

from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.chart import Series, TimeSeries
from isochrone.console.parts.facts import card, figures
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, duration, share

LOOK_AGAIN_S = 10.0
NS_PER_S = 1_000_000_000
# What is shown: how many spans of so many seconds.
WINDOWS = {
    "15 min": (60, 15), "1 h": (60, 60), "6 h": (72, 300), "1 day": (96, 900), "7 days": (84, 7200),
}
TARGETS_MS = {100: "100 ms", 200: "200 ms", 500: "500 ms", 1000: "1 s", 3000: "3 s"}
GROUPS = {
    "model": "by model", "class": "by class", "org": "by tenant", "site": "by serving site",
    "ingress": "by ingress",
}
CLASSES = {"": "all classes", "reserved": "reserved", "on_demand": "on_demand", "batch": "batch"}


class Span(msgspec.Struct, frozen=True):
    """Requests of one group in one span of time."""

    at: int
    name: str
    is_sample: bool
    requests: float
    finished: float
    refused: float
    failed: float
    good: float
    spilled: float
    output_tokens: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None


class Reason(msgspec.Struct, frozen=True):
    outcome: str
    reason: str
    requests: float


class Spill(msgspec.Struct, frozen=True):
    ingress: str
    site: str
    requests: float


class Traffic(msgspec.Struct, frozen=True):
    """What GET /traffic says."""

    since: int
    span_s: int
    target_ms: float
    spans: tuple[Span, ...]
    reasons: tuple[Reason, ...]
    spills: tuple[Spill, ...]


class KnownModel(msgspec.Struct, frozen=True):
    name: str


@dataclass(slots=True)
class Wish:
    """What the viewer wants to see."""

    window: str = "1 h"
    group: str = "model"
    model: str = ""
    class_: str = ""
    target_ms: int = 200

    def query(self, *, by: str) -> dict[str, str | int | None]:
        spans, span_s = WINDOWS[self.window]
        return {
            "spans": spans, "span_s": span_s, "by": by, "model": self.model or None,
            "class": self.class_ or None, "target_ms": self.target_ms,
        }


async def build(visit: Visit) -> None:
    title("Traffic", "What was asked, how soon it was answered, refused, or served elsewhere")
    models = await shown(visit.api.items("models", KnownModel, most=1000))
    if models is None:
        return
    view = View(visit, [model.name for model in models])
    await view.look()
    ui.timer(LOOK_AGAIN_S, view.look, immediate=False)


class View:
    """The page's widgets, filled anew each time that it looks."""

    def __init__(self, visit: Visit, models: Sequence[str]) -> None:
        self._visit = visit
        self._wish = Wish()
        self._choices(models)
        self._said = ui.column().classes("iso-said")
        self._figures = ui.column().classes("iso-said")
        with ui.element("div").classes("iso-grid"):
            with card("Requests a second"):
                self._requests = TimeSeries(form="areas")
            with card("Milliseconds to the first byte"):
                self._first = TimeSeries()
            with card("Output tokens a second"):
                self._output = TimeSeries()
            with card("Requests a second that were served elsewhere"):
                self._spilled = TimeSeries()
        self._tables = ui.column().classes("iso-said")

    def _choices(self, models: Sequence[str]) -> None:
        wish = self._wish
        with ui.row().classes("iso-ask"):
            window = ui.toggle(list(WINDOWS)).props(
                'no-caps unelevated dense aria-label="Time shown"'
            ).classes("iso-toggle")
            window.bind_value(wish, "window")
            of_models = {"": "all models", **{name: name for name in models}}
            for name, label, options in (
                ("model", "Model", of_models), ("class_", "Class", CLASSES),
                ("group", "Table", GROUPS), ("target_ms", "Target", TARGETS_MS),
            ):
                chosen = ui.select(options, label=label).props("outlined dense")
                chosen.classes("iso-choice").bind_value(wish, name)
                chosen.on_value_change(self.look)
            window.on_value_change(self.look)

    async def look(self) -> None:
        """Ask control again and show what it says."""
        self._said.clear()
        with self._said:
            whole = await shown(
                self._visit.api.get("traffic", Traffic, **self._wish.query(by="all"))
            )
            groups = await shown(
                self._visit.api.get("traffic", Traffic, **self._wish.query(by=self._wish.group))
            )
        if whole is None or groups is None:
            return
        self._sums(whole)
        self._charts(whole)
        self._tables.clear()
        with self._tables:
            _by_group(groups, GROUPS[self._wish.group])
            with ui.element("div").classes("iso-grid"):
                _reasons(whole)
                _spills(whole)

    def _sums(self, whole: Traffic) -> None:
        requests = sum(span.requests for span in whole.spans)
        finished = sum(span.finished for span in whole.spans)
        good = sum(span.good for span in whole.spans)
        latest = next((span for span in reversed(whole.spans) if span.p50_ms is not None), None)
        self._figures.clear()
        with self._figures:
            if any(span.is_sample for span in whole.spans):
                with banner("info", "Of busy spans the first requests were looked at; counts are "
                            "scaled from them. Exact sums are under usage."):
                    pass
            figures([
                ("Requests", count(requests), f"in {self._wish.window}"),
                ("Finished", share(finished, requests), f"{count(finished)} requests"),
                ("Goodput", share(good, requests),
                 f"finished, first byte within {duration(whole.target_ms)}"),
                ("First byte, median", duration(None if latest is None else latest.p50_ms),
                 "in the last span with requests"),
                ("First byte, p99", duration(None if latest is None else latest.p99_ms), ""),
                ("Elsewhere", share(sum(s.spilled for s in whole.spans), requests),
                 "served at another site than the ingress"),
            ])

    def _charts(self, whole: Traffic) -> None:
        spans, span_s = WINDOWS[self._wish.window][0], float(whole.span_s)
        at = [whole.since + number * whole.span_s * NS_PER_S for number in range(spans)]
        known = {span.at: span for span in whole.spans}
        found = [known.get(each) for each in at]

        def a_second(name: str, field: str, colour: int | None = None) -> Series:
            return Series(name=name, colour=colour, values=[
                0.0 if span is None else round(getattr(span, field) / span_s, 3) for span in found
            ])

        def ms(name: str, field: str) -> Series:
            return Series(name=name, values=[
                None if span is None else getattr(span, field) for span in found
            ])

        late = Series(name="finished later", colour=1, values=[
            0.0 if span is None else round((span.finished - span.good) / span_s, 3)
            for span in found
        ])
        self._requests.show(at, [
            a_second("finished in time", "good", 2), late, a_second("refused", "refused", 3),
            a_second("failed", "failed", 4),
        ])
        self._first.show(
            at, [ms("median", "p50_ms"), ms("p90", "p90_ms"), ms("p99", "p99_ms")],
            target=(f"target {duration(whole.target_ms)}", whole.target_ms),
        )
        self._output.show(at, [a_second("output tokens", "output_tokens")])
        self._spilled.show(at, [a_second("elsewhere", "spilled")])


def _by_group(found: Traffic, name: str) -> None:
    by_name: dict[str, list[Span]] = {}
    for span in found.spans:
        by_name.setdefault(span.name, []).append(span)
    rows: list[tuple[str, ...]] = []
    for group, spans in by_name.items():
        requests = sum(span.requests for span in spans)
        worst = max((span.p99_ms for span in spans if span.p99_ms is not None), default=None)
        medians = sorted(span.p50_ms for span in spans if span.p50_ms is not None)
        rows.append((
            group, count(requests), share(sum(span.finished for span in spans), requests),
            share(sum(span.good for span in spans), requests),
            count(sum(span.refused for span in spans)), count(sum(span.failed for span in spans)),
            duration(medians[len(medians) // 2] if medians else None), duration(worst),
            share(sum(span.spilled for span in spans), requests),
        ))
    with card():
        table(
            (
                Column(title=name.removeprefix("by ").capitalize()),
                Column(title="Requests", kind="number"), Column(title="Finished", kind="number"),
                Column(title="Goodput", kind="number"), Column(title="Refused", kind="number"),
                Column(title="Failed", kind="number"), Column(title="Median", kind="number"),
                Column(title="Worst p99", kind="number"), Column(title="Elsewhere", kind="number"),
            ),
            sorted(rows), title=f"Traffic {name}",
            empty="Nothing was asked in this time.",
        )


def _reasons(found: Traffic) -> None:
    with card():
        table(
            (Column(title="Outcome", kind="state"), Column(title="Reason", kind="code"),
             Column(title="Requests", kind="number")),
            [(each.outcome, each.reason, count(each.requests)) for each in found.reasons],
            title="Not finished, and why",
            empty="Everything that was asked was finished." if found.spans
            else "Nothing was asked in this time.",
        )


def _spills(found: Traffic) -> None:
    with card():
        table(
            (Column(title="Entered at"), Column(title="Served at"),
             Column(title="Requests", kind="number")),
            [(each.ingress, each.site, count(each.requests)) for each in found.spills],
            title="Between sites",
            empty="Every request was served where it entered." if found.spans
            else "Nothing was asked in this time.",
        )
