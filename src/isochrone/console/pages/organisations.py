"""Organisations: who the customers are, their members and projects; make and revoke members."""

from collections.abc import Mapping

import msgspec
from nicegui import ui

from isochrone.console.api import Api, part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.confirm import Effect, ask
from isochrone.console.parts.facts import card, facts
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import instant
from isochrone.core.errors import InvalidInput
from isochrone.core.tenancy.authorise import MAY_APPOINT

MOST = 10_000
ADDRESS = "/organisations?org={}"


class Organisation(msgspec.Struct, frozen=True):
    id: str
    name: str
    created_at: int
    retain_days: int


class Member(msgspec.Struct, frozen=True):
    """`name` and `email` are None for a person who was erased."""

    id: str
    org_id: str | None
    name: str | None
    role: str
    kind: str
    email: str | None
    expires_at: int | None


class Project(msgspec.Struct, frozen=True):
    id: str
    org_id: str
    name: str
    created_at: int


class Made(msgspec.Struct, frozen=True):
    id: str


class Account(msgspec.Struct, frozen=True):
    login: str
    password: str | None


class Tenants(msgspec.Struct, frozen=True):
    """All that the page shows."""

    organisations: tuple[Organisation, ...]
    members: tuple[Member, ...]
    projects: tuple[Project, ...]


async def load(api: Api) -> Tenants:
    """Raises IsochroneError."""
    return Tenants(
        organisations=await api.items("organisations", Organisation, most=MOST),
        members=await api.items("principals", Member, most=MOST),
        projects=await api.items("projects", Project, most=MOST),
    )


async def build(visit: Visit) -> None:
    title("Organisations", "Customers, their members and projects")
    found = await shown(load(visit.api))
    if found is None:
        return
    wanted = visit.query.get("org") or visit.me.org_id
    if wanted is None:
        _all(visit, found)
        return
    if visit.me.org_id is None:
        ui.link("All organisations", "/organisations")
    chosen = next((each for each in found.organisations if each.id == wanted), None)
    if chosen is None:
        with banner("bad", f"There is no organisation {wanted}."):
            return
    _one(visit, found, chosen)


def _all(visit: Visit, found: Tenants) -> None:
    with card():
        table(
            (
                Column(title="Name"), Column(title="Id", kind="link", link=ADDRESS),
                Column(title="Members", kind="number"), Column(title="Projects", kind="number"),
                Column(title="Made (UTC)"),
            ),
            [
                (
                    each.name, each.id,
                    sum(member.org_id == each.id for member in found.members),
                    sum(project.org_id == each.id for project in found.projects),
                    instant(each.created_at),
                )
                for each in found.organisations
            ],
            title="Organisations", empty="There are no organisations yet.",
        )
    with card():
        _members("Operators", tuple(each for each in found.members if each.org_id is None))
    if visit.me.may("organisations.write"):
        with card("A new organisation"):
            _make(visit)


def _make(visit: Visit) -> None:
    async def make(values: Mapping[str, str]) -> None:
        made = await visit.api.post("organisations", Made, {**values, "project": "main"})
        ui.navigate.to(ADDRESS.replace("{}", part(made.id)))

    name = Field(name="name", label="Name", hint="it begins with a project, main")
    form((name,), "Make it", make)


def _one(visit: Visit, found: Tenants, org: Organisation) -> None:
    members = tuple(each for each in found.members if each.org_id == org.id)
    projects = tuple(each for each in found.projects if each.org_id == org.id)
    with ui.element("div").classes("iso-grid"):
        with card(org.name):
            facts([
                ("Id", org.id), ("Made", f"{instant(org.created_at)} UTC"),
                ("Names kept", f"{org.retain_days} days after somebody has left"),
            ])
            with ui.row():
                ui.link("Audit log", f"/audit?org={part(org.id)}")
                if visit.me.may("ledger.read"):
                    ui.link("Ledger", f"/ledger?org={part(org.id)}")
        with card():
            table(
                (Column(title="Project"), Column(title="Id", kind="code"),
                 Column(title="Made (UTC)")),
                [(each.name, each.id, instant(each.created_at)) for each in projects],
                title="Projects", empty="It has no project yet.",
            )
    with card():
        _members("Members", members)
        if members and visit.me.may("members.write"):
            _revoke(visit, members)
    if visit.me.may("members.write"):
        with card("A new member"):
            _add(visit, org)


def _members(name: str, members: tuple[Member, ...]) -> None:
    table(
        (
            Column(title="Name"), Column(title="E-mail"), Column(title="Role"),
            Column(title="Kind"), Column(title="Until (UTC)"), Column(title="Id", kind="code"),
        ),
        [
            (each.name or "erased", each.email, each.role, each.kind, instant(each.expires_at),
             each.id)
            for each in members
        ],
        title=name, empty="Nobody yet.",
    )


def _add(visit: Visit, org: Organisation) -> None:
    """A person who may sign in here: a member and its account."""
    said = ui.column().classes("iso-said")
    roles: dict[str, str] = {
        role: role for role in sorted(MAY_APPOINT[visit.me.role]) if role != "operator"
    }

    async def add(values: Mapping[str, str]) -> None:
        if not values["email"].strip():
            raise InvalidInput(["email: missing; they sign in with it"])
        body = {**values, "org_id": org.id, "account": {}}
        account = await visit.api.post("principals", Account, body)
        said.clear()
        with said, banner("good", f"{account.login} signs in with this password, shown once:"):
            ui.label(account.password or "").classes("iso-secret")

    form(
        (
            Field(name="name", label="Name"), Field(name="email", label="E-mail address"),
            Field(name="role", label="Role", value="developer", options=roles),
        ),
        "Make them a member", add,
    )


def _revoke(visit: Visit, members: tuple[Member, ...]) -> None:
    by_id = {each.id: each.name or each.id for each in members if each.id != visit.me.id}

    async def asked(values: Mapping[str, str]) -> None:
        chosen = values["principal"]
        if chosen not in by_id:
            raise InvalidInput(["principal: choose one"])

        async def revoke() -> None:
            await visit.api.delete(f"principals/{part(chosen)}", Made)
            ui.navigate.reload()

        ask(
            f"Revoke {by_id[chosen]}?",
            [Effect(text="Their admin key and sessions end at once, for good.", hurts=True),
             Effect(text="Keys of projects that they made go on working.")],
            "Revoke", revoke,
        )

    if by_id:
        form((Field(name="principal", label="Member", options=by_id),), "Revoke a member", asked)
