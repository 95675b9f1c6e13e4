"""The frame around every page: menu, who is signed in, colours, and where the page goes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from nicegui import ui

from isochrone.console.page import Me, Page
from isochrone.console.parts.notices import banner
from isochrone.console.sign_in import SIGN_OUT

Theme = str | None
HEAD = """
<link rel="icon" href="/console/icon.svg">
<link rel="stylesheet" href="/console/colours.css">
<link rel="stylesheet" href="/console/console.css">
<script src="/console/theme.js"></script>
<script src="/console/focus.js"></script>
"""
SWAP_THEME = """
const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
document.documentElement.dataset.theme = next;
document.cookie = `isochrone-theme=${next}; path=/; max-age=31536000; samesite=lax`;
document.dispatchEvent(new CustomEvent("isochrone-theme"));
emitEvent("theme", next);
"""


@contextmanager
def frame(page: Page, pages: Sequence[Page], me: Me, theme: Theme) -> Iterator[None]:
    """Everything but the page, which is put within the context. `theme` is `dark`, `light` or None
    for what the system says."""
    ui.add_head_html(HEAD)
    ui.page_title(f"{page.title} · Isochrone")
    dark = ui.dark_mode(None if theme is None else theme == "dark")
    ui.on("theme", lambda event: dark.set_value(event.args == "dark"))
    ui.html('<a class="skip" href="#page">Skip to the page</a>', sanitize=False)
    menu = ui.left_drawer(bordered=True).classes("iso-menu").props("width=232 breakpoint=1023")
    with ui.header().classes("iso-header"):
        ui.button(icon="menu", on_click=menu.toggle).props(
            'flat round dense aria-label="Menu"'
        ).classes("lt-md")
        with ui.link(target="/").classes("iso-brand").props('aria-label="Isochrone, first page"'):
            ui.element("img").classes("iso-mark").props('src="/console/icon.svg" alt=""')
            ui.label("Isochrone")
        ui.space()
        ui.button(icon="contrast").props('flat round dense aria-label="Light or dark"').on(
            "click", js_handler=f"() => {{ {SWAP_THEME} }}"
        )
        _who(me)
    with menu:
        _menu(page, pages, me)
    with ui.column().classes("iso-page").props('id=page tabindex=-1 role="main"'):
        if me.is_given:
            with banner("info", "You sign in with a password that you were given."):
                ui.link("Choose your own", "/account")
        yield


def title(text: str, about: str = "") -> None:
    """The heading of a page, with one line under it."""
    with ui.element("header").classes("iso-title"):
        ui.html(f"<h1>{_plain(text)}</h1>", sanitize=False)
        if about:
            ui.label(about).classes("iso-about")


def _plain(text: str) -> str:
    assert text.replace(" ", "").isalnum(), "titles are words of our own"
    return text


def _menu(page: Page, pages: Sequence[Page], me: Me) -> None:
    shown = [each for each in pages if me.role in each.roles]
    with ui.element("nav").props('aria-label="Pages"'):
        for group, members in groupby(shown, key=lambda each: each.group):
            ui.label(group).classes("iso-group")
            for each in members:
                link = ui.link(target=each.path).classes("iso-item")
                if each.path == page.path:
                    link.classes("is-here").props('aria-current="page"')
                with link:
                    ui.icon(each.icon).props('aria-hidden="true"')
                    ui.label(each.title)


def _who(me: Me) -> None:
    """Name, role, and the way out."""
    shown = me.name or me.login or me.id
    with (
        ui.button(icon="account_circle").props('flat no-caps dense aria-label="You"'),
        ui.menu().props('anchor="bottom right" self="top right"'),
        ui.column().classes("iso-who"),
    ):
        ui.label(shown).classes("iso-strong")
        where = me.organisation or "the whole cloud"
        ui.label(f"{me.role} of {where}").classes("iso-about")
        ui.link("Your account", "/account")
        # A form of its own: signing out changes something, so it is no link.
        ui.html(
            f'<form method="post" action="{SIGN_OUT}">'
            '<button class="iso-plain-button" type="submit">Sign out</button></form>',
            sanitize=False,
        )
