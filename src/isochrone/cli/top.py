"""`isochrone top`: the cloud live in a terminal, busiest sites first, until Ctrl-C."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isochrone.cli.cloud import KeyOption, StateOption, UrlOption, find_cloud
from isochrone.cli.show import NS_PER_S, cell
from isochrone.core.errors import Unavailable
from isochrone.core.percent import percent
from isochrone.wiring.control_api import ControlApi

if TYPE_CHECKING:
    from rich.console import RenderableType

SPAN_S = 10
SPANS = 6
BAR = 12
ROWS_BESIDE = 9  # lines of a screen that are not sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What control said: `status` and traffic of the last minute, of all and by serving site."""

    status: Mapping[str, Any]
    traffic: Mapping[str, Any]
    by_site: Mapping[str, Any]


def register(app: typer.Typer) -> None:
    app.command(epilog="Examples: `isochrone top` · `isochrone top --once`")(top)


def top(
    state: StateOption = None, url: UrlOption = None, key: KeyOption = None,
    every_s: Annotated[
        float, typer.Option("--every", min=0.5, max=60, metavar="S", help="Seconds between looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option(help="Print it once; so it is without a terminal.")] = False,
) -> None:
    """Show sites, load and traffic of the last minute, live, until Ctrl-C."""
    from isochrone.cli.show import print_rich

    api = find_cloud(state, url, key).api
    seen = look(api)
    if once or not sys.stdout.isatty():
        print_rich(screen(seen, most=1_000))
        return
    _live(api, seen, every_s)


def look(api: ControlApi) -> Seen:
    """Raises IsochroneError."""
    asked = f"traffic?span_s={SPAN_S}&spans={SPANS}"
    return Seen(
        status=api.get("status"), traffic=api.get(asked), by_site=api.get(f"{asked}&by=site")
    )


def _live(api: ControlApi, seen: Seen, every_s: float) -> None:
    """Look again and again; while control is away what was seen last stays, and it says so."""
    from rich.console import Console
    from rich.live import Live

    console, away = Console(), ""
    with Live(console=console, screen=True, auto_refresh=False) as shown:
        while True:
            most = max(console.height - ROWS_BESIDE, 3)
            shown.update(screen(seen, most=most, away=away), refresh=True)
            time.sleep(every_s)
            try:
                seen, away = look(api), ""
            except Unavailable as error:
                away = error.message


def screen(seen: Seen, *, most: int, away: str = "") -> "RenderableType":
    """One screen: what the cloud does, then at most `most` sites, the busiest first."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    sites: Sequence[Mapping[str, Any]] = seen.status["sites"]
    rates = _rates(seen.by_site)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, side in (
        ("site", "left"), ("country", "left"), ("health", "left"), ("slots", "left"),
        ("running", "right"), ("waiting", "right"), ("KV in use", "right"),
        ("requests/s", "right"), ("heard", "right"),
    ):
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    ordered = sorted(sites, key=lambda site: (-sum(_load(site)[:2]), str(site["name"])))
    for site in ordered[:most]:
        running, waiting, slots = _load(site)
        health, age_ms = str(site["health"]), site["digest_age_ms"]
        table.add_row(
            str(site["name"]), cell(site["country"]), Text(health, style=_tone(health)),
            Text(_bar(running, slots)), f"{running}/{slots}", str(waiting), _held(site),
            f"{rates.get(str(site['name']), 0.0):.1f}",
            "never" if age_ms is None else f"{age_ms / 1000:.1f} s",
        )
    lines: list[RenderableType] = [Text(_head(seen), style="bold"), Text(_sum(seen.traffic))]
    if away:
        lines.append(Text(f"control is away: {away}", style="red"))
    lines.append(table)
    if len(ordered) > most:
        lines.append(Text(f"and {len(ordered) - most} more sites", style="dim"))
    if seen.traffic["reasons"]:
        worst = sorted(seen.traffic["reasons"], key=lambda each: -each["requests"])[:4]
        said = ", ".join(f"{each['reason'] or each['outcome']} {each['requests']:.0f}"
                         for each in worst)
        lines.append(Text(f"not served: {said}", style="yellow"))
    return Group(*lines)


def _head(seen: Seen) -> str:
    sites = seen.status["sites"]
    at = datetime.fromtimestamp(seen.status["at"] // NS_PER_S, UTC)
    bus = "" if seen.status["bus"] else "   NATS is away"
    ready = sum(bool(site["ready"]) for site in sites)
    return f"isochrone  {at:%Y-%m-%d %H:%M:%S} UTC   {ready} of {len(sites)} sites ready{bus}"


def _sum(traffic: Mapping[str, Any]) -> str:
    """The last minute in one line; times are those of its last span with any."""
    spans: Sequence[Mapping[str, Any]] = traffic["spans"]
    requests = sum(each["requests"] for each in spans)
    if not requests:
        return f"nothing was asked in the last {SPAN_S * SPANS} s"
    share = {name: percent(sum(each[name] for each in spans), requests)
             for name in ("finished", "good", "spilled")}
    timed = [each for each in spans if each["p50_ms"] is not None]
    times = "" if not timed else (
        f"   first byte p50 {timed[-1]['p50_ms']:.0f} ms, p90 {timed[-1]['p90_ms']:.0f} ms,"
        f" p99 {timed[-1]['p99_ms']:.0f} ms"
    )
    return (
        f"{requests / (SPAN_S * SPANS):.1f} requests/s   finished {share['finished']}   "
        f"good {share['good']}   elsewhere {share['spilled']}{times}"
    )


def _rates(by_site: Mapping[str, Any]) -> dict[str, float]:
    """Requests a second that each site served in the last minute."""
    rates: dict[str, float] = {}
    for each in by_site["spans"]:
        name = str(each["name"])
        rates[name] = rates.get(name, 0.0) + each["requests"] / (SPAN_S * SPANS)
    return rates


def _load(site: Mapping[str, Any]) -> tuple[int, int, int]:
    """(running, waiting, slots) over all models."""
    loads = site["loads"]
    return (
        sum(load["running"] for load in loads), sum(load["waiting"] for load in loads),
        sum(load["slots"] for load in loads),
    )


def _held(site: Mapping[str, Any]) -> str:
    """Tokens that running requests take of the engines' caches, as far as they say."""
    held = [each["held_tokens"] for each in site["replicas"] if each["held_tokens"] is not None]
    return f"{sum(held):,}" if held else "-"


def _bar(part: int, whole: int) -> str:
    filled = round(BAR * min(part / whole, 1.0)) if whole else 0
    return "█" * filled + "░" * (BAR - filled)


def _tone(health: str) -> str:
    return {"healthy": "green", "down": "red"}.get(health, "yellow")
