"""Price sheets: list their versions, try one, add one."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, status
from pydantic import BaseModel, RootModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed
from isochrone.control.api.writing import Repeat, repeat
from isochrone.control.api.written_sheet import judged
from isochrone.core.ids import OrgId
from isochrone.ports.prices import StoredSheet
from isochrone.wire.prices import sheet_text_of, text_of


class NewSheet(RootModel[dict[str, Any]]):
    """`id`, `currency`, `valid_from`, `prices`, and where wanted `adjustments`, `recurring` and
    `fees`; see docs/prices.md. The version is given here. Amounts are decimal texts in units of the
    currency, instants RFC 3339 with an offset."""


class SheetShape(BaseModel):
    """A version; `org_id` is null for a sheet for everybody. Instants are wall ns UTC."""

    id: str
    version: int
    org_id: str | None
    currency: str
    valid_from: int
    created_at: int
    sheet: dict[str, Any]


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/prices", tags=["money"])
    prices = context.registry.prices
    may = access(context)

    @router.get("")
    def list_sheets(caller: Annotated[Caller, may("prices.read")]) -> Listed[SheetShape]:
        """All versions of the sheets that the caller sees: those for everybody, and their own."""
        return Listed(items=[_shape(each) for each in prices.sheets(caller.scope)], next=None)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def add_sheet(
        body: NewSheet,
        caller: Annotated[Caller, may("prices.write")],
        again: Annotated[Repeat, Depends(repeat)],
        org_id: Annotated[str | None, Query(max_length=100)] = None,
    ) -> SheetShape:
        """Add the next version of a sheet, for everybody or for one organisation. It is never
        changed; the next version replaces it at an hour. Usage of this month that it prices and
        that was charged is charged anew."""
        wanted = _wanted(body, org_id, now=context.now())
        return _shape(prices.add_sheet(caller.scope, wanted, once=again.once(caller, body)))

    @router.post("/trials")
    def try_sheet(
        body: NewSheet,
        caller: Annotated[Caller, may("prices.write")],
        org_id: Annotated[str | None, Query(max_length=100)] = None,
    ) -> SheetShape:
        """The version that adding the sheet would give, or all that is wrong with it. Nothing is
        written."""
        wanted = _wanted(body, org_id, now=context.now())
        return _shape(prices.try_sheet(caller.scope, wanted))

    return router


def _wanted(body: NewSheet, org_id: str | None, *, now: int) -> StoredSheet:
    """Raises InvalidInput with all problems."""
    return StoredSheet(
        sheet=judged(sheet_text_of(body.root)), created_at=now,
        only_for=None if org_id is None else OrgId(org_id),
    )


def _shape(stored: StoredSheet) -> SheetShape:
    sheet = stored.sheet
    return SheetShape(
        id=sheet.id, version=sheet.version, org_id=stored.only_for, currency=sheet.currency,
        valid_from=sheet.valid_from, created_at=stored.created_at,
        sheet=msgspec.to_builtins(text_of(sheet)),
    )
