"""A time series: lines, stacked areas or bars over the same instants, drawn by the browser with
ECharts.

The unit stands in the heading above it. Instants are shown in UTC, as everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nicegui import ui

PALETTE = ("#2aa7c9", "#f0a93b", "#2fb68f", "#8f7bea", "#e2657d", "#7f93b2", "#b9c23f", "#d07ac0")
QUIET = "#8494a8"
NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """`values` belong to the instants of the chart; None is a gap. `colour` is a number of the
    palette, by its place among the series unless it is said."""

    name: str
    values: Sequence[float | None]
    colour: int | None = None


Form = Literal["lines", "areas", "bars"]


class TimeSeries:
    """A chart that can be given other values later."""

    def __init__(
        self, *, form: Form = "lines", height_px: int = 220
    ) -> None:
        self._form: Form = form
        self._chart = ui.echart(_frame()).classes("iso-chart").style(f"height: {height_px}px")

    def show(
        self, instants: Sequence[int], series: Sequence[Series], *,
        target: tuple[str, float] | None = None,
    ) -> None:
        """Instants are wall nanoseconds. `target` is a named level that values are to stay under.
        """
        at_ms = [each // NS_PER_MS for each in instants]
        shown = [_one(each, at_ms, self._form) for each in series]
        if target is not None and shown:
            name, level = target
            shown[0]["markLine"] = {
                "silent": True, "symbol": "none", "data": [{"yAxis": level, "name": name}],
                "lineStyle": {"color": PALETTE[4], "type": "dashed"},
                "label": {"formatter": name, "position": "insideEndTop", "color": QUIET},
            }
        self._chart.options["series"] = shown
        self._chart.update()


def time_series(
    instants: Sequence[int], series: Sequence[Series], *,
    form: Form = "lines", target: tuple[str, float] | None = None,
) -> TimeSeries:
    """A chart with these values."""
    chart = TimeSeries(form=form)
    chart.show(instants, series, target=target)
    return chart


def _frame() -> dict[str, Any]:
    """Everything but the values."""
    return {
        "animation": False, "color": list(PALETTE), "useUTC": True,
        "aria": {"enabled": True},
        "grid": {"left": 8, "right": 16, "top": 36, "bottom": 8, "containLabel": True},
        "legend": {"top": 0, "left": 0, "icon": "roundRect", "itemWidth": 10, "itemHeight": 10,
                   "textStyle": {"color": QUIET}, "type": "scroll"},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "time", "axisLine": {"lineStyle": {"color": QUIET, "opacity": 0.4}},
                  "axisLabel": {"color": QUIET, "hideOverlap": True},
                  "splitLine": {"show": False}},
        "yAxis": {"type": "value", "min": 0,
                  "axisLabel": {"color": QUIET},
                  "splitLine": {"lineStyle": {"color": QUIET, "opacity": 0.18}}},
        "series": [],
    }


def alone(values: Sequence[float | None]) -> list[bool]:
    """Which values have a gap on both sides: a line draws nothing of them."""
    there = [False, *(value is not None for value in values), False]
    return [
        here and not before and not after
        for before, here, after in zip(there, there[1:], there[2:], strict=False)
    ]


def _one(series: Series, at_ms: Sequence[int], form: Form) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": series.name, "type": "line", "symbol": "none", "symbolSize": 5,
        "data": [
            {"value": [at, value], "symbol": "circle"} if is_alone else [at, value]
            for at, value, is_alone in zip(
                at_ms, series.values, alone(series.values), strict=True
            )
        ],
        "lineStyle": {"width": 2 if form == "lines" else 0}, "emphasis": {"focus": "series"},
    }
    if series.colour is not None:
        shown["color"] = PALETTE[series.colour]
    if form == "areas":
        # Without lines: one that is 0 would lie in its colour on what is below it.
        shown |= {"stack": "all", "areaStyle": {"opacity": 0.65}}
    elif form == "bars":
        shown |= {"type": "bar", "stack": "all", "barMaxWidth": 26}
    return shown
