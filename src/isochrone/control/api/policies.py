"""Policies, which say where requests may be processed and enter: list, and make one."""

from typing import Annotated

from fastapi import APIRouter, Depends, status

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.axes import AxesShape, PolicyAxes, axes_of, policy_of
from isochrone.control.api.context import Context
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Identifier, Name
from isochrone.control.api.writing import Repeat, repeat
from isochrone.core.ids import OrgId
from isochrone.ports.tenants import StoredPolicy


class NewPolicy(PolicyAxes):
    """`org_id` defaults to the caller's own organisation, for an operator to `default`."""

    name: Name = "policy"
    org_id: Identifier | None = None


class PolicyShape(AxesShape):
    id: str
    org_id: str
    name: str
    created_at: int


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/policies", tags=["tenants"])
    tenants = context.registry.tenants
    may = access(context)

    @router.get("")
    def list_policies(
        caller: Annotated[Caller, may("policies.read")], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[PolicyShape]:
        """Policies that the caller sees."""
        rows = tenants.policies(caller.scope, page.page)
        return page.listed(rows, _shape, lambda row: row.policy.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_policy(
        body: NewPolicy,
        caller: Annotated[Caller, may("policies.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> PolicyShape:
        """Make a policy; one with the same axes is returned instead of a second one."""
        policy = policy_of(
            body,
            policy_id=context.new_id(),
            org_id=caller.organisation("policies.write", body.org_id) or OrgId("default"),
            blocs=context.blocs,
        )
        made = tenants.add_policy(
            caller.scope,
            StoredPolicy(policy=policy, name=body.name, created_at=context.now()),
            once=again.once(caller, body),
        )
        context.changed()
        return _shape(made)

    return router


def _shape(row: StoredPolicy) -> PolicyShape:
    return PolicyShape(
        id=row.policy.id, org_id=row.policy.org_id, name=row.name,
        created_at=row.created_at, **axes_of(row.policy).model_dump(),
    )
