"""Playground: talk to a model with a key, and see of each answer where it ran and what it cost.

Drawn by `static/playground.js`, which keeps the key in the browser; `console/relay.py` passes each
message on. The console never holds the key.
"""

import msgspec
from nicegui import ui

from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.notices import empty, shown

MOST = 2000
START = """
const root = document.getElementById("playground");
import("/console/playground.js").then(module => module.start(root));
"""


class Model(msgspec.Struct, frozen=True):
    name: str
    kind: str


class Site(msgspec.Struct, frozen=True):
    """A site that may be an ingress."""

    name: str
    country: str | None
    public_url: str | None
    ready: bool


async def build(visit: Visit) -> None:
    title("Playground", "Talk to a model, and see where each answer came from and what it cost")
    models = await shown(visit.api.items("models", Model, most=MOST))
    sites = await shown(visit.api.items("sites", Site, most=MOST))
    if models is None or sites is None:
        return
    chats = [model.name for model in models if model.kind == "chat"]
    entries = entrances(sites)
    if not chats or not entries:
        empty("There is nothing to talk to yet.", "A site has to join, and serve a chat model.")
        return
    root = ui.element("div").classes("chat").props('id="playground"')
    root.props["data-setup"] = msgspec.json.encode({"models": chats, "sites": entries}).decode()
    ui.run_javascript(START)


def entrances(sites: tuple[Site, ...]) -> list[tuple[str, str]]:
    """Name and label of the sites where a request may enter: those with engines ready first."""
    joined = [site for site in sites if site.public_url]
    return [
        (site.name, f"{site.name} ({site.country or 'no country'})")
        for site in sorted(joined, key=lambda each: (not each.ready, each.name))
    ]
