"""The audit log: who changed what, when, and how it was before and after."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.instants import instant_of
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.whose import whose
from isochrone.core.errors import InvalidInput
from isochrone.ports.audit import KINDS, AuditEntry, AuditFilter, Change

_MOST_SERIAL = (1 << 63) - 1


class AuditShape(BaseModel):
    """`actor`: `principal:ID`, `key:ID`, `control`, or `database:ROLE` for a change by hand.
    Secrets and personal fields read '(hidden)'; `at` is wall ns UTC by the database's clock."""

    serial: int
    at: int
    org_id: str | None
    actor: str
    kind: str
    subject: str
    change: Change
    before: dict[str, object] | None
    after: dict[str, object] | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/audit", tags=["audit"])
    may = access(context)

    @router.get("")
    def list_audit(
        caller: Annotated[Caller, may("audit.read")],
        page: Annotated[Paging, Depends(paging)],
        actor: Annotated[str | None, Query(max_length=200)] = None,
        kind: Annotated[str | None, Query(max_length=50)] = None,
        subject: Annotated[str | None, Query(max_length=500)] = None,
        org: Annotated[str | None, Query(max_length=100)] = None,
        since: str | None = None,
        until: str | None = None,
        order: Literal["oldest", "newest"] = "oldest",
    ) -> Listed[AuditShape]:
        """Changes of records that the caller sees, in this order."""
        whose(context, caller, org)
        if kind is not None and kind not in KINDS:
            raise InvalidInput([f"kind: {kind!r} is none of {', '.join(KINDS)}"])
        chosen = AuditFilter(
            actor=actor, kind=kind, subject=subject, org_id=org,
            since=instant_of("since", since), until=instant_of("until", until),
        )
        rows = context.registry.audit.entries(
            caller.scope, chosen, most=page.page.most, after=_serial(page.after),
            newest=order == "newest",
        )
        return page.listed(rows, _shape, lambda row: str(row.serial))

    return router


def _serial(after: str | None) -> int | None:
    if after is None:
        return None
    if not (after.isascii() and after.isdigit() and int(after) <= _MOST_SERIAL):
        raise InvalidInput([f"after: must be the serial of an entry, not {after!r}"])
    return int(after)


def _shape(row: AuditEntry) -> AuditShape:
    return AuditShape(
        serial=row.serial, at=row.at, org_id=row.org_id, actor=row.actor, kind=row.kind,
        subject=row.subject, change=row.change,
        before=None if row.before is None else dict(row.before),
        after=None if row.after is None else dict(row.after),
    )
