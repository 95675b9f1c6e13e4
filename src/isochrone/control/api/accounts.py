"""Accounts: gives a member a name and a password to sign in with, and changes one's own password.

Both end the other sessions of the account.
"""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel

from isochrone.control.api.auth import Caller, access
from isochrone.control.api.context import Context
from isochrone.control.api.sessions import Login, Me, Password, count_try, me
from isochrone.control.api.shapes import Body
from isochrone.control.api.writing import new_secret
from isochrone.control.passwords import SALT_BYTES, hash_password, is_password
from isochrone.core.errors import Forbidden, InvalidInput
from isochrone.core.tenancy.sign_in import check_password
from isochrone.core.world.tenant import Principal
from isochrone.ports.accounts import Account
from isochrone.ports.tenants import Once

MADE_CHARACTERS = 20


class NewPassword(Body):
    """`present` is the password until now."""

    present: Password
    password: Password


class GivenAccount(Body):
    """What a member signs in with. `login` defaults to the present name, else to the member's
    e-mail address; without `password` one is made, and shown once."""

    login: Login | None = None
    password: Password | None = None


class AccountShape(BaseModel):
    """`password` is null where the caller chose it."""

    principal_id: str
    login: str
    password: str | None


def routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["tenants"])
    accounts, may = context.registry.accounts, access(context)

    @router.put("/me/password")
    def change_password(
        body: NewPassword, caller: Annotated[Caller, may("self.write")]
    ) -> Me:
        """Change one's own password; the caller's session goes on, others end."""
        account = accounts.account(caller.scope, caller.id.removeprefix("principal:"))
        if account is None:
            raise InvalidInput(["present: there is no account, and so no password"])
        tried = count_try(context, account.login)
        if not is_password(body.present, account.password):
            raise InvalidInput(["present: this is not the present password"])
        accounts.succeeded(tried)
        problems = check_password(body.password, login=account.login)
        if body.password == body.present:
            problems.append("password: is the present one")
        if problems:
            raise InvalidInput(problems)
        changed = Account(
            principal_id=account.principal_id, org_id=account.org_id, login=account.login,
            password=hash_password(body.password, context.entropy(SALT_BYTES)), is_given=False,
        )
        accounts.put(caller.scope, changed, now=context.now(), keep=caller.session_sha256)
        return me(context, caller)

    @router.put("/principals/{principal_id}/password")
    def give_account(
        principal_id: str, body: GivenAccount, caller: Annotated[Caller, may("members.write")]
    ) -> AccountShape:
        """Give a member an account, or its password anew. With an admin key everybody may do this
        for themselves who may do it for others."""
        member = context.registry.members.member(caller.scope, principal_id)
        caller.need("members.write", member.org_id)
        if caller.id != f"principal:{principal_id}":
            caller.need_appointment(member.role)
        elif caller.session_sha256 is not None:
            raise Forbidden("who is signed in changes their own password with the present one")
        present = accounts.account(caller.scope, principal_id)
        account, made = first_account(context, member, body, present=present)
        accounts.put(caller.scope, account, now=context.now(), keep=caller.session_sha256)
        return AccountShape(principal_id=member.id, login=account.login, password=made)

    return router


def first_account(
    context: Context, member: Principal, body: GivenAccount, *, present: Account | None = None,
    once: Once | None = None,
) -> tuple[Account, str | None]:
    """The account that somebody else gives to a member, and the password where one was made for
    it; `present` is the one before. Raises InvalidInput."""
    login = (body.login or _login(present, member)).lower()
    made = new_secret(context, "", once)[:MADE_CHARACTERS]
    if body.password is not None and (faults := check_password(body.password, login=login)):
        raise InvalidInput(faults)
    password = hash_password(body.password or made, context.entropy(SALT_BYTES))
    account = Account(
        principal_id=member.id, org_id=member.org_id, login=login, password=password, is_given=True
    )
    return account, None if body.password else made


def _login(present: Account | None, member: Principal) -> str:
    if present is not None:
        return present.login
    if member.email is None:
        raise InvalidInput(["login: missing; the member has no e-mail address to use instead"])
    return member.email

