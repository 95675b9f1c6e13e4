"""Limits over all sites: of a key, a project or an organisation. List, set, show, remove."""

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.currency import currency_of, currency_problems
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Text
from isochrone.control.limiting import with_spent
from isochrone.core.errors import Forbidden, InvalidInput
from isochrone.core.ids import KeyId, LimitId, ProjectId, SiteName
from isochrone.core.limits.terms import MOST_AMOUNT, custodians_of
from isochrone.core.money import pico, written
from isochrone.core.world.limit import BudgetPeriod, Limit, LimitKind
from isochrone.ports.tenants import Page

EVERY = Page(most=1_000_000)


class NewLimit(Body):
    """Of the key if one is named, else of the project, else of the organisation. `amount` is a
    whole number, of a budget a decimal text in units of the currency for each `period`."""

    kind: LimitKind
    amount: Text
    org_id: Identifier | None = None
    project_id: Identifier | None = None
    key_id: Identifier | None = None
    period: BudgetPeriod | None = None
    currency: Text | None = None


class SiteUseShape(BaseModel):
    site: str
    granted: str
    used: str
    held: str


class UseShape(BaseModel):
    """As the gateway `by` said `age_s` seconds ago. `left`: what no gateway was granted."""

    by: str
    age_s: float
    used: str
    held: str
    left: str
    sites: list[SiteUseShape]


class LimitShape(BaseModel):
    """`spent`: of a budget, what requests that came before `spent_before` (wall ns) in its period
    came to, as booked. `home` and its successors keep it; `use` is null where nobody used it
    lately."""

    id: str
    org_id: str
    project_id: str | None
    key_id: str | None
    kind: LimitKind
    amount: str
    period: BudgetPeriod | None
    currency: str | None
    created_at: int
    spent: str | None
    spent_before: int | None
    home: str | None
    successors: list[str]
    use: UseShape | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/limits", tags=["tenants"])
    limits = context.registry.limits
    may = access(context)

    @router.get("")
    def list_limits(
        caller: Annotated[Caller, may("limits.read")], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[LimitShape]:
        """Limits that the caller sees, with how they stand."""
        rows = limits.limits(caller.scope, page.page)
        sites = _gateways(context)
        return page.listed(rows, lambda row: _shape(context, row, sites), lambda row: row.id)

    @router.get("/{limit_id}")
    def show_limit(limit_id: str, caller: Annotated[Caller, may("limits.read")]) -> LimitShape:
        """One of them."""
        found = limits.limit(caller.scope, LimitId(limit_id))
        return _shape(context, found, _gateways(context))

    @router.put("")
    def set_limit(body: NewLimit, caller: Annotated[Caller, may("limits.write")]) -> LimitShape:
        """Set a limit, in place of the one of the same kind if there is one. Gateways are told
        within a second. Those of a whole organisation are the operator's to set."""
        limit = _limit(context, caller, body)
        if limit.period is not None:
            limit = with_spent(limits, limit, context.now())
        made = limits.set_limit(caller.scope, limit)
        context.changed()
        return _shape(context, made, _gateways(context))

    @router.delete("/{limit_id}")
    def remove_limit(limit_id: str, caller: Annotated[Caller, may("limits.write")]) -> LimitShape:
        """Remove it."""
        found = limits.limit(caller.scope, LimitId(limit_id))
        _check_whole(caller, found.project_id)
        removed = limits.remove(caller.scope, found.id)
        context.changed()
        return _shape(context, removed, _gateways(context))

    return router


def _check_whole(caller: Caller, project_id: str | None) -> None:
    """What an organisation as a whole may use is agreed with the operator."""
    if project_id is None and caller.role != "operator":
        raise Forbidden("limits of a whole organisation are the operator's; name a project")


def _limit(context: Context, caller: Caller, body: NewLimit) -> Limit:
    """Raises InvalidInput with all faults, NotFound and Forbidden."""
    tenants = context.registry.tenants
    org, project, key = body.org_id, body.project_id, body.key_id
    if key is not None:
        of_key = tenants.key(caller.scope, KeyId(key))[0].key
        project = _same("key_id", project, of_key.project_id)
        org = _same("key_id", org, of_key.org_id)
    elif project is not None:
        org = _same("project_id", org, tenants.project(caller.scope, ProjectId(project)).org_id)
    org_id = caller.organisation("limits.write", org)
    if org_id is None:
        raise InvalidInput(["of whom: name a key, a project, or an organisation as a whole"])
    _check_whole(caller, project)
    problems: list[str] = []
    amount = _amount(body, problems)
    is_budget = body.kind == "budget"
    priced = currency_of(context, org_id) if is_budget else None
    if is_budget:
        problems += _budget_problems(priced, body)
    elif body.period is not None or body.currency is not None:
        problems.append("period, currency: only a budget has them")
    if problems:
        raise InvalidInput(problems)
    return Limit(
        id=LimitId(context.new_id()), org_id=org_id,
        project_id=None if project is None else ProjectId(project),
        key_id=None if key is None else KeyId(key), kind=body.kind, amount=amount,
        created_at=context.now(), period=(body.period or "month") if is_budget else None,
        currency=priced,
    )


def _same(field: str, wanted: str | None, found: str) -> str:
    if wanted is not None and wanted != found:
        raise InvalidInput([f"{field}: is of {found!r}, not of {wanted!r}"])
    return found


def _amount(body: NewLimit, problems: list[str]) -> int:
    if body.kind == "budget":
        try:
            amount = pico(body.amount)
        except ValueError as error:
            problems.append(f"amount: {error}")
            return 0
    elif body.amount.isascii() and body.amount.isdigit():
        amount = int(body.amount)
    else:
        problems.append(f"amount: {body.amount!r} is not a whole number")
        return 0
    most = MOST_AMOUNT if body.kind == "budget" else 10**12
    if not 0 < amount <= most:
        shown = written(most) if body.kind == "budget" else str(most)
        problems.append(f"amount: must be above zero and at most {shown}")
    return amount


def _budget_problems(priced: str | None, body: NewLimit) -> list[str]:
    if priced is None:
        return ["budget: no sheet prices what this organisation uses, so nothing would be spent;"
                " add one first (isochrone price)"]
    return currency_problems(body.currency, priced)


def _gateways(context: Context) -> list[SiteName]:
    return [
        site.name for site in context.registry.estate.sites(EVERY) if site.peer_key is not None
    ]


def _shape(context: Context, row: Limit, sites: list[SiteName]) -> LimitShape:
    custodians = custodians_of(row.id, sites)
    is_budget = row.kind == "budget"
    is_summed = is_budget and row.spent_before > 0
    return LimitShape(
        id=row.id, org_id=row.org_id, project_id=row.project_id, key_id=row.key_id, kind=row.kind,
        amount=_text(row, row.amount), period=row.period, currency=row.currency,
        created_at=row.created_at, spent=written(row.spent_pico) if is_summed else None,
        spent_before=row.spent_before if is_summed else None,
        home=custodians[0] if custodians else None, successors=list(custodians[1:]),
        use=_use(context, row),
    )


def _use(context: Context, row: Limit) -> UseShape | None:
    seen = context.fleet.limits.of(row.id)
    if seen is None:
        return None
    sites = seen.use.sites
    return UseShape(
        by=seen.by, age_s=round(seen.age_s, 1),
        used=_text(row, sum(each.used for each in sites)),
        held=_text(row, sum(each.held for each in sites)), left=_text(row, seen.use.left),
        sites=[
            SiteUseShape(
                site=each.site, granted=_text(row, each.granted), used=_text(row, each.used),
                held=_text(row, each.held),
            )
            for each in sites
        ],
    )


def _text(row: Limit, amount: int) -> str:
    return written(amount) if row.kind == "budget" else str(amount)
