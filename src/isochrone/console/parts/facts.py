"""Facts: names with values, large figures, and a card around what belongs together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nicegui import ui

from isochrone.console.parts.words import text

LONG = 9  # letters of a figure from which on it is written smaller, so that no number is broken


@contextmanager
def card(title: str = "") -> Iterator[None]:
    """A surface with a heading."""
    with ui.element("section").classes("iso-card"):
        if title:
            ui.label(title).classes("iso-heading").props('role="heading" aria-level="2"')
        yield


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values, one pair a line."""
    with ui.element("dl").classes("iso-facts"):
        for name, value in pairs:
            with ui.element("dt"):
                ui.label(name)
            with ui.element("dd"):
                ui.label(text(value))


def figures(pairs: Sequence[tuple[str, str, str]]) -> None:
    """Large figures: (name, value, what it means or is compared with)."""
    with ui.element("div").classes("iso-figures"):
        for name, value, about in pairs:
            with ui.element("div").classes("iso-figure"):
                ui.label(name).classes("iso-figure-name")
                ui.label(value).classes(
                    "iso-figure-value" + (" is-long" if len(value) > LONG else "")
                )
                if about:
                    ui.label(about).classes("iso-about")
