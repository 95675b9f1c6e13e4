"""A dialog: a card over the page with a heading. The shell keeps focus in it while it is open, and
gives it back to what opened it."""

from collections.abc import Iterator
from contextlib import contextmanager

from nicegui import ui


def is_open(heading: str) -> bool:
    """Whether the page shows this dialog: of a double click the second half asks for it again."""
    return any(
        isinstance(each, ui.dialog) and each.value and each.props.get("aria-label") == heading
        for each in ui.context.client.elements.values()
    )


@contextmanager
def dialog(heading: str, *, is_question: bool = False) -> Iterator[ui.dialog]:
    """Open a dialog; what is put into it stands below the heading. `is_question`: something will
    be done, or not."""
    # The second half of a slow double click falls beside it, and would close it at once.
    opened = ui.dialog().props("no-backdrop-dismiss")
    opened.props["aria-label"] = heading
    if is_question:
        opened.props("role=alertdialog")
    with opened, ui.element("div").classes("iso-card iso-dialog"):
        ui.label(heading).classes("iso-heading").props('role="heading" aria-level="2"')
        yield opened
    opened.open()
