"""A time series: lines or stacked areas over the same instants, in the colours of the page.

Drawn by the browser with ECharts; a table of the same numbers is there for who cannot see it.
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
    """`values` belong to the instants of the chart; None is a gap."""

    name: str
    values: Sequence[float | None]


def time_series(
    instants: Sequence[int], series: Sequence[Series], *, unit: str,
    form: Literal["lines", "areas"] = "lines", target: tuple[str, float] | None = None,
    height_px: int = 220,
) -> ui.echart:
    """Instants are wall nanoseconds. `target` is a named level that the values are to stay under.
    """
    at_ms = [each // NS_PER_MS for each in instants]
    options: dict[str, Any] = {
        "animation": False, "color": list(PALETTE),
        "aria": {"enabled": True},
        "grid": {"left": 8, "right": 16, "top": 36, "bottom": 8, "containLabel": True},
        "legend": {"top": 0, "left": 0, "icon": "roundRect", "itemWidth": 10, "itemHeight": 10,
                   "textStyle": {"color": QUIET}, "type": "scroll"},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {"type": "time", "axisLine": {"lineStyle": {"color": QUIET, "opacity": 0.4}},
                  "axisLabel": {"color": QUIET, "hideOverlap": True},
                  "splitLine": {"show": False}},
        "yAxis": {"type": "value", "name": unit, "min": 0,
                  "nameTextStyle": {"color": QUIET, "align": "left"},
                  "axisLabel": {"color": QUIET},
                  "splitLine": {"lineStyle": {"color": QUIET, "opacity": 0.18}}},
        "series": [_one(each, at_ms, form) for each in series],
    }
    if target is not None and series:
        name, level = target
        options["series"][0]["markLine"] = {
            "silent": True, "symbol": "none", "data": [{"yAxis": level, "name": name}],
            "lineStyle": {"color": PALETTE[4], "type": "dashed"},
            "label": {"formatter": name, "position": "insideEndTop", "color": QUIET},
        }
    return ui.echart(options).classes("iso-chart").style(f"height: {height_px}px")


def _one(series: Series, at_ms: Sequence[int], form: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": series.name, "type": "line", "showSymbol": len(at_ms) < 3, "symbolSize": 5,
        "data": [[at, value] for at, value in zip(at_ms, series.values, strict=True)],
        "lineStyle": {"width": 2 if form == "lines" else 1}, "emphasis": {"focus": "series"},
    }
    if form == "areas":
        shown |= {"stack": "all", "areaStyle": {"opacity": 0.65}}
    return shown
