"""Principals, people and service accounts who work with the Control API: list, make one with its
admin key, change the role, rotate the key, revoke, erase who a person is."""

import re
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Depends, status
from pydantic import AfterValidator, BaseModel, StringConstraints

from isochrone.control.api.accounts import GivenAccount, first_account
from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.keys import Rotation, end_in, read_end
from isochrone.control.api.paging import Listed, Paging, paging
from isochrone.control.api.shapes import Body, Identifier, Name, Plain
from isochrone.control.api.writing import ADMIN_KEY_PREFIX, Repeat, new_secret, repeat
from isochrone.control.joining import hash_of
from isochrone.control.passwords import hash_password
from isochrone.core.errors import Forbidden, InvalidInput
from isochrone.core.tenancy.authorise import Action
from isochrone.core.tenancy.terms import end_of_rotated, is_later, is_over
from isochrone.core.world.tenant import MemberKind, Principal, Role
from isochrone.ports.members import Judge, Turnover

_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


def _address(text: str) -> str:
    if _ADDRESS.fullmatch(text) is None:
        raise ValueError("must be an address such as ada@acme.example")
    return text


Email = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=254), AfterValidator(_address), Plain
]


class NewPrincipal(Body):
    """`org_id` defaults to the caller's own organisation; operators belong to none. A service has
    no e-mail address. From `expires_at` on the admin key is refused. With `account` they may sign
    in at once: both are made, or neither."""

    name: Name
    role: Role
    org_id: Identifier | None = None
    kind: MemberKind = "person"
    email: Email | None = None
    expires_at: str | None = None
    account: GivenAccount | None = None


class ChangedRole(Body):
    role: Role


class PrincipalShape(BaseModel):
    """The `name` of a person is null, and so is `email`, once they are erased."""

    id: str
    org_id: str | None
    name: str | None
    role: Role
    kind: MemberKind
    email: str | None
    expires_at: int | None


class MadePrincipal(PrincipalShape):
    """`key` is shown once, and so is `password`, which is null without an account or where the
    caller chose it; `login` is the name of the account."""

    key: str
    login: str | None = None
    password: str | None = None


def routes(context: Context) -> APIRouter:
    router = APIRouter(prefix="/principals", tags=["tenants"])
    members = context.registry.members
    may = access(context)

    @router.get("")
    def list_principals(
        caller: Annotated[Caller, may("members.read")], page: Annotated[Paging, Depends(paging)]
    ) -> Listed[PrincipalShape]:
        """Principals that the caller sees, without their keys."""
        rows = members.principals(caller.scope, page.page)
        return page.listed(rows, _shape, lambda row: row.id)

    @router.post("", status_code=status.HTTP_201_CREATED)
    def make_principal(
        body: NewPrincipal,
        caller: Annotated[Caller, may("members.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> MadePrincipal:
        """Make a principal; the answer shows its admin key, once."""
        caller.need_appointment(body.role)
        now, once = context.now(), again.once(caller, _as_remembered(body, again))
        earlier = context.registry.writes.made_before(caller.scope, once, now=now)
        expires_at, problems = read_end(body.expires_at, now=now)
        wanted = Principal(
            id=context.new_id(), org_id=caller.organisation("members.write", body.org_id),
            name=body.name, role=body.role, kind=body.kind, email=body.email,
            expires_at=expires_at,
        )
        _check(wanted, problems if earlier is None else [])
        secret = new_secret(context, ADMIN_KEY_PREFIX, once)
        account, password = (None, None) if body.account is None else first_account(
            context, wanted, body.account, once=once
        )
        made = members.member(caller.scope, earlier) if earlier is not None else members.add(
            caller.scope, wanted, hash_of(secret), now=now, once=once, account=account
        )
        return MadePrincipal(
            **_shape(made).model_dump(), key=secret, password=password,
            login=None if account is None else account.login,
        )

    _add_changes(router, context)
    _add_ends(router, context)
    return router


def _add_changes(router: APIRouter, context: Context) -> None:
    members, may = context.registry.members, access(context)

    @router.patch("/{principal_id}")
    def change_role(
        principal_id: str, body: ChangedRole, caller: Annotated[Caller, may("members.write")]
    ) -> PrincipalShape:
        """Give a principal another role; what it may do changes at once."""
        may_change = _other(caller, principal_id)

        def judge(present: Principal) -> None:
            may_change(present)
            caller.need_appointment(body.role)
            if (body.role == "operator") != (present.role == "operator"):
                raise InvalidInput(
                    ["role: operators belong to no organisation; make another principal instead"]
                )

        return _shape(members.set_role(
            caller.scope, principal_id, body.role, judge=judge, now=context.now()
        ))

    @router.post("/{principal_id}/rotate", status_code=status.HTTP_201_CREATED)
    def rotate_principal(
        principal_id: str,
        body: Rotation,
        caller: Annotated[Caller, may("members.write")],
        again: Annotated[Repeat, Depends(repeat)],
    ) -> MadePrincipal:
        """Give a principal a new admin key, shown once. The old one goes on for `overlap_s`.
        Everybody may do this for themselves who may do it for others, but for a later end."""
        present = members.member(caller.scope, principal_id)
        is_own = caller.id == f"principal:{principal_id}"
        if not is_own:
            caller.need_appointment(present.role)
        elif caller.session_sha256 is not None:  # it ends, and would give itself what does not
            raise Forbidden("who is signed in rotates their own admin key with the present one")
        now, once = context.now(), again.once(caller, body)
        secret = new_secret(context, ADMIN_KEY_PREFIX, once)
        if context.registry.writes.made_before(caller.scope, once, now=now) is not None:
            return MadePrincipal(**_shape(present).model_dump(), key=secret)
        expires_at = end_in(body, now=now)
        if expires_at is None and is_over(present.expires_at, now=now):
            raise InvalidInput(["expires_at: missing; the present end is past, give a later one"])
        if is_own and is_later(expires_at, present.expires_at):
            raise Forbidden("nobody gives themselves more time: ask another principal")
        changed = members.turn_over(
            caller.scope, principal_id,
            Turnover(
                secret_sha256=hash_of(secret),
                former_until=end_of_rotated(
                    present.expires_at, now=now, overlap_s=body.overlap_s
                ),
                expires_at=present.expires_at if expires_at is None else expires_at,
            ),
            now=now, once=once,
        )
        return MadePrincipal(**_shape(changed).model_dump(), key=secret)


def _add_ends(router: APIRouter, context: Context) -> None:
    members, may = context.registry.members, access(context)

    @router.delete("/{principal_id}")
    def revoke_principal(
        principal_id: str, caller: Annotated[Caller, may("members.write")]
    ) -> PrincipalShape:
        """Revoke a principal; its key works no more."""
        return _shape(members.revoke(
            caller.scope, principal_id, judge=_other(caller, principal_id), now=context.now()
        ))

    @router.post("/{principal_id}/erase")
    def erase_person(
        principal_id: str, caller: Annotated[Caller, may("members.erase")]
    ) -> PrincipalShape:
        """Erase the name and e-mail address of a person for good, and revoke them. Ledger, usage
        and audit log know them by their id only, and stay as they are."""
        judge = _other(caller, principal_id, action="members.erase")
        return _shape(members.erase(caller.scope, principal_id, judge=judge, now=context.now()))


def _other(caller: Caller, principal_id: str, *, action: Action = "members.write") -> Judge:
    """Judges whether the caller may change the principal as it stands; Forbidden or NotFound.
    Raises Forbidden at once for the caller's own."""
    if caller.id == f"principal:{principal_id}":
        raise Forbidden("nobody may revoke or change themselves: ask another principal")

    def judge(present: Principal) -> None:
        caller.need(action, present.org_id)
        caller.need_appointment(present.role)

    return judge


def _as_remembered(body: NewPrincipal, again: Repeat) -> NewPrincipal:
    """The request as its hash is kept for its idempotency key: a password in it is as slow to guess
    from there as from the account."""
    if again.key is None or body.account is None or body.account.password is None:
        return body
    slow = hash_password(body.account.password, sha256(again.key.encode()).digest())
    return body.model_copy(
        update={"account": body.account.model_copy(update={"password": slow})}
    )


def _check(wanted: Principal, problems: list[str]) -> None:
    """Raises InvalidInput with these and all other problems."""
    if (wanted.role == "operator") != (wanted.org_id is None):
        problems.append("org_id: an operator belongs to no organisation, everybody else to one")
    if wanted.kind == "service" and wanted.email is not None:
        problems.append("email: only people have one; leave it out for a service")
    if problems:
        raise InvalidInput(problems)


def _shape(row: Principal) -> PrincipalShape:
    return PrincipalShape(
        id=row.id, org_id=row.org_id, name=row.name, role=row.role, kind=row.kind,
        email=row.email, expires_at=row.expires_at,
    )
