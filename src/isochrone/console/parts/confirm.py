"""A question before something is done: what it will lead to, and two ways out."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from nicegui import ui

from isochrone.console.parts.dialog import dialog, is_open
from isochrone.console.parts.notices import trouble
from isochrone.core.errors import IsochroneError


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One thing that will follow, as a sentence; `hurts`: somebody will miss something."""

    text: str
    hurts: bool = False


def ask(
    question: str, effects: Sequence[Effect], verb: str, done: Callable[[], Awaitable[None]]
) -> None:
    """Open the question; `verb` is the button that does it. What `done` raises is shown there."""
    if is_open(question):
        return
    with dialog(question, is_question=True) as opened:
        with ui.element("ul").classes("iso-effects"):
            for each in effects:
                with ui.element("li").classes("hurts" if each.hurts else ""):
                    ui.icon("warning" if each.hurts else "arrow_right_alt").props(
                        'aria-hidden="true"'
                    )
                    ui.label(each.text)
        said = ui.column().classes("iso-said")
        with ui.row().classes("iso-answers"):
            ui.button("Cancel", on_click=opened.close).props("flat no-caps")
            doing = ui.button(verb).props("unelevated no-caps")
            if any(each.hurts for each in effects):
                doing.classes("iso-grave")

    async def go() -> None:
        said.clear()
        doing.disable()
        try:
            await done()
        except IsochroneError as error:
            with said:
                trouble(error)
        else:
            opened.close()
        finally:
            doing.enable()

    doing.on_click(go)
