"""Map: every site by capacity, load or health, requests on their way, and what one site does.

Drawn by `static/map.js` from the frames of `console/live.py`; only the panel of a chosen site is
made here.
"""

from collections.abc import Callable

import msgspec
from nicegui import ui
from nicegui.events import GenericEventArguments

from isochrone.console.api import part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.facts import card, facts
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, duration, instant

RECENT = 12
MOST_EVENTS = 2_000
START = """
const root = document.getElementById("map");
import("/console/map.js").then(module => module.start(root));
"""


class Hardware(msgspec.Struct, frozen=True):
    kind: str
    count: int


class Replica(msgspec.Struct, frozen=True):
    id: str
    model: str
    state: str
    health: str
    why: str | None
    generation: int
    running: int
    waiting: int
    restarts: int
    kept_tokens: int | None


class Load(msgspec.Struct, frozen=True):
    model: str
    replicas_wanted: int
    ready: int
    slots: int
    running: int
    waiting: int
    prefill_tok_s: float | None
    decode_tok_s: float | None


class Link(msgspec.Struct, frozen=True):
    peer: str
    rtt_ms: float
    source: str


class Seen(msgspec.Struct, frozen=True):
    by: str
    state: str
    why: str


class Site(msgspec.Struct, frozen=True):
    """What GET /sites/{name} says, as far as it is shown."""

    name: str
    country: str | None
    operator: str | None
    public_url: str | None
    joined: bool
    health: str
    digest_age_ms: float | None
    hardware: tuple[Hardware, ...]
    seen: tuple[Seen, ...]
    loads: tuple[Load, ...]
    replicas: tuple[Replica, ...]
    links: tuple[Link, ...]


class Choice(msgspec.Struct, frozen=True):
    """A request that the site served."""

    id: str
    received_at: int
    model: str
    ingress: str
    first_byte_ms: float | None
    output: int
    outcome: str


class Event(msgspec.Struct, frozen=True):
    """A change of the site in the audit log."""

    at: int
    actor: str
    kind: str
    change: str


async def build(visit: Visit) -> None:
    title("Map", "Where the cloud is, and where requests go")
    with ui.element("div").classes("map-page") as page:
        world = ui.element("div").classes("map").props('id="map"')
        panel = ui.column().classes("map-panel")

    def close() -> None:
        panel.clear()
        page.classes(remove="has-site")

    async def chosen(event: GenericEventArguments) -> None:
        panel.clear()
        page.classes("has-site")
        with panel:
            await _site(visit, str(event.args["detail"]), close)

    world.on("site", chosen, ["detail"])
    ui.run_javascript(START)


async def _site(visit: Visit, name: str, close: Callable[[], None]) -> None:
    site = await shown(visit.api.get(f"sites/{part(name)}", Site))
    if site is None:
        return
    with card(site.name):
        ui.button(icon="close", on_click=close).props(
            'flat round dense aria-label="Close the site"'
        ).classes("map-close")
        facts([
            ("Health", site.health), ("Country", site.country), ("Operator", site.operator),
            ("Hardware", [f"{each.count} × {each.kind}" for each in site.hardware]),
            ("Endpoint", site.public_url),
            ("Heard", "never" if site.digest_age_ms is None else
             f"{duration(site.digest_age_ms)} ago"),
        ])
        for each in site.seen:
            with banner("warn", f"{each.by} does not trust it: {each.state}, {each.why}"):
                pass
    _loads(site)
    with card():
        table(
            (Column(title="Peer"), Column(title="Round trip", kind="number"),
             Column(title="Known by")),
            [
                (link.peer, duration(link.rtt_ms), link.source)
                for link in sorted(site.links, key=lambda link: link.rtt_ms)[:RECENT]
            ],
            title="Nearest peers", empty="No round trips are known.",
        )
    await _recent(visit, name)
    if visit.me.may("audit.read") and visit.me.org_id is None:
        await _events(visit, name)


def _loads(site: Site) -> None:
    with card():
        table(
            (
                Column(title="Model"), Column(title="Ready", kind="number"),
                Column(title="Running", kind="number"), Column(title="Waiting", kind="number"),
                Column(title="In, out tok/s", kind="number"),
            ),
            [
                (
                    load.model, f"{load.ready} / {load.replicas_wanted}",
                    f"{load.running} / {load.slots}", load.waiting,
                    f"{count(load.prefill_tok_s)}, {count(load.decode_tok_s)}",
                )
                for load in site.loads
            ],
            title="Load", empty="Nothing is deployed here: an ingress only.",
        )
    if site.replicas:
        with card():
            table(
                (
                    Column(title="Replica"), Column(title="Health", kind="state"),
                    Column(title="KV tokens", kind="number"),
                    Column(title="Restarts", kind="number"),
                ),
                [
                    (
                        each.id, each.health if each.why is None else
                        f"{each.health}: {each.why}", count(each.kept_tokens), each.restarts,
                    )
                    for each in site.replicas
                ],
                title="Replicas", empty="",
            )


async def _recent(visit: Visit, name: str) -> None:
    rows = await shown(
        visit.api.items("usage", Choice, most=RECENT, site=name, order="newest")
    )
    if rows is None:
        return
    with card():
        table(
            (
                Column(title="Request", kind="link", link="/explain?id={}"),
                Column(title="From"), Column(title="First byte", kind="number"),
                Column(title="Outcome", kind="state"),
            ),
            [(row.id, row.ingress, duration(row.first_byte_ms), row.outcome) for row in rows],
            title="Requests it served last", empty="It served nothing yet.",
        )


async def _events(visit: Visit, name: str) -> None:
    rows = await shown(visit.api.items("audit", Event, most=MOST_EVENTS, subject=name))
    if rows is None:
        return
    with card():
        table(
            (Column(title="When (UTC)"), Column(title="What"), Column(title="By")),
            [
                (instant(row.at), f"{row.kind} {row.change}", row.actor)
                for row in rows[:-RECENT - 1:-1]  # the log is told from its beginning
            ],
            title="Events", empty="Nothing about it is in the audit log.",
        )
