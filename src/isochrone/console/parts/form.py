"""A form: fields by name, one button, and each problem shown at the field that it is about."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from nicegui import ui

from isochrone.console.parts.notices import trouble
from isochrone.core.errors import InvalidInput, IsochroneError

Shown = ui.input | ui.select | ui.textarea


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """`name` is that of the Control API, so that its problems (`name: what`) find the field.
    `options`: value and label of a choice, `several` of which may be taken: then the value is a
    text with commas. A date is YYYY-MM-DD. `lines`: so many are written, and Enter begins one."""

    name: str
    label: str
    value: str = ""
    hint: str = ""
    is_secret: bool = False
    complete: str = "off"
    options: Mapping[str, str] | None = None
    several: bool = False
    is_date: bool = False
    lines: int = 0


def form(
    fields: Sequence[Field], button: str, done: Callable[[Mapping[str, str]], Awaitable[None]]
) -> None:
    """Show the fields; the button, or Enter, calls `done` with their values. What `done` raises is
    shown: at the fields, or above the button."""
    shown: dict[str, Shown] = {}
    with ui.column().classes("iso-form"):
        for field in fields:
            shown[field.name] = _field(field)
        said = ui.column().classes("iso-said")
        sending = ui.button(button).props("unelevated no-caps")

    async def send() -> None:
        if "loading" in sending.props:
            return
        said.clear()
        for each in shown.values():
            each.error = None
        sending.props("loading")  # not disabled: that would take the focus away
        try:
            await done({name: _said(each.value) for name, each in shown.items()})
        except InvalidInput as error:
            _place(error, shown, said)
        except IsochroneError as error:
            with said:
                trouble(error)
        finally:
            sending.props(remove="loading")

    sending.on_click(send)
    for field in fields:
        if not field.lines:
            shown[field.name].on("keydown.enter", send)


def _said(value: object) -> str:
    """What a field holds, as text."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _field(field: Field) -> Shown:
    if field.options is not None:
        several = [each for each in field.value.split(",") if each]
        value = several if field.several else field.value or None
        chosen: Shown = ui.select(
            dict(field.options), label=field.label, value=value, multiple=field.several
        )
    elif field.lines:
        chosen = ui.textarea(field.label, value=field.value)
        chosen.props(f'rows={field.lines} spellcheck=false').classes("iso-written")
    else:
        chosen = ui.input(field.label, value=field.value, password=field.is_secret)
    chosen.props(f'outlined dense autocomplete="{field.complete}"').classes("iso-field")
    if field.is_date:
        chosen.props("type=date stack-label")
    if field.hint:
        chosen.props(f'hint="{field.hint}"')
    return chosen


def _place(
    error: InvalidInput, shown: Mapping[str, Shown], said: ui.column
) -> None:
    rest = []
    for problem in error.problems:
        name, parted, what = problem.partition(": ")
        if parted and name in shown:
            shown[name].error = what
        else:
            rest.append(problem)
    if rest:
        with said:
            trouble(InvalidInput(rest))
