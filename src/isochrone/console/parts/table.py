"""A table: columns with a kind, rows as tuples; on a phone each row becomes a card.

Values are written by the browser as text, never as markup.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nicegui import ui
from nicegui.events import GenericEventArguments

from isochrone.console.parts.notices import empty as empty_state
from isochrone.console.parts.words import size, text

Kind = Literal["text", "long", "number", "code", "state", "link"]
# Which words of states are shown how.
GOOD = ("healthy", "ready", "finished", "yes", "active", "running", "equal",
        "within")
BAD = ("down", "stopped", "failed", "refused", "engine_lost", "timed_out", "engine_error",
       "revoked", "differs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`link` gives the address that a cell leads to, `{}` standing for its value."""

    title: str
    kind: Kind = "text"
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """A button in each row: `done` is called with the row's number. Its name for those who hear it
    has the first cell as well."""

    label: str
    icon: str
    done: Callable[[int], Awaitable[None]]


CELL = """
<q-td :props="props" :class="'iso-cell-' + props.col.kind">
  <q-btn v-if="props.col.kind === 'act'" outline no-caps dense class="iso-act"
     :icon="props.col.icon" :label="props.col.act" :aria-label="props.col.act + ' ' + props.row.c0"
     @click="$parent.$emit('act', props.row.id)" />
  <a v-else-if="props.col.kind === 'link' && props.value !== '–'"
     :title="props.value"
     :href="props.col.link.replace('{}', encodeURIComponent(props.value))">{{ props.value }}</a>
  <span v-else-if="props.col.kind === 'state'"
     :class="'iso-state is-' + props.col.tones(props.value)">{{ props.value }}</span>
  <template v-else>{{ props.value }}</template>
</q-td>
"""

# The same as a card, for phones.
CARD = """
<div class="q-pa-xs col-12"><div class="q-table__grid-item-card">
  <div v-for="col in props.cols" :key="col.name" class="q-table__grid-item-row">
    <div class="q-table__grid-item-title">{{ col.label }}</div>
    <div class="q-table__grid-item-value" :class="'iso-cell-' + col.kind">
      <q-btn v-if="col.kind === 'act'" outline no-caps dense class="iso-act"
         :icon="col.icon" :label="col.act" :aria-label="col.act + ' ' + props.row.c0"
         @click="$parent.$emit('act', props.row.id)" />
      <a v-else-if="col.kind === 'link' && col.value !== '–'"
         :href="col.link.replace('{}', encodeURIComponent(col.value))">{{ col.value }}</a>
      <span v-else-if="col.kind === 'state'"
         :class="'iso-state is-' + col.tones(col.value)">{{ col.value }}</span>
      <template v-else>{{ col.value }}</template>
    </div>
  </div>
</div></div>
"""


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[object]], *, empty: str, hint: str = "",
    title: str = "", act: Act | None = None,
) -> ui.table | None:
    """Show `rows`, or `empty` where there are none. The table has a search field from 20 rows on,
    and shows 50 a page."""
    if title:
        ui.label(title).classes("iso-heading").props('role="heading" aria-level="2"')
    if not rows:
        empty_state(empty, hint)
        return None
    shown = ui.table(
        columns=[
            *(_column(number, column) for number, column in enumerate(columns)),
            *([] if act is None else [_act_column(act)]),
        ],
        rows=cells([column.kind for column in columns], rows),
        row_key="id", pagination=50 if len(rows) > 50 else 0,
    ).classes("iso-table").props('flat dense :grid="window.innerWidth < 600"')
    if act is not None:
        _acting(shown, act)
    if len(rows) <= 50:
        shown.props("hide-pagination")
    shown.add_slot("body-cell", CELL)
    shown.add_slot("item", CARD)
    if len(rows) >= 20:
        with shown.add_slot("top-right"):
            field = ui.input(placeholder="Search").props(
                'dense outlined clearable debounce="200" aria-label="Search the table"'
            )
            shown.bind_filter_from(field, "value")
    return shown


def refill(shown: ui.table, rows: Sequence[Sequence[object]]) -> None:
    """Show other rows in a table that is there; who searches, sorts or moves in it goes on."""
    written = cells([column["kind"] for column in shown.columns], rows)
    if written != shown.rows:
        shown.rows = written


def cells(kinds: Sequence[str], rows: Sequence[Sequence[object]]) -> list[dict[str, object]]:
    """Rows as the browser takes them: texts, and of numbers also how large each is."""
    return [
        {"id": number}
        | {f"c{place}": text(value) for place, value in enumerate(row)}
        | {f"s{place}": size(text(value)) for place, value in enumerate(row)
           if kinds[place] == "number"}
        for number, row in enumerate(rows)
    ]


def _acting(shown: ui.table, act: Act) -> None:
    """What it asks and says stands beside the table: a change within would draw its rows anew, and
    take focus from the button."""
    beside = ui.column().classes("iso-said")

    async def chosen(event: GenericEventArguments) -> None:
        beside.clear()
        with beside:
            await act.done(int(event.args))

    shown.on("act", chosen)


def _act_column(act: Act) -> dict[str, object]:
    return {
        "name": "act", "label": "", "field": "id", "kind": "act", "act": act.label,
        "icon": act.icon, "align": "right",
    }


def _column(number: int, column: Column) -> dict[str, object]:
    return {
        "name": f"c{number}", "label": column.title, "field": f"c{number}", "kind": column.kind,
        "link": column.link, "align": "right" if column.kind == "number" else "left",
        "sortable": True,
        ":tones": f"value => {list(GOOD)}.includes(value) ? 'good' : {list(BAD)}.includes(value)"
        " ? 'bad' : 'plain'",
        **({":sort": f"(a, b, one, other) => one.s{number} - other.s{number}"}
           if column.kind == "number" else {}),
    }
