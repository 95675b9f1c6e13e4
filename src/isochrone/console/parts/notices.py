"""What is said beside the data: a banner, an empty state, and what went wrong."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from nicegui import ui

from isochrone.console.sign_in import sign_in_for
from isochrone.core.errors import InvalidInput, IsochroneError, Untrusted

T = TypeVar("T")

Tone = Literal["info", "good", "warn", "bad"]
ICONS: dict[Tone, str] = {
    "info": "info", "good": "check_circle", "warn": "warning", "bad": "error",
}


@contextmanager
def banner(tone: Tone, text: str) -> Iterator[None]:
    """One line across the page; more may be put into it."""
    role = "alert" if tone == "bad" else "status"
    with ui.row().classes(f"iso-banner is-{tone}").props(f'role="{role}"'):
        ui.icon(ICONS[tone]).props('aria-hidden="true"')
        ui.label(text)
        yield


def empty(text: str, hint: str = "", *, icon: str = "inbox") -> None:
    """Stands where data would be: what there is none of, and how to get some."""
    with ui.column().classes("iso-empty"):
        ui.icon(icon).props('aria-hidden="true"')
        ui.label(text).classes("iso-strong")
        if hint:
            ui.label(hint).classes("iso-about")


def trouble(error: IsochroneError) -> None:
    """A failure in plain words, all its problems listed; the way back in when a session is over."""
    if isinstance(error, Untrusted):
        with banner("bad", "Your session is over."):
            # In another tab, so that what is written here can be taken along.
            ui.link("Sign in again", sign_in_for(ui.context.client.request), new_tab=True)
        return
    problems = error.problems if isinstance(error, InvalidInput) else (error.message,)
    for problem in problems:
        with banner("bad", problem):
            pass


async def shown(work: Awaitable[T]) -> T | None:
    """The result of `work`; where it fails, None, and the failure is said here."""
    try:
        return await work
    except IsochroneError as error:
        trouble(error)
        return None
