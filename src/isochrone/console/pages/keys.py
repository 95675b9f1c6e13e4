"""Keys: which there are and what binds them; make one, let another take its place, end it.

The secret of a new key is shown once. From here it goes to the playground through the browser's own
store for this tab, never through the address.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from nicegui import ui

from isochrone.console.api import part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.dialog import dialog, is_open
from isochrone.console.parts.facts import card
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner, empty, shown
from isochrone.console.parts.words import day, text
from isochrone.core.world.tenant import KEY_SCOPES, KeyScope

MOST = 100_000  # a list cut off after the oldest would hide those in use
MOST_SHOWN = 500
SCOPES: Mapping[str, str] = {
    "chat": "Chat, completions, responses, messages", "embeddings": "Embeddings",
    "models": "The list of models", "usage": "Its own usage, at the Control API",
}
OVERLAPS = {
    "0": "nothing: it ends at once", "3600": "an hour", "86400": "a day", "604800": "a week",
    "2592000": "30 days",
}
# The tab's own store: gone when the tab is closed, and the playground takes it out at once.
TO_PLAYGROUND = """() => {
  sessionStorage.setItem("isochrone-key", document.getElementById("new-secret").textContent.trim());
  location.assign("/playground");
}"""
COPY = """() => navigator.clipboard.writeText(
  document.getElementById("new-secret").textContent.trim())"""


class Project(msgspec.Struct, frozen=True):
    id: str
    name: str
    org_id: str


class Key(msgspec.Struct, frozen=True):
    """What GET /keys says of one, as far as it is shown."""

    id: str
    name: str
    project_id: str
    residency: tuple[str, ...]
    scopes: tuple[KeyScope, ...]
    expires_at: int | None
    created_at: int
    revoked_at: int | None


class Made(msgspec.Struct, frozen=True):
    """A new key with its secret."""

    id: str
    name: str
    key: str


class Revoked(msgspec.Struct, frozen=True):
    id: str
    revoked_at: int


class Now(msgspec.Struct, frozen=True):
    """Of GET /live only control's clock."""

    at: int


async def build(visit: Visit) -> None:
    title("Keys", "What programs call the cloud with, and what each may do")
    projects = await shown(visit.api.items("projects", Project, most=MOST))
    if projects is None:
        return
    view = View(visit, names_of(projects))
    await view.look()


def names_of(projects: Sequence[Project]) -> dict[str, str]:
    """Each by its id; with its organisation where several have one of this name."""
    names = Counter(each.name for each in projects)
    return {
        each.id: each.name if names[each.name] == 1 else f"{each.name} of {each.org_id}"
        for each in projects
    }


class View:
    """The page's widgets; the list is filled anew after each change."""

    def __init__(self, visit: Visit, projects: Mapping[str, str]) -> None:
        self._visit = visit
        self._projects = projects
        self._writes = 0  # each write has an idempotency key: this tab's name and its number
        self._made = ui.column().classes("iso-said")
        if visit.me.may("keys.write"):
            with card(), ui.expansion("Make a key", icon="add").classes("iso-expansion") as making:
                self._form()
            self._making = making
        self._list = ui.column().classes("iso-said")
        self._asking = ui.element("div")  # holds the dialogs, which outlive a row of the list

    async def look(self) -> None:
        """Ask for the keys again and show them."""
        self._list.clear()
        with self._list:
            now = await shown(self._visit.api.get("live", Now))
            keys = await shown(self._visit.api.items("keys", Key, most=MOST))
            if now is None or keys is None:
                return
            live = [each for each in keys if ended(each, now.at) is None]
            over = [each for each in keys if ended(each, now.at) is not None]
            with card(f"{len(live)} in use" if live else ""):
                if not live:
                    empty("There are no keys in use.", "Make one: programs need it.", icon="key")
                self._rows(live, now.at)
            if over:
                with card(), ui.expansion(f"{len(over)} that ended").classes("iso-expansion"):
                    self._rows(over, now.at)

    def _rows(self, keys: Sequence[Key], now: int) -> None:
        for each in newest(keys):
            self._row(each, ended(each, now) or "active")
        if len(keys) > MOST_SHOWN:
            ui.label(
                f"These are the latest {MOST_SHOWN}; `isochrone key list` has all."
            ).classes("iso-about")

    def _form(self) -> None:
        fields = [
            Field(name="name", label="Name", hint="what will use it"),
            Field(name="residency", label="Where its requests may be processed", value="any",
                  hint="countries and groups of them with commas: DE, FR, or EEA, or -US, or any"),
            Field(name="scopes", label="What it may be used for", options=SCOPES,
                  value=",".join(KEY_SCOPES), several=True),
            Field(name="expires_at", label="Last day (UTC), or none", is_date=True),
        ]
        if len(self._projects) > 1:
            fields.insert(1, Field(
                name="project_id", label="Project", options=self._projects,
                value=next(iter(self._projects)),
            ))
        form(fields, "Make it", self._make)

    async def _make(self, values: Mapping[str, str]) -> None:
        await self._write("keys", new_key(values))
        self._making.set_value(False)

    async def _write(self, path: str, body: object) -> None:
        """Make a key and show its secret."""
        once = f"console-{ui.context.client.id}-{self._writes}"
        made = await self._visit.api.post(path, Made, body, once=once)
        self._writes += 1
        self._made.clear()
        with self._made:
            _secret(made)
        await self.look()

    def _row(self, key: Key, state: str) -> None:
        with ui.element("div").classes("iso-key"):
            with ui.element("div").classes("iso-key-who"):
                ui.label(key.name).classes("iso-strong")
                ui.label(key.id).classes("iso-code iso-about")
            with ui.element("div").classes("iso-key-what"):
                ui.label(_where(key.residency))
                ui.label(f"For {text(key.scopes)}").classes("iso-about")
            with ui.element("div").classes("iso-key-what"):
                good = "is-good" if state == "active" else "is-plain"
                ui.label(state).classes(f"iso-state {good}")
                project = self._projects.get(key.project_id, key.project_id)
                ui.label(
                    f"{project}; made {day(key.created_at)}, "
                    + ("no end" if key.expires_at is None else f"ends {day(key.expires_at)}")
                ).classes("iso-about")
            if state == "active" and self._visit.me.may("keys.write"):
                with ui.row().classes("iso-key-acts"):
                    self._acts(key)

    def _acts(self, key: Key) -> None:
        for label, ask in (("Rotate", self._ask_rotate), ("End", self._ask_end)):
            act = ui.button(label, on_click=lambda _, ask=ask: ask(key))
            act.props("outline no-caps dense").classes("iso-act")
            act.props["aria-label"] = f"{label} {key.name}"

    def _ask_rotate(self, key: Key) -> None:
        async def rotate(values: Mapping[str, str]) -> None:
            await self._write(
                f"keys/{part(key.id)}/rotate", {"overlap_s": int(values["overlap_s"])}
            )
            opened.close()

        heading = f"A new key in place of {key.name}"
        if is_open(heading):
            return
        with self._asking, dialog(heading) as opened:
            ui.label(
                "It has the same policy, project and uses, and a term as long. The present one "
                "goes on for a while, so that nothing has to stop."
            ).classes("iso-about")
            form(
                [Field(name="overlap_s", label="The present one goes on for", value="86400",
                       options=OVERLAPS)],
                "Make the new one", rotate,
            )

    def _ask_end(self, key: Key) -> None:
        async def end(_: Mapping[str, str]) -> None:
            await self._visit.api.delete(f"keys/{part(key.id)}", Revoked)
            opened.close()
            await self.look()

        heading = f"End {key.name}"
        if is_open(heading):
            return
        with self._asking, dialog(heading, is_question=True) as opened:
            ui.label(
                "Gateways refuse it within half a second, for good. What was used with it stays "
                "in the books."
            ).classes("iso-about")
            form([], "End it for good", end)


def new_key(values: Mapping[str, str]) -> dict[str, object]:
    """The body of POST /keys for what was filled in. The last day is wholly within."""
    body: dict[str, object] = {
        "name": values["name"].strip() or "key",
        "residency": _terms(values["residency"]) or ["any"],
        "scopes": _terms(values["scopes"]),
    }
    if values.get("expires_at"):
        body["expires_at"] = f"{values['expires_at']}T23:59:59Z"
    if values.get("project_id"):
        body["project_id"] = values["project_id"]
    return body


def ended(key: Key, now: int) -> str | None:
    """Why it is good for nothing any more, None where it is. Instants are wall nanoseconds."""
    if key.revoked_at is not None:
        return f"ended {day(key.revoked_at)}"
    if key.expires_at is not None and key.expires_at <= now:
        return f"expired {day(key.expires_at)}"
    return None


def _terms(said: str) -> list[str]:
    return [term.strip() for term in said.split(",") if term.strip()]


def _where(residency: tuple[str, ...]) -> str:
    return "Processed anywhere" if residency == ("any",) else f"Processed in {text(residency)}"


def newest(keys: Sequence[Key]) -> list[Key]:
    """Those that are shown, the latest first."""
    return sorted(keys, key=lambda each: each.created_at, reverse=True)[:MOST_SHOWN]


def _secret(made: Made) -> None:
    with card(f"{made.name} is made"), ui.column().classes("iso-said"):
        with banner("warn", "Keep this now. It is shown once, and nobody can tell it again."):
            pass
        ui.label(made.key).props('id="new-secret"').classes("iso-secret iso-code")
        with ui.row():
            ui.button("Try it in the playground", icon="forum").props(
                "unelevated no-caps"
            ).on("click", js_handler=TO_PLAYGROUND)
            ui.button("Copy", icon="content_copy").props("outline no-caps").on(
                "click", js_handler=COPY
            )
