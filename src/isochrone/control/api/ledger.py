"""The ledger: what was spent so far, balances, postings; credits and their corrections."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, status
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.currency import currency_of, currency_problems
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Text
from isochrone.control.api.whose import whose
from isochrone.control.api.writing import Repeat, repeat
from isochrone.control.charging import charge_now
from isochrone.core.billing.ledger import Account, Entry, Posting, unwinding
from isochrone.core.billing.period import month_named, month_of, name_of
from isochrone.core.billing.rate import Line, Period, Quantity
from isochrone.core.errors import Conflict, InvalidInput, NotFound
from isochrone.core.ids import OrgId, ProjectId
from isochrone.core.money import pico, written
from isochrone.ports.ledger import Recorded, Spent, SpentDay, Unrated
from isochrone.ports.tenants import Once

NS_PER_S = 1_000_000_000
Filter = Annotated[str | None, Query(max_length=100)]


class LineShape(BaseModel):
    """One line of what was spent; amounts are decimal texts in units of the currency."""

    kind: str
    name: str
    sheet: str
    version: int
    meter: str | None
    model: str | None
    class_: str | None
    site: str | None
    in_country: bool
    quantity: int
    adjustments: list[str]
    amount: str


class UnpricedShape(BaseModel):
    """Usage of one hour that no sheet prices."""

    meter: str
    model: str | None
    site: str | None
    hour_at: int
    quantity: int


class SpentShape(BaseModel):
    """A project's month so far: `amount` is all of it, of which `charged` stands in the ledger.

    Where it comes to more money than the book holds, `amount` is null, there are no lines, and
    `problem` says why; it is null for all others."""

    org_id: str
    project_id: str
    month: str
    currency: str | None
    amount: str | None
    charged: str
    problem: str | None
    lines: list[LineShape]
    unpriced: list[UnpricedShape]


class DayShape(BaseModel):
    """What was charged to a project for the hours of a day of UTC, so far; `day` is 2026-11-28."""

    org_id: str
    project_id: str
    day: str
    currency: str
    charged: str


class BalanceShape(BaseModel):
    """`project_id` is null for an account of the operator."""

    org_id: str
    project_id: str | None
    account: str
    currency: str
    amount: str


class EntryShape(BaseModel):
    account: str
    project_id: str | None
    amount: str


class PostingShape(BaseModel):
    """`at` and `recorded_at` are wall ns UTC; `number` is its place in the order of recording."""

    number: int
    org_id: str
    key: str
    kind: str
    at: int
    currency: str
    about: str
    unwinds: str | None
    recorded_at: int
    entries: list[EntryShape]


class NewCredit(Body):
    """What a project paid or was given: a decimal text such as "10.00", above zero. `currency` is
    that of the prices, and EUR while there are none."""

    org_id: Identifier = "default"
    project_id: Identifier = "default"
    amount: Text
    currency: Text | None = None
    about: Text = "credit"


class NewCorrection(Body):
    """`key` is that of the posting to be unwound."""

    org_id: Identifier = "default"
    key: Text
    about: Text


class Charged(BaseModel):
    """How many charges were recorded."""

    charges: int


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/ledger", tags=["money"])
    _add_spending(router, context)
    _add_reading(router, context)
    _add_writing(router, context)
    return router


def _add_spending(router: APIRouter, context: Context) -> None:
    """What was spent in a month, and by day."""
    may = access(context)
    ledger = context.registry.ledger

    @router.get("/spent")
    def spent(
        caller: Annotated[Caller, may("ledger.read")], month: Filter = None, org_id: Filter = None,
        project_id: Filter = None,
    ) -> Listed[SpentShape]:
        """What each project has spent in a month (2026-11; by default the present one) so far,
        line by line, the present hour included. A project that comes to too much is told as such
        among the others, and refused where it is the one that is named."""
        org, project = whose(context, caller, org_id, project_id)
        found = ledger.spent(
            caller.scope, _period(context, month), now=context.now(), org_id=org,
            project_id=project,
        )
        return Listed(items=[_spent(each) for each in found], next=None)

    @router.get("/days")
    def days(
        caller: Annotated[Caller, may("ledger.read")], month: Filter = None, org_id: Filter = None,
        project_id: Filter = None,
    ) -> Listed[DayShape]:
        """What was charged to each project for each day of a month (by default the present one).
        Hours are charged a few minutes after their end."""
        org, project = whose(context, caller, org_id, project_id)
        found = ledger.spent_days(
            caller.scope, _period(context, month), org_id=org, project_id=project
        )
        return Listed(items=[_day(each) for each in found], next=None)


def _add_reading(router: APIRouter, context: Context) -> None:
    """Balances and postings."""
    may = access(context)
    ledger = context.registry.ledger

    @router.get("/balances")
    def balances(
        caller: Annotated[Caller, may("ledger.read")], org_id: Filter = None,
        project_id: Filter = None,
    ) -> Listed[BalanceShape]:
        """Sums over all entries, by account; those at zero left out."""
        org, project = whose(context, caller, org_id, project_id)
        found = ledger.balances(caller.scope, org_id=org, project_id=project)
        rows = [
            BalanceShape(
                org_id=account.org_id, project_id=account.project_id, account=account.kind,
                currency=currency, amount=written(amount),
            )
            for (account, currency), amount in found.items()
        ]
        return Listed(items=rows, next=None)

    @router.get("/postings")
    def postings(
        caller: Annotated[Caller, may("ledger.read")], page: Annotated[Paging, Depends(paging)],
        org_id: Filter = None, project_id: Filter = None,
        order: Literal["oldest", "newest"] = "oldest",
    ) -> Listed[PostingShape]:
        """Postings by when they were recorded; `after` is the number of one, 0 for all. With it
        none is told while one with a smaller number may still come."""
        after = page.after
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 19):
            raise InvalidInput([f"after: {after!r} is not the number of a posting"])
        org, project = whose(context, caller, org_id, project_id)
        rows = ledger.postings(
            caller.scope, org_id=org, project_id=project, most=page.page.most,
            after=None if after is None else int(after), newest=order == "newest",
        )
        return page.listed(rows, _posting, lambda row: str(row.number))


def _add_writing(router: APIRouter, context: Context) -> None:
    """Credits, their corrections, and charging now."""
    may = access(context)
    ledger = context.registry.ledger

    @router.post("/credits", status_code=status.HTTP_201_CREATED)
    def credit(
        body: NewCredit, caller: Annotated[Caller, may("ledger.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> PostingShape:
        """Credit a project. Needs an Idempotency-Key: the same one again credits nothing."""
        project = context.registry.tenants.project(caller.scope, ProjectId(body.project_id))
        if project.org_id != body.org_id:
            raise NotFound(f"the organisation has no project {body.project_id!r}")
        posting = _credit(context, caller, body, f"credit/{caller.id}/{_key(again)}")
        asked = body.model_copy(update={"currency": posting.currency})
        return _record(context, caller, posting, again.once(caller, asked))

    @router.post("/corrections", status_code=status.HTTP_201_CREATED)
    def correct(
        body: NewCorrection, caller: Annotated[Caller, may("ledger.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> PostingShape:
        """Unwind a credit. What usage was charged is corrected by amending the usage, or by the
        price; then the ledger follows by itself."""
        key = f"correction/{caller.id}/{_key(again)}"
        wrong = ledger.posting(caller.scope, OrgId(body.org_id), body.key)
        if wrong.posting.kind != "credit":
            raise InvalidInput(
                [f"key: {body.key!r} is a {wrong.posting.kind}; only credits are corrected by hand"]
            )
        undone = unwinding(wrong.posting, key=key, at=wrong.posting.at, about=body.about)
        return _record(context, caller, undone, again.once(caller, body))

    @router.post("/charges")
    def charge(caller: Annotated[Caller, may("ledger.write")]) -> Charged:
        """Charge all usage so far, of the present hour too. Later usage corrects the charge."""
        return Charged(charges=charge_now(ledger, now=context.now()))


def _record(
    context: Context, caller: Caller, posting: Posting, once: Once | None
) -> PostingShape:
    """The posting as it is recorded: now, or under the same key before."""
    said = context.registry.ledger.record(caller.scope, posting, now=context.now(), once=once)
    found = context.registry.ledger.posting(caller.scope, posting.org_id, posting.key)
    known = found.posting
    if said == "conflict" and (
        known.entries, known.currency, known.about, known.unwinds
    ) != (posting.entries, posting.currency, posting.about, posting.unwinds):
        raise Conflict(
            f"the idempotency key of {posting.key!r} was used before with another request"
        )
    return _posting(found)


def _credit(context: Context, caller: Caller, body: NewCredit, key: str) -> Posting:
    org = OrgId(body.org_id)
    # Prices may be in another currency by now; a credit that is repeated stays what it was.
    earlier = _currency_before(context, caller, org, key)
    priced = currency_of(context, org) if earlier is None else None
    problems = currency_problems(body.currency, priced)
    amount = 0
    try:
        amount = pico(body.amount)
    except ValueError as error:
        problems.append(f"amount: {error}")
    else:
        if amount <= 0:
            problems.append("amount: must be above zero; a credit is taken back by a correction")
    if problems:
        raise InvalidInput(problems)
    own = Account(kind="credit", org_id=org, project_id=ProjectId(body.project_id))
    return Posting(
        org_id=org, key=key, kind="credit", at=context.now(),
        currency=body.currency or earlier or priced or "EUR", about=body.about,
        entries=(
            Entry(account=own, amount_pico=amount),
            Entry(account=Account(kind="cash", org_id=org), amount_pico=-amount),
        ),
    )


def _currency_before(context: Context, caller: Caller, org: OrgId, key: str) -> str | None:
    """Of the credit that was recorded under this key; None when none was."""
    try:
        return context.registry.ledger.posting(caller.scope, org, key).posting.currency
    except NotFound:
        return None


def _key(again: Repeat) -> str:
    if again.key is None:
        raise InvalidInput(["Idempotency-Key: missing; money moves once under each"])
    return again.key


def _period(context: Context, month: str | None) -> Period:
    if month is None:
        return month_of(context.now())
    try:
        return month_named(month)
    except ValueError as error:
        raise InvalidInput([f"month: must be like 2026-11, not {month!r}"]) from error


def _spent(spent: Spent | Unrated) -> SpentShape:
    org, project, month = spent.payer.org_id, spent.payer.project_id, name_of(spent.period)
    charged = written(spent.charged_pico)
    if isinstance(spent, Unrated):
        return SpentShape(
            org_id=org, project_id=project, month=month, currency=spent.currency, amount=None,
            charged=charged, problem=spent.reason, lines=[], unpriced=[],
        )
    return SpentShape(
        org_id=org, project_id=project, month=month, currency=spent.rated.currency,
        amount=written(spent.rated.total_pico), charged=charged, problem=None,
        lines=[_line(line) for line in spent.rated.lines],
        unpriced=[_unpriced(each) for each in spent.rated.unpriced],
    )


def _day(each: SpentDay) -> DayShape:
    return DayShape(
        org_id=each.payer.org_id, project_id=each.payer.project_id, currency=each.currency,
        day=datetime.fromtimestamp(each.at // NS_PER_S, UTC).strftime("%Y-%m-%d"),
        charged=written(each.charged_pico),
    )


def _line(line: Line) -> LineShape:
    facts = line.facts
    return LineShape(
        kind=line.kind, name=line.name, sheet=line.sheet, version=line.version,
        meter=None if facts is None else facts.meter,
        model=None if facts is None else facts.model,
        class_=None if facts is None else facts.class_,
        site=None if facts is None else facts.site,
        in_country=facts is not None and facts.bound,
        quantity=line.quantity, adjustments=list(line.adjustments),
        amount=written(line.amount_pico),
    )


def _unpriced(each: Quantity) -> UnpricedShape:
    return UnpricedShape(
        meter=each.facts.meter, model=each.facts.model, site=each.facts.site,
        hour_at=each.hour_at, quantity=each.amount,
    )


def _posting(row: Recorded) -> PostingShape:
    posting = row.posting
    return PostingShape(
        number=row.number, org_id=posting.org_id, key=posting.key, kind=posting.kind,
        at=posting.at, currency=posting.currency, about=posting.about, unwinds=posting.unwinds,
        recorded_at=row.recorded_at,
        entries=[
            EntryShape(
                account=each.account.kind, project_id=each.account.project_id,
                amount=written(each.amount_pico),
            )
            for each in posting.entries
        ],
    )
