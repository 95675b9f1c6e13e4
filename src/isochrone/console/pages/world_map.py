"""Map: every site by capacity, load or health, requests on their way, and what one site does.

Drawn by `static/map.js` from the frames of `console/live.py`; what a policy allows and the panel of
a chosen site are made here.
"""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from nicegui import ui
from nicegui.events import GenericEventArguments

from isochrone.console.api import Api, part
from isochrone.console.estate import Site, cache_use, drawn_power
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.pages.audit import Entry, told
from isochrone.console.pages.policies import Policy, Trial
from isochrone.console.parts.facts import card, facts
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, duration, instant
from isochrone.core.errors import NotFound

RECENT = 12
EXPLAINED = 6     # choices that are asked for with their reason, a call each
MOST_POLICIES = 500
DEPLOYMENTS = 200  # changes of deployments among which those of one site are looked for
START = """
const root = document.getElementById("map");
root.policies = %s;
import("/console/map.js").then(module => module.start(root));
"""


class Row(msgspec.Struct, frozen=True):
    """A request that the site served, or that entered there."""

    id: str
    received_at: int
    model: str
    ingress: str
    site: str | None
    first_byte_ms: float | None
    outcome: str
    reason: str | None


class Decision(msgspec.Struct, frozen=True):
    because: str | None
    eligible: int
    refused: tuple[msgspec.Raw, ...]


class Explained(msgspec.Struct, frozen=True):
    """Of GET /requests/{id} only this."""

    decision: Decision | None


class Opened(msgspec.Struct, frozen=True):
    """All that the panel of a site shows; `events` is empty for those who may not see them."""

    site: Site
    served: tuple[Row, ...]
    entered: tuple[Row, ...]
    choices: tuple[Decision | None, ...]
    events: tuple[Entry, ...]


async def load(visit: Visit, name: str) -> Opened:
    """Raises IsochroneError."""
    api = visit.api
    site, served, entered, events = await asyncio.gather(
        api.get(f"sites/{part(name)}", Site),
        api.items("usage", Row, most=RECENT, site=name, order="newest"),
        api.items("usage", Row, most=EXPLAINED, ingress=name, order="newest"),
        _events(visit, name),
    )
    choices = await asyncio.gather(*(_choice(api, row) for row in entered))
    return Opened(
        site=site, served=served, entered=entered, events=events, choices=tuple(choices)
    )


async def _choice(api: Api, row: Row) -> Decision | None:
    """How the request was sent where it was; None for one that has left the book since."""
    try:
        return (await api.get(f"requests/{part(row.id)}", Explained)).decision
    except NotFound:
        return None


async def _events(visit: Visit, name: str) -> tuple[Entry, ...]:
    """Changes of the site and of what is deployed there, the latest first."""
    if visit.me.org_id is not None or not visit.me.may("audit.read"):
        return ()
    own, others = await asyncio.gather(
        visit.api.items("audit", Entry, most=RECENT, subject=name, order="newest"),
        visit.api.items("audit", Entry, most=DEPLOYMENTS, kind="deployment", order="newest"),
    )
    both = (*own, *(each for each in others if each.subject.startswith(f"{name}/")))
    return tuple(sorted(both, key=lambda each: -each.serial)[:RECENT])


async def allowed_by(api: Api, policy: Policy) -> dict[str, object]:
    """What the map shows of a policy: sites that may process under it, and that may take in.
    Raises IsochroneError."""
    trial = await api.post("policies/trials", Trial, {
        "residency": policy.residency, "transit": policy.transit, "caches": policy.caches,
        "logs": policy.logs,
    })
    return {
        "policy": policy.id,
        "processes": [each.site for each in trial.sites if each.processes],
        "enters": [each.site for each in trial.sites if each.enters],
    }


async def build(visit: Visit) -> None:
    title("Map", "Where the cloud is, and where requests go")
    policies = await shown(visit.api.items("policies", Policy, most=MOST_POLICIES)) or ()
    by_id = {each.id: each for each in policies}
    with ui.element("div").classes("map-page") as page:
        world = ui.element("div").classes("map").props('id="map"')
        panel = ui.column().classes("map-panel").props('aria-live="polite"')
    said = ui.column().classes("iso-said")

    def close() -> None:
        panel.clear()
        page.classes(remove="has-site")

    async def chosen(event: GenericEventArguments) -> None:
        panel.clear()
        page.classes("has-site")
        with panel:
            found = await shown(load(visit, str(event.args["detail"])))
            if found is not None:
                _opened(found, close, with_events=visit.me.org_id is None)

    async def policy_chosen(event: GenericEventArguments) -> None:
        said.clear()
        policy = by_id.get(str(event.args["detail"]))
        with said:
            allowed = None if policy is None else await shown(allowed_by(visit.api, policy))
        text = msgspec.json.encode(allowed).decode()
        ui.run_javascript(f"window.isochroneMap?.allow({text});")

    world.on("site", chosen, ["detail"])
    world.on("policy", policy_chosen, ["detail"])
    ui.run_javascript(START % msgspec.json.encode(named(policies)).decode())


def named(policies: Sequence[Policy]) -> list[tuple[str, str]]:
    """Id and name of each policy to choose; what it is where a name stands for several."""
    names = [each.name for each in policies]
    return sorted(
        (
            (each.id, each.name if names.count(each.name) == 1
             else f"{each.name} ({', '.join(each.residency)})")
            for each in policies
        ),
        key=lambda each: each[1],
    )


def _opened(found: Opened, close: Callable[[], None], *, with_events: bool) -> None:
    site = found.site
    with card(site.name):
        ui.button(icon="close", on_click=close).props(
            'flat round dense aria-label="Close the site"'
        ).classes("map-close")
        facts([
            ("Health", site.standing), ("Country", site.country), ("Operator", site.operator),
            ("Hardware", site.machines), ("Power of its boards", drawn_power(site.power)),
            ("Queue", queue(site)), ("KV in use", cache_use(site.replicas)),
            ("Endpoint", site.public_url), ("Heard", site.heard),
        ])
        if with_events:
            ui.link("Open it in Fleet", f"/fleet?site={part(site.name)}")
        if site.stopped:
            with banner("warn", "An operator stopped its replicas."):
                pass
        for each in site.seen:
            with banner("warn", f"{each.by} does not trust it: {each.state}, {each.why}"):
                pass
    _loads(site)
    _choices(found)
    _served(found)
    if with_events:
        _told(found)
    _peers(site)


def queue(site: Site) -> str:
    """What runs and waits over all its models."""
    running, slots, waiting = (
        sum(getattr(load, name) for load in site.loads) for name in ("running", "slots", "waiting")
    )
    return f"{waiting} wait, {running} of {slots} slots in use"


def _loads(site: Site) -> None:
    with card():
        table(
            (
                Column(title="Model"), Column(title="Ready", kind="number"),
                Column(title="Running", kind="number"), Column(title="Waiting", kind="number"),
                Column(title="Out tok/s", kind="number"),
            ),
            [
                (
                    load.model, f"{load.ready} / {load.replicas_wanted}",
                    f"{load.running} / {load.slots}", load.waiting,
                    count(load.decode_tok_s),
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
                    Column(title="KV in use", kind="number"),
                    Column(title="Restarts", kind="number"),
                ),
                [
                    (
                        each.id, each.health if each.why is None else
                        f"{each.health}: {each.why}", cache_use((each,)), each.restarts,
                    )
                    for each in site.replicas
                ],
                title="Replicas", empty="",
            )


def _choices(found: Opened) -> None:
    """Where its gateway sent what entered there, and what decided."""
    with card():
        table(
            (
                Column(title="Request", kind="link", link="/explain?id={}"),
                Column(title="Sent to"), Column(title="Because", kind="code"),
                Column(title="Refused sites", kind="number"),
            ),
            [
                (
                    row.id, row.site or f"nowhere: {row.reason or row.outcome}",
                    None if choice is None else choice.because,
                    None if choice is None else len(choice.refused),
                )
                for row, choice in zip(found.entered, found.choices, strict=True)
            ],
            title="Recent choices of its gateway", empty="Nothing entered here yet.",
        )


def _served(found: Opened) -> None:
    with card():
        table(
            (
                Column(title="Request", kind="link", link="/explain?id={}"),
                Column(title="From"), Column(title="First byte", kind="number"),
                Column(title="Outcome", kind="state"),
            ),
            [(row.id, row.ingress, duration(row.first_byte_ms), row.outcome)
             for row in found.served],
            title="Requests it served last", empty="It served nothing yet.",
        )


def _told(found: Opened) -> None:
    with card():
        table(
            (Column(title="When (UTC)"), Column(title="What"), Column(title="How", kind="long"),
             Column(title="By")),
            [
                (instant(row.at), f"{row.kind} {row.change}", told(row), row.actor)
                for row in found.events
            ],
            title="Events", empty="Nothing about it is in the audit log.",
        )


def _peers(site: Site) -> None:
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
