"""Fleet: every site and what runs there against what should, and what an operator can do about it.

Each action says what it will lead to, as the API knows the cloud now, before it is done. The page
looks again every few seconds, for as long as it is open.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from nicegui import ui

from isochrone.console import effects, hosts
from isochrone.console.api import Api, part
from isochrone.console.estate import (
    Deployment,
    Fleet,
    Replica,
    Site,
    cache_use,
    drawn_power,
    load_fleet,
)
from isochrone.console.frame import title
from isochrone.console.hosts import Host, load_hosts
from isochrone.console.page import Visit
from isochrone.console.parts.confirm import Effect, ask
from isochrone.console.parts.facts import card, facts, figures
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Act, Column, refill, table
from isochrone.console.parts.words import count
from isochrone.core.errors import InvalidInput

ADDRESS = "/fleet?site={}"
LOOK_AGAIN_S = 5.0


class Done(msgspec.Struct, frozen=True):
    """Of the answer to an action nothing is shown: the page is built anew."""


class Token(msgspec.Struct, frozen=True):
    token: str


async def build(visit: Visit) -> None:
    title("Fleet", "What runs where, against what should")
    wanted = visit.query.get("site", "")
    if wanted:
        with ui.row():
            ui.link("All sites", "/fleet")
    view = OneSite(visit, wanted) if wanted else AllSites(visit)
    await view.look()
    ui.timer(LOOK_AGAIN_S, view.look, immediate=False)


class AllSites:
    """Sites, hosts and deployments, kept up to date in place."""

    def __init__(self, visit: Visit) -> None:
        self._visit = visit
        self._above = ui.column().classes("iso-said")
        self._sites = Rows(SITES, "Sites", "There are no sites yet.",
                           "`isochrone site` and docs/joining.md say how a site joins.")
        self._hosts = Rows(HOSTS, "Hosts", "No agent has told its host yet.",
                           "Each site's agent does within a second of its start: docs/hosts.md.")
        self._wishes = Rows(WISHES, "Deployments", "Nothing is deployed yet.",
                            "The world file says what runs where: examples/my-world.toml is one.")

    async def look(self) -> None:
        """Ask control again and show what it says."""
        self._above.clear()
        with self._above:
            found = await shown(_load_all(self._visit.api))
            if found is None:
                return
            fleet, machines = found
            _sums(fleet)
        self._sites.show([_site_row(site) for site in fleet.sites])
        self._hosts.show([hosts.row(fleet, each) for each in machines],
                         about=" ".join(hosts.shared(machines)))
        self._wishes.show([_wish_row(fleet, each) for each in fleet.deployments])


async def _load_all(api: Api) -> tuple[Fleet, Sequence[Host]]:
    return await asyncio.gather(load_fleet(api), load_hosts(api))


class OneSite:
    """A site, what runs there and what can be done. What can be done is built anew only when it is
    something else, so that nobody loses what they are writing."""

    def __init__(self, visit: Visit, name: str) -> None:
        self._visit = visit
        self._name = name
        self._said = ui.column().classes("iso-said")
        with ui.element("div").classes("iso-grid") as self._grid:
            with card(name):
                self._facts = ui.column().classes("iso-said")
            self._can: ui.element | None = None
            if visit.me.may("estate.write"):
                with card("What you can do"):
                    self._can = ui.element("div")
        self._could: tuple[object, ...] | None = None
        self._wishes = Rows(WISHES_HERE, "Deployments", "Nothing is deployed here: an ingress"
                            " only.")
        self._replicas = ReplicasByHost(
            self._restart if visit.me.may("estate.write") else None
        )
        self._site: Site | None = None

    async def look(self) -> None:
        """Ask control again and show what it says."""
        self._said.clear()
        with self._said:
            fleet = await shown(load_fleet(self._visit.api))
            if fleet is None:
                return
            site = self._site = fleet.site(self._name)
            if site is None:
                self._grid.set_visibility(False)
                with banner("bad", f"There is no site {self._name}."):
                    return
            machines = await shown(load_hosts(self._visit.api, site=site.name))
            if machines is None:
                return
        self._facts.clear()
        with self._facts:
            _facts(site)
        wishes = fleet.wishes(site.name)
        can = (site.draining, site.stopped, site.joined, tuple(wishes))
        if self._can is not None and can != self._could:
            self._could = can
            self._can.clear()
            with self._can:
                _actions(self._visit, site, wishes)
        self._wishes.show([
            (row[1], row[2], count(each.context_tokens), *row[3:])
            for each in wishes for row in (_wish_row(fleet, each),)
        ])
        self._replicas.show(site.replicas, machines)

    async def _restart(self, wanted: Replica) -> None:
        if self._site is not None:
            await _restart(self._visit, self._site, wanted)


class ReplicasByHost:
    """What runs at a site: a card for each host, and one for what runs nobody knows where."""

    def __init__(self, restart: Callable[[Replica], Awaitable[None]] | None) -> None:
        self._restart = restart
        self._place = ui.column().classes("iso-said")
        self._cards: dict[str | None, Rows] = {}
        self._groups: Mapping[str | None, Sequence[Replica]] = {}

    def show(self, replicas: Sequence[Replica], machines: Sequence[Host]) -> None:
        groups = self._groups = hosts.grouped(replicas, machines)
        if list(groups) != list(self._cards):
            self._place.clear()
            with self._place:
                self._cards = {name: self._card(name, alone=not machines) for name in groups}
        about: dict[str | None, str] = {each.name: each.about for each in machines}
        for name, group in groups.items():
            self._cards[name].show(
                [_replica_row(each) for each in group],
                about=about.get(name, hosts.UNKNOWN if machines else ""),
            )

    def _card(self, name: str | None, *, alone: bool) -> "Rows":
        async def restart(row: int) -> None:
            group = self._groups.get(name, ())
            if self._restart is not None and row < len(group):
                await self._restart(group[row])

        here = "Replicas" if alone else f"Replicas on {name or 'hosts that are not known'}"
        return Rows(
            REPLICAS, here, "No replica runs here, or nothing was heard from the site.",
            act=None if self._restart is None
            else Act(label="Restart", icon="restart_alt", done=restart),
        )


class Rows:
    """A table in a card, under a line about it; its rows are replaced in place."""

    def __init__(
        self, columns: Sequence[Column], title: str, empty: str, hint: str = "",
        act: Act | None = None,
    ) -> None:
        self._columns, self._empty, self._hint = columns, empty, hint
        self._act = act
        self._table: ui.table | None = None
        with card(title):
            self._about = ui.label().classes("iso-about")
            self._place = ui.element("div")

    def show(self, rows: Sequence[Sequence[object]], *, about: str = "") -> None:
        self._about.set_text(about)
        self._about.set_visibility(bool(about))
        if self._table is not None and rows:
            refill(self._table, rows)
            return
        self._place.clear()
        with self._place:
            self._table = table(
                self._columns, rows, empty=self._empty, hint=self._hint, act=self._act,
            )


SITES = (
    Column(title="Site", kind="link", link=ADDRESS), Column(title="Country"),
    Column(title="Health", kind="state"), Column(title="Hardware"),
    Column(title="Replicas", kind="number"), Column(title="Running", kind="number"),
    Column(title="Waiting", kind="number"), Column(title="Heard"),
)
HOSTS = (
    Column(title="Site", kind="link", link=ADDRESS), Column(title="Host", kind="code"),
    Column(title="Health", kind="state"), Column(title="GPUs"),
    Column(title="Cores", kind="number"), Column(title="Memory", kind="number"),
    Column(title="Replicas", kind="number"), Column(title="Running", kind="number"),
    Column(title="Heard"),
)
WISHES_HERE = (
    Column(title="Model"), Column(title="Engine"), Column(title="Context", kind="number"),
    Column(title="Wanted", kind="number"), Column(title="Ready", kind="number"),
    Column(title="State", kind="state"),
)
WISHES = (
    Column(title="Site", kind="link", link=ADDRESS), Column(title="Model"),
    Column(title="Engine"), Column(title="Wanted", kind="number"),
    Column(title="Ready", kind="number"), Column(title="State", kind="state"),
)
REPLICAS = (
    Column(title="Replica", kind="code"), Column(title="State", kind="state"),
    Column(title="Health", kind="state"), Column(title="Why"),
    Column(title="Running", kind="number"), Column(title="Waiting", kind="number"),
    Column(title="KV in use", kind="number"), Column(title="Restarts", kind="number"),
    Column(title="Process", kind="number"),
)


def _sums(fleet: Fleet) -> None:
    if not fleet.bus:
        with banner("warn", "Control hears no sites just now: NATS is away. Gateways go on."):
            pass
    ready = sum(
        load.ready for site in fleet.sites for load in site.loads if site.health != "down"
    )
    open_sites = sum(site.ready and not site.stopped for site in fleet.sites)
    wanted = sum(each.replicas for each in fleet.deployments)
    away = {
        "not joined": sum(not site.joined for site in fleet.sites),
        "never heard": sum(site.joined and site.digest_age_ms is None for site in fleet.sites),
    }
    figures([
        ("Sites ready", f"{open_sites} of {len(fleet.sites)}",
         ", ".join(f"{count} {what}" for what, count in away.items() if count)),
        ("Replicas ready", f"{ready} of {wanted}", "wanted over all deployments"),
        ("Draining, stopped",
         f"{sum(site.draining for site in fleet.sites)}, "
         f"{sum(site.stopped for site in fleet.sites)}", "sites that take no requests"),
        ("Restarts", count(sum(each.restarts for site in fleet.sites for each in site.replicas)),
         "of engines since their agents began"),
    ])


def _facts(site: Site) -> None:
    facts([
        ("Health", site.standing), ("Country", site.country), ("Operator", site.operator),
        ("Owner", site.parent), ("Stated hardware", site.machines),
        ("Power of its boards", drawn_power(site.power)),
        ("Endpoint", site.public_url), ("Joined", site.joined), ("Heard", site.heard),
    ])


def _site_row(site: Site) -> tuple[object, ...]:
    return (
        site.name, site.country, site.standing, site.machines,
        f"{sum(load.ready for load in site.loads)} / "
        f"{sum(load.replicas_wanted for load in site.loads)}",
        sum(load.running for load in site.loads), sum(load.waiting for load in site.loads),
        site.heard,
    )


def _wish_row(fleet: Fleet, wish: Deployment) -> tuple[object, ...]:
    found = fleet.load(wish.site, wish.model)
    ready = 0 if found is None else found.ready
    state = "ready" if ready == wish.replicas else "fewer" if ready < wish.replicas else "more"
    if wish.stopped_replicas is not None:
        state = "stopped" if ready == 0 else "stopping"
    return wish.site, wish.model, wish.engine, wish.replicas, ready, state


def _actions(visit: Visit, site: Site, wishes: Sequence[Deployment]) -> None:
    """What an operator may do to a site, each in a part of its own."""
    with ui.element("div").classes("iso-acts"):
        _drain(visit, site)
    if not site.joined:
        with ui.element("div").classes("iso-acts"):
            _join(visit, site)
    if wishes:
        with ui.element("div").classes("iso-acts"):
            _run(visit, site)
        with ui.element("div").classes("iso-acts"):
            _resize(visit, wishes)


def _replica_row(each: Replica) -> tuple[object, ...]:
    return (
        each.id, each.state, each.health, each.why, each.running, each.waiting,
        cache_use((each,)), each.restarts, each.pid,
    )


async def _restart(visit: Visit, site: Site, wanted: Replica) -> None:
    """Ask whether one replica is to restart: that process, and none that was started since."""

    async def post() -> None:
        body = {"replica": wanted.id, "generation": wanted.generation}
        await visit.api.post("replicas/restart", Done, body)
        _again(site.name)

    def effects_of(fleet: Fleet, present: Site) -> list[Effect]:
        now = next((each for each in present.replicas if each.id == wanted.id), None)
        if now is None or now.generation != wanted.generation:
            return [Effect(text="It was started anew meanwhile, so nothing happens.")]
        return effects.of_restarting(fleet, present, now)

    await _ask(visit, site, f"Restart {wanted.id}?", effects_of, "Restart it", post)


async def _ask(
    visit: Visit, site: Site, question: str,
    effects_of: Callable[[Fleet, Site], Sequence[Effect]], verb: str,
    done: Callable[[], Awaitable[None]],
) -> None:
    """The question, with what it leads to now, not when the page was opened."""
    fleet = await shown(load_fleet(visit.api))
    present = None if fleet is None else fleet.site(site.name)
    if present is not None and fleet is not None:
        ask(question, effects_of(fleet, present), verb, done)
    elif fleet is not None:
        with banner("bad", f"There is no site {site.name} any more."):
            pass


def _again(site: str) -> None:
    ui.navigate.to(ADDRESS.replace("{}", part(site)))


def _drain(visit: Visit, site: Site) -> None:
    async def put(draining: bool) -> None:
        await visit.api.put(f"sites/{part(site.name)}/draining", Done, {"draining": draining})
        _again(site.name)

    async def drain() -> None:
        await _ask(visit, site, f"Drain {site.name}?", effects.of_draining, "Drain it",
                   lambda: put(True))

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


def _run(visit: Visit, site: Site) -> None:
    """Stop what runs there, with or without patience; start it again."""
    async def put(body: Mapping[str, bool]) -> None:
        await visit.api.put(f"sites/{part(site.name)}/running", Done, body)
        _again(site.name)

    async def start() -> None:
        await _ask(visit, site, f"Start {site.name}?", effects.of_starting, "Start it",
                   lambda: put({"running": True}))

    async def stop(at_once: bool) -> None:
        await _ask(
            visit, site, f"{'Kill' if at_once else 'Stop'} every replica of {site.name}?",
            lambda fleet, present: effects.of_stopping(fleet, present, at_once=at_once),
            "Kill them" if at_once else "Stop them",
            lambda: put({"running": False, "at_once": at_once}),
        )

    if site.stopped:
        with banner("warn", f"{site.name} is stopped: its replicas do not run."):
            pass
        ui.button("Start the site", on_click=start).props("outline no-caps")
        return
    ui.label("Stop its replicas after their work; or kill them as a lost site would, and watch the"
             " map.").classes("iso-about")
    with ui.row():
        ui.button("Stop the site", on_click=lambda: stop(False)).props("outline no-caps")
        ui.button("Kill the site", on_click=lambda: stop(True)).props("outline no-caps").classes(
            "iso-hurts"
        )


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
        fleet = await load_fleet(visit.api)
        wish = wish_of(fleet, wishes[0].site, values["model"])

        async def put() -> None:
            body = {"site": wish.site, "model": wish.model, "replicas": replicas}
            await visit.api.put("deployments", Deployment, body)
            _again(wish.site)

        ask(
            f"Run {replicas} of {wish.model} at {wish.site}?",
            effects.of_resizing(fleet, wish, replicas), "Set it", put,
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


def wish_of(fleet: Fleet, site: str, model: str) -> Deployment:
    """Raises InvalidInput: what runs there may have changed since the page was opened."""
    for each in fleet.wishes(site):
        if each.model == model:
            return each
    raise InvalidInput([f"model: {model} is not deployed at {site} any more"])


def replicas_in(text: str) -> int:
    """Raises InvalidInput."""
    if not (text.isascii() and text.isdigit() and len(text) < 4):
        raise InvalidInput(["replicas: want a number"])
    return int(text)
