"""Fleet: every site and what runs there against what should, and what an operator can do about it.

Each action says what it will lead to, as the API knows the cloud now, before it is done.
"""

from collections.abc import Mapping, Sequence

import msgspec
from nicegui import ui

from isochrone.console.api import Api, part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.confirm import Effect, ask
from isochrone.console.parts.facts import card, facts, figures
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, duration
from isochrone.core.errors import InvalidInput

ADDRESS = "/fleet?site={}"


class Hardware(msgspec.Struct, frozen=True):
    kind: str
    count: int


class Load(msgspec.Struct, frozen=True):
    model: str
    replicas_wanted: int
    ready: int
    slots: int
    running: int
    waiting: int


class Replica(msgspec.Struct, frozen=True):
    id: str
    model: str
    state: str
    health: str
    why: str | None
    pid: int | None
    running: int
    waiting: int
    restarts: int
    kept_tokens: int | None


class Site(msgspec.Struct, frozen=True):
    """A site of GET /status, as far as it is shown."""

    name: str
    country: str | None
    operator: str | None
    parent: str | None
    public_url: str | None
    joined: bool
    draining: bool
    ready: bool
    health: str
    digest_age_ms: float | None
    hardware: tuple[Hardware, ...]
    loads: tuple[Load, ...]
    replicas: tuple[Replica, ...]


class Status(msgspec.Struct, frozen=True):
    bus: bool
    sites: tuple[Site, ...]


class Deployment(msgspec.Struct, frozen=True):
    """What should run: `replicas` of the model at the site."""

    site: str
    model: str
    replicas: int
    engine: str
    context_tokens: int


class Drained(msgspec.Struct, frozen=True):
    name: str
    draining: bool


class Token(msgspec.Struct, frozen=True):
    token: str


class Fleet(msgspec.Struct, frozen=True):
    """All that the page shows."""

    bus: bool
    sites: tuple[Site, ...]
    deployments: tuple[Deployment, ...]

    def site(self, name: str) -> Site | None:
        return next((each for each in self.sites if each.name == name), None)

    def load(self, site: str, model: str) -> Load | None:
        found = self.site(site)
        loads = () if found is None else found.loads
        return next((each for each in loads if each.model == model), None)


async def load(api: Api) -> Fleet:
    """The fleet as it is now. Raises IsochroneError."""
    status = await api.get("status", Status)
    wishes = await api.items("deployments", Deployment, most=100_000)
    return Fleet(bus=status.bus, sites=status.sites, deployments=wishes)


def left_for(fleet: Fleet, model: str, *, without: str) -> list[str]:
    """Other sites that take requests for the model now."""
    return [
        site.name for site in fleet.sites
        if site.name != without and site.joined and not site.draining
        and any(load.model == model and load.ready > 0 for load in site.loads)
    ]


def of_draining(fleet: Fleet, site: Site) -> list[Effect]:
    """What draining a site leads to."""
    busy = sum(load.running for load in site.loads)
    waiting = sum(load.waiting for load in site.loads)
    return [
        Effect(text=f"{site.name} takes no new requests from any gateway. The {busy} that run there"
               f" and the {waiting} that wait go on to their end; its replicas keep running."),
        *(
            _without(fleet, load.model, site.name) for load in site.loads if load.ready
        ),
        Effect(text="Clients may still enter there: its gateway sends their requests on. DNS names"
               " it no more."),
    ]


def of_resizing(fleet: Fleet, wish: Deployment, replicas: int) -> list[Effect]:
    """What another number of replicas leads to."""
    change = replicas - wish.replicas
    if change == 0:
        return [Effect(text="Nothing changes: so many are wanted now.")]
    if change > 0:
        return [Effect(text=f"The agent of {wish.site} starts {change} more of {wish.model} as soon"
                       " as it hears of it. They take requests once their weights are loaded.")]
    said = [Effect(text=f"The agent of {wish.site} stops {-change} of {wish.model}, which first end"
                   " the requests that they work on.")]
    return said if replicas else [*said, _without(fleet, wish.model, wish.site)]


def _without(fleet: Fleet, model: str, site: str) -> Effect:
    """What remains of a model when a site serves it no more."""
    others = left_for(fleet, model, without=site)
    if others:
        return Effect(text=f"{model} goes on at {_named(others)}, where a policy allows it.")
    return Effect(
        text=f"{model} is ready nowhere else: every request for it will be refused.", hurts=True
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


async def build(visit: Visit) -> None:
    title("Fleet", "What runs where, against what should")
    fleet = await shown(load(visit.api))
    if fleet is None:
        return
    wanted = visit.query.get("site", "")
    if not wanted:
        _all(fleet)
        return
    site = fleet.site(wanted)
    with ui.row():
        ui.link("All sites", "/fleet")
    if site is None:
        with banner("bad", f"There is no site {wanted}."):
            return
    _one(visit, fleet, site)


def _all(fleet: Fleet) -> None:
    if not fleet.bus:
        with banner("warn", "Control hears no sites just now: NATS is away. Gateways go on."):
            pass
    ready = sum(load.ready for site in fleet.sites for load in site.loads)
    wanted = sum(each.replicas for each in fleet.deployments)
    away = sum(site.digest_age_ms is None or not site.joined for site in fleet.sites)
    figures([
        ("Sites ready", f"{sum(site.ready for site in fleet.sites)} of {len(fleet.sites)}",
         f"{away} never heard" if away else ""),
        ("Replicas ready", f"{ready} of {wanted}", "wanted over all deployments"),
        ("Draining", str(sum(site.draining for site in fleet.sites)), "taking no new requests"),
        ("Restarts", count(sum(each.restarts for site in fleet.sites for each in site.replicas)),
         "of engines since their agents began"),
    ])
    with card():
        table(
            (
                Column(title="Site", kind="link", link=ADDRESS), Column(title="Country"),
                Column(title="Health", kind="state"), Column(title="Hardware"),
                Column(title="Replicas", kind="number"), Column(title="Running", kind="number"),
                Column(title="Waiting", kind="number"), Column(title="Heard"),
            ),
            [_site_row(site) for site in fleet.sites],
            title="Sites", empty="There are no sites yet.",
            hint="`isochrone site` and docs/joining.md say how a site joins.",
        )
    with card():
        table(
            (
                Column(title="Site", kind="link", link=ADDRESS), Column(title="Model"),
                Column(title="Engine"), Column(title="Wanted", kind="number"),
                Column(title="Ready", kind="number"), Column(title="State", kind="state"),
            ),
            [_wish_row(fleet, each) for each in fleet.deployments],
            title="Deployments", empty="Nothing is deployed yet.",
            hint="The world file says what runs where: docs/worlds.md.",
        )


def _site_row(site: Site) -> tuple[object, ...]:
    return (
        site.name, site.country, site.health,
        [f"{each.count} × {each.kind}" for each in site.hardware],
        f"{sum(load.ready for load in site.loads)} / "
        f"{sum(load.replicas_wanted for load in site.loads)}",
        sum(load.running for load in site.loads), sum(load.waiting for load in site.loads),
        _heard(site),
    )


def _wish_row(fleet: Fleet, wish: Deployment) -> tuple[object, ...]:
    found = fleet.load(wish.site, wish.model)
    ready = 0 if found is None else found.ready
    state = "ready" if ready == wish.replicas else "fewer" if ready < wish.replicas else "more"
    return wish.site, wish.model, wish.engine, wish.replicas, ready, state


def _heard(site: Site) -> str:
    return "never" if site.digest_age_ms is None else f"{duration(site.digest_age_ms)} ago"


def _one(visit: Visit, fleet: Fleet, site: Site) -> None:
    wishes = [each for each in fleet.deployments if each.site == site.name]
    with ui.element("div").classes("iso-grid"):
        with card(site.name):
            facts([
                ("Health", site.health), ("Country", site.country), ("Operator", site.operator),
                ("Owner", site.parent),
                ("Hardware", [f"{each.count} × {each.kind}" for each in site.hardware]),
                ("Endpoint", site.public_url), ("Joined", site.joined), ("Heard", _heard(site)),
            ])
        if visit.me.may("estate.write"):
            with card("What you can do"):
                _drain(visit, site)
                if not site.joined:
                    _join(visit, site)
                if wishes:
                    _resize(visit, wishes)
    with card():
        table(
            (
                Column(title="Model"), Column(title="Engine"),
                Column(title="Context", kind="number"), Column(title="Wanted", kind="number"),
                Column(title="Ready", kind="number"), Column(title="State", kind="state"),
            ),
            [
                (row[1], row[2], count(each.context_tokens), *row[3:])
                for each in wishes for row in (_wish_row(fleet, each),)
            ],
            title="Deployments", empty="Nothing is deployed here: an ingress only.",
        )
    with card():
        table(
            (
                Column(title="Replica", kind="code"), Column(title="State", kind="state"),
                Column(title="Health", kind="state"), Column(title="Why"),
                Column(title="Running", kind="number"), Column(title="Waiting", kind="number"),
                Column(title="KV tokens", kind="number"), Column(title="Restarts", kind="number"),
                Column(title="Process", kind="number"),
            ),
            [
                (each.id, each.state, each.health, each.why, each.running, each.waiting,
                 count(each.kept_tokens), each.restarts, each.pid)
                for each in site.replicas
            ],
            title="Replicas", empty="No replica runs here, or nothing was heard from the site.",
        )


def _drain(visit: Visit, site: Site) -> None:
    async def put(draining: bool) -> None:
        path = f"sites/{part(site.name)}/draining"
        await visit.api.put(path, Drained, {"draining": draining})
        ui.navigate.to(ADDRESS.replace("{}", part(site.name)))

    async def drain() -> None:
        fleet = await shown(load(visit.api))  # what it leads to now, not when the page was opened
        present = None if fleet is None else fleet.site(site.name)
        if fleet is not None and present is not None:
            ask(f"Drain {site.name}?", of_draining(fleet, present), "Drain it", lambda: put(True))

    def take_again() -> None:
        again = Effect(text="Gateways choose it again within seconds, where it answers soonest.")
        ask(f"Let {site.name} take requests again?", [again], "Let it", lambda: put(False))

    if site.draining:
        with banner("info", f"{site.name} is being drained: it takes no new requests."):
            pass
        ui.button("Take requests again", on_click=take_again).props("outline no-caps")
    else:
        ui.label("Before maintenance, or when it misbehaves.").classes("iso-about")
        ui.button("Drain the site", on_click=drain).props("outline no-caps")


def _join(visit: Visit, site: Site) -> None:
    """A token for a site that has yet to join."""
    said = ui.column().classes("iso-said")

    async def make() -> None:
        made = await visit.api.post(f"sites/{part(site.name)}/token", Token)
        said.clear()
        with said, banner("good", "The token, good for one hour and shown once:"):
            ui.label(made.token).classes("iso-code iso-secret")

    def question() -> None:
        once = Effect(text=f"Whoever has it can join as {site.name} once, within an hour.")
        ask(f"Make a join token for {site.name}?", [once], "Make it", make)

    ui.button("Make a join token", on_click=question).props("outline no-caps")


def _resize(visit: Visit, wishes: Sequence[Deployment]) -> None:
    """Another number of replicas: said first, then done."""

    async def asked(values: Mapping[str, str]) -> None:
        replicas = replicas_in(values["replicas"])
        fleet = await load(visit.api)
        wish = next(
            each for each in fleet.deployments
            if (each.site, each.model) == (wishes[0].site, values["model"])
        )

        async def put() -> None:
            body = {"site": wish.site, "model": wish.model, "replicas": replicas}
            await visit.api.put("deployments", Deployment, body)
            ui.navigate.to(ADDRESS.replace("{}", part(wish.site)))

        ask(
            f"Run {replicas} of {wish.model} at {wish.site}?", of_resizing(fleet, wish, replicas),
            "Set it", put,
        )

    form(
        (
            Field(name="model", label="Model", value=wishes[0].model,
                  options={each.model: each.model for each in wishes}),
            Field(name="replicas", label="Replicas", value=str(wishes[0].replicas),
                  hint="0 stops them all"),
        ),
        "Set replicas", asked,
    )


def replicas_in(text: str) -> int:
    """Raises InvalidInput."""
    if not (text.isascii() and text.isdigit() and len(text) < 4):
        raise InvalidInput(["replicas: want a number"])
    return int(text)
