"""Ledger: what each project spent in a month so far, balances, and postings, the latest first."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from hashlib import blake2b

import msgspec
from nicegui import ui

from isochrone.console.api import Api, part
from isochrone.console.frame import title
from isochrone.console.page import Visit
from isochrone.console.parts.confirm import Effect, ask
from isochrone.console.parts.facts import card, figures
from isochrone.console.parts.form import Field, form
from isochrone.console.parts.notices import banner, shown
from isochrone.console.parts.table import Column, table
from isochrone.console.parts.words import count, instant, whole
from isochrone.core.errors import InvalidInput

MOST = 200
MOST_LINES = 500


class Line(msgspec.Struct, frozen=True):
    name: str
    sheet: str
    version: int
    model: str | None
    quantity: int
    adjustments: tuple[str, ...]
    amount: str


class Unpriced(msgspec.Struct, frozen=True):
    meter: str
    quantity: int


class Spent(msgspec.Struct, frozen=True):
    """A project's month so far; amounts are decimal texts in units of the currency. `amount` is
    None where a `problem` says why it is not known."""

    org_id: str
    project_id: str
    month: str
    currency: str | None
    amount: str | None
    charged: str
    lines: tuple[Line, ...]
    unpriced: tuple[Unpriced, ...]
    problem: str | None = None


class Balance(msgspec.Struct, frozen=True):
    org_id: str
    project_id: str | None
    account: str
    currency: str
    amount: str


class Entry(msgspec.Struct, frozen=True):
    account: str
    project_id: str | None
    amount: str


class Posting(msgspec.Struct, frozen=True):
    number: int
    org_id: str
    key: str
    kind: str
    currency: str
    about: str
    unwinds: str | None
    recorded_at: int
    entries: tuple[Entry, ...]


class Project(msgspec.Struct, frozen=True):
    id: str
    org_id: str
    name: str


class Ledger(msgspec.Struct, frozen=True):
    """All that the page shows, of one organisation or of all that the caller sees."""

    spent: tuple[Spent, ...]
    balances: tuple[Balance, ...]
    postings: tuple[Posting, ...]
    projects: tuple[Project, ...]


async def load(api: Api, month: str | None, org_id: str | None) -> Ledger:
    """A month like 2026-11, None for the present one. Raises IsochroneError."""
    return Ledger(
        spent=await api.items("ledger/spent", Spent, most=10_000, month=month, org_id=org_id),
        balances=await api.items("ledger/balances", Balance, most=10_000, org_id=org_id),
        postings=await api.items(
            "ledger/postings", Posting, most=MOST, order="newest", org_id=org_id
        ),
        projects=await api.items("projects", Project, most=10_000, org=org_id),
    )


def sums(spent: Sequence[Spent]) -> dict[str, Decimal]:
    """What was spent, by currency, exactly; without what is not known."""
    found: dict[str, Decimal] = {}
    for each in spent:
        if each.currency is not None and each.amount is not None:
            found[each.currency] = found.get(each.currency, Decimal(0)) + Decimal(each.amount)
    return found


def by_price(spent: Sequence[Spent]) -> list[tuple[str, Line, int, Decimal]]:
    """What each price of each model came to over all sites: project, one such line, quantity and
    amount; the most expensive first."""
    found: dict[tuple[object, ...], tuple[str, Line, int, Decimal]] = {}
    for each in spent:
        for line in each.lines:
            key = (each.project_id, line.name, line.sheet, line.version, line.model,
                   line.adjustments)
            _, _, quantity, amount = found.get(key, ("", line, 0, Decimal(0)))
            found[key] = (
                each.project_id, line, quantity + line.quantity, amount + Decimal(line.amount)
            )
    return sorted(found.values(), key=lambda row: -row[3])


def once_after(latest: int, body: Mapping[str, str]) -> str:
    """The idempotency key of a credit that is asked for when `latest` is the last posting known."""
    said = msgspec.json.encode(sorted(body.items()))
    return f"console-{latest}-{blake2b(said, digest_size=12).hexdigest()}"


def about(posting: Posting) -> str:
    """What a posting is about; a charge names its meter and its hour."""
    meter, _, rest = posting.about.partition("/")
    hour_at = rest.partition("/")[0]
    if posting.kind == "charge" and hour_at.isdigit():
        return f"{meter.replace('_', ' ')}, hour from {instant(int(hour_at))}"
    return posting.about


async def build(visit: Visit) -> None:
    title("Ledger", "What was spent so far, and every movement of money")
    month, org = visit.query.get("month") or None, visit.query.get("org") or None
    found = await shown(load(visit.api, month, org))
    present = found.spent[0].month if found is not None and found.spent else ""
    _choose(visit, month or present, org)  # also where what was chosen is wrong
    if found is None:
        return
    figures([
        *(
            (f"Spent, {currency}", f"{amount:f}", f"in {found.spent[0].month} so far")
            for currency, amount in sums(found.spent).items()
        ),
        ("Projects", count(len(found.spent)), "with usage in that month"),
        ("Without a price", count(sum(len(each.unpriced) for each in found.spent)),
         "kinds of usage that no sheet prices"),
    ])
    _spent(found)
    _balances(found)
    _postings(found)
    if visit.me.may("ledger.write"):
        with card("Credit a project"):
            _credit(visit, found)


def _choose(visit: Visit, month: str, org: str | None) -> None:
    def go() -> None:
        ui.navigate.to(f"/ledger?month={part(str(at.value or ''))}&org={part(str(of.value or ''))}")

    with ui.row().classes("iso-ask"):
        at = ui.input("Month", value=month).props("outlined dense type=month stack-label")
        of = ui.input("Organisation", value=org or "").props("outlined dense clearable")
        of.set_visibility(visit.me.org_id is None)
        for each in (at, of):
            each.on("keydown.enter", go)
        ui.button("Show", on_click=go).props("unelevated no-caps")


def _spent(found: Ledger) -> None:
    for each in found.spent:
        if each.problem is not None:
            with banner("warn", f"Not counted in: {each.problem}."):
                pass
    names = {(each.org_id, each.id): each.name for each in found.projects}
    with card():
        table(
            (
                Column(title="Organisation", kind="link", link="/ledger?org={}"),
                Column(title="Project"), Column(title="Spent", kind="number"),
                Column(title="Charged", kind="number"), Column(title="Currency"),
            ),
            [
                (each.org_id, names.get((each.org_id, each.project_id), each.project_id),
                 each.amount, each.charged, each.currency)
                for each in found.spent
            ],
            title="By project", empty="Nothing was spent in this month.",
            hint="Usage is charged hour by hour; what is not charged yet is counted in.",
        )
    lines = by_price(found.spent)
    if lines:
        with card():
            table(
                (
                    Column(title="Project"), Column(title="Price"), Column(title="Model"),
                    Column(title="Quantity", kind="number"), Column(title="Adjusted by"),
                    Column(title="Amount", kind="number"), Column(title="Sheet"),
                ),
                [
                    (project, line.name, line.model, whole(quantity), line.adjustments,
                     f"{amount:f}", f"{line.sheet} v{line.version}")
                    for project, line, quantity, amount in lines[:MOST_LINES]
                ],
                title="By price, over all sites", empty="",
            )
            if len(lines) > MOST_LINES:
                ui.label(f"And {len(lines) - MOST_LINES} more.").classes("iso-about")


def _balances(found: Ledger) -> None:
    with card():
        table(
            (
                Column(title="Organisation"), Column(title="Project"), Column(title="Account"),
                Column(title="Balance", kind="number"), Column(title="Currency"),
            ),
            [
                (each.org_id, each.project_id, each.account, each.amount, each.currency)
                for each in found.balances
            ],
            title="Balances", empty="Every account stands at zero.",
        )


def _postings(found: Ledger) -> None:
    with card():
        table(
            (
                Column(title="No.", kind="number"), Column(title="Recorded (UTC)"),
                Column(title="Organisation"), Column(title="Kind"),
                Column(title="About", kind="long"),
                Column(title="Entries", kind="long"), Column(title="Currency"),
            ),
            [
                (
                    each.number, instant(each.recorded_at), each.org_id,
                    each.kind if each.unwinds is None else f"{each.kind} of {each.unwinds}",
                    about(each),
                    "; ".join(f"{one.account} {one.amount}" for one in each.entries),
                    each.currency,
                )
                for each in found.postings
            ],
            title="Postings, the latest first", empty="Nothing was posted yet.",
            hint="Usage is charged an hour after it was received; credits are posted at once.",
        )
        if len(found.postings) == MOST:
            ui.label(f"These are the latest {MOST}; `isochrone ledger postings` has all.").classes(
                "iso-about"
            )


def credit_in(values: Mapping[str, str], projects: Mapping[str, Project]) -> dict[str, str]:
    """The body of POST /ledger/credits for what was filled in. Raises InvalidInput."""
    body = {name: value.strip() for name, value in values.items()}
    project = projects.get(body["project_id"])
    problems = [f"{name}: missing" for name in ("amount", "currency") if not body[name]]
    if project is None:
        raise InvalidInput(["project_id: choose one", *problems])
    if problems:
        raise InvalidInput(problems)
    return {**body, "org_id": project.org_id}


def _credit(visit: Visit, found: Ledger) -> None:
    """A credit. The same one sent again before anybody sees that it was posted is posted once."""
    by_id = {each.id: each for each in found.projects}
    said = ui.column().classes("iso-said")
    latest = [found.postings[0].number if found.postings else 0]

    async def asked(values: Mapping[str, str]) -> None:
        body = credit_in(values, by_id)

        async def post() -> None:
            once = once_after(latest[0], body)
            made = await visit.api.post("ledger/credits", Posting, body, once=once)
            latest[0] = max(latest[0], made.number)
            said.clear()
            with said, banner("good", f"Posted as number {made.number}: {made.about}."):
                ui.link("Show it", "/ledger")

        ask(
            f"Credit {body['amount']} {body['currency']}?",
            [Effect(text=f"The project {body['project_id']} has so much more. A posting is never"
                    " changed; a correction takes it back.")],
            "Credit it", post,
        )

    form(
        (
            Field(name="project_id", label="Project",
                  options={each.id: f"{each.name} of {each.org_id}" for each in found.projects}),
            Field(name="amount", label="Amount", hint="such as 10.00"),
            Field(name="currency", label="Currency", value="EUR"),
            Field(name="about", label="About", value="credit"),
        ),
        "Credit", asked,
    )
