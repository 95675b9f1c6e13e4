"""Your account: who you are, what your role may do, and your password."""

from collections.abc import Mapping

from nicegui import ui

from isochrone.console.frame import title
from isochrone.console.page import Me, Visit
from isochrone.console.parts.facts import card, facts
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner


async def build(visit: Visit) -> None:
    me = visit.me
    title("Your account")
    with card("Who you are"):
        facts([
            ("Name", me.name), ("Signs in as", me.login), ("Role", me.role),
            ("Organisation", me.organisation or "none: the whole cloud"), ("Id", me.id),
        ])
    with card("Password"):
        ui.label("Changing it ends your sessions in other browsers.").classes("iso-about")
        _password(visit)
    with card("What your role may do"), ui.row().classes("iso-chips"):
        for right in me.rights:
            ui.label(right).classes("iso-chip")


def _password(visit: Visit) -> None:
    said = ui.column()

    async def change(values: Mapping[str, str]) -> None:
        await visit.api.put("me/password", Me, dict(values))
        said.clear()
        with said, banner("good", "Your password is changed."):
            pass

    form(
        (
            Field(name="present", label="Present password", is_secret=True,
                  complete="current-password"),
            Field(name="password", label="New password", is_secret=True, complete="new-password",
                  hint="12 characters or more"),
        ),
        "Change it", change,
    )
