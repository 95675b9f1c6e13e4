"""Entitlements, capacity that is sold once and honoured at any allowed site: list, sell, revoke."""

from collections import Counter
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, status
from pydantic import BaseModel, Field

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.axes import too_much
from isochrone.control.api.context import Context
from isochrone.control.api.instants import instant_of
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Name, Text
from isochrone.control.api.writing import Repeat, repeat
from isochrone.core.admission.entitlement import (
    allowed_sites,
    check_entitlement,
    divide_sold,
    first_voters,
)
from isochrone.core.errors import InvalidInput
from isochrone.core.ids import EntitlementId, ModelName, OrgId, ProjectId, SiteName
from isochrone.core.residency.rule import parse_axis
from isochrone.core.world.entitlement import Entitlement, Voters
from isochrone.core.world.tenant import ANY, Class
from isochrone.ports.entitlements import StoredEntitlement
from isochrone.ports.tenants import Page

EVERY = Page(most=1_000_000)


class NewEntitlement(Body):
    """`tok_s`: weighted tokens/s, an output token counting twice. `residency` as in a policy.
    Instants are RFC 3339 with an offset, or wall nanoseconds; `starts_at` defaults to now."""

    name: Name = "entitlement"
    org_id: Identifier = "default"
    project_id: Identifier | None = None
    model: Text
    class_: Literal["reserved", "on_demand"] = Field(default="reserved", alias="class")
    tok_s: int
    residency: tuple[str, ...] = (ANY,)
    starts_at: str | None = None
    ends_at: str


class SliceShape(BaseModel):
    site: str
    tok_s: int


class EntitlementShape(BaseModel):
    id: str
    name: str
    org_id: str
    project_id: str | None
    model: str
    class_: Class = Field(serialization_alias="class")
    tok_s: int
    residency: list[str]
    starts_at: int
    ends_at: int
    slices: list[SliceShape]
    created_at: int
    revoked_at: int | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/entitlements", tags=["tenants"])
    sold = context.registry.entitlements
    may = access(context)

    @router.get("")
    def list_entitlements(
        caller: Annotated[Caller, may("entitlements.read")],
        page: Annotated[Paging, Depends(paging)],
    ) -> Listed[EntitlementShape]:
        """Entitlements that the caller sees, revoked ones too."""
        rows = sold.entitlements(caller.scope, page.page)
        return page.listed(rows, _shape, lambda row: row.entitlement.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def sell_entitlement(
        body: NewEntitlement,
        caller: Annotated[Caller, may("entitlements.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> EntitlementShape:
        """Sell capacity. Gateways are told within a second of the answer, and honour it from then
        on, control or no control; in a cloud without voters after fifteen more."""
        once, now = again.once(caller, body), context.now()
        earlier = context.registry.writes.made_before(caller.scope, once, now=now)
        if earlier is not None:
            return _shape(sold.entitlement(caller.scope, EntitlementId(earlier)))
        made = sold.add(
            caller.scope,
            StoredEntitlement(
                entitlement=_entitlement(context, body), name=body.name, created_at=now
            ),
            Voters(sites=first_voters(context.registry.estate.sites(EVERY))),
            once=once,
        )
        context.changed()
        return _shape(made)

    @router.delete("/{entitlement_id}")
    def revoke_entitlement(
        entitlement_id: str, caller: Annotated[Caller, may("entitlements.write")]
    ) -> EntitlementShape:
        """Revoke it for good; requests go on in the class `on_demand`."""
        id_ = EntitlementId(entitlement_id)
        revoked = sold.revoke(caller.scope, id_, now=context.now())
        context.changed()
        return _shape(revoked)

    return router


def _entitlement(context: Context, body: NewEntitlement) -> Entitlement:
    """With its slices; raises InvalidInput with all faults."""
    now, estate = context.now(), context.registry.estate
    starts_at, ends_at = (
        instant_of("starts_at", body.starts_at), instant_of("ends_at", body.ends_at)
    )
    assert ends_at is not None, "the field is needed"
    entitlement = Entitlement(
        id=EntitlementId(context.new_id()),
        org_id=OrgId(body.org_id),
        project_id=None if body.project_id is None else ProjectId(body.project_id),
        model=ModelName(body.model),
        class_=body.class_,
        tok_s=body.tok_s,
        residency=tuple(
            sorted(term for text in body.residency for term in parse_axis(text))
        ),
        starts_at=now if starts_at is None else starts_at,
        ends_at=ends_at,
        slices=(),
    )
    faults = too_much(entitlement.residency)
    if faults:
        raise InvalidInput([f"residency: {fault}" for fault in faults])
    problems = check_entitlement(entitlement, context.blocs, now=now)
    sites = estate.sites(EVERY)
    allowed = set(allowed_sites(entitlement.residency, sites, context.blocs))
    slots: Counter[SiteName] = Counter()
    for each in estate.deployments(EVERY):
        if each.model == entitlement.model and each.replicas and each.site in allowed:
            slots[each.site] += each.replicas * each.engine.slots
    if not slots:
        problems.append(
            f"model: no site that the residency allows should run {entitlement.model!r}: "
            "nothing could be honoured"
        )
    if problems:
        raise InvalidInput(problems)
    return replace(entitlement, slices=divide_sold(entitlement.tok_s, slots))


def _shape(row: StoredEntitlement) -> EntitlementShape:
    sold = row.entitlement
    return EntitlementShape(
        id=sold.id, name=row.name, org_id=sold.org_id, project_id=sold.project_id,
        model=sold.model, class_=sold.class_, tok_s=sold.tok_s, residency=list(sold.residency),
        starts_at=sold.starts_at, ends_at=sold.ends_at,
        slices=[SliceShape(site=each.site, tok_s=each.tok_s) for each in sold.slices],
        created_at=row.created_at, revoked_at=row.revoked_at,
    )
