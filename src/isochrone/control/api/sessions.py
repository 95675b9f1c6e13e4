"""Signing in with a name and a password, signing out, and who the caller is.

A session's secret is used as a bearer like any key, and its holder may do what the member may. A
wrong name and a wrong password are answered alike, after as long; tries are counted by name and by
address, and each further one has to wait longer.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated

import structlog
from fastapi import APIRouter, Header, Request, status
from pydantic import BaseModel, StringConstraints

from isochrone.control.api.auth import SESSION_PREFIX, Caller, access, bearer
from isochrone.control.api.context import Context
from isochrone.control.api.shapes import Body, Plain
from isochrone.control.api.writing import new_secret
from isochrone.control.joining import hash_of
from isochrone.control.passwords import is_password
from isochrone.core.errors import TooManyTries, Untrusted
from isochrone.core.ids import OrgId
from isochrone.core.tenancy.authorise import MAY, Action, CallerRole
from isochrone.core.tenancy.sign_in import LONGEST_PASSWORD, SESSION_NS, Tried
from isochrone.ports.accounts import Account, Session

Login = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=254), Plain
]
Password = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_PASSWORD)]

log = structlog.get_logger()


class SignIn(Body):
    """`address` is where the person is, as a console that signs them in sees it. Nobody knows
    whether that is true, so tries are counted for each who states it apart."""

    login: Login
    password: Password
    address: Annotated[str, StringConstraints(max_length=100)] = ""


class Begun(BaseModel):
    """`token` is shown once; it works until `expires_at` (wall ns UTC) or until signed out."""

    token: str
    expires_at: int


class Ended(BaseModel):
    """Whether there was a session to end."""

    ended: bool


class Me(BaseModel):
    """Who calls. `login` is null without an account; `is_given`: somebody else set its password.
    `rights` are those of the role."""

    id: str
    role: CallerRole
    org_id: str | None
    organisation: str | None
    name: str | None
    login: str | None
    is_given: bool
    rights: list[Action]


def routes(context: Context) -> APIRouter:
    router = APIRouter(tags=["tenants"])
    may = access(context)

    @router.post("/sessions", status_code=status.HTTP_201_CREATED)
    def sign_in(body: SignIn, request: Request) -> Begun:
        """Sign in. 401 for a wrong name or password, 429 after too many tries."""
        login, now = body.login.lower(), context.now()
        accounts = context.registry.accounts
        teller = request.client.host if request.client is not None else ""
        tried = count_try(context, login, body.address, teller=teller)
        account = accounts.named(login, now=now)
        if not is_password(body.password, None if account is None else account.password):
            raise _refused(body.address)
        assert account is not None, "nobody has the password of no account"
        begun = _begin(context, account, now=now)
        if begun is None:
            raise _refused(body.address)
        accounts.succeeded(tried)
        return begun

    @router.delete("/sessions/current")
    def sign_out(authorization: Annotated[str | None, Header()] = None) -> Ended:
        """End the session whose secret is sent as the bearer."""
        return Ended(ended=context.registry.accounts.end(hash_of(bearer(authorization))))

    @router.get("/me")
    def who_am_i(caller: Annotated[Caller, may("self.read")]) -> Me:
        """Who the caller is, and what the role may do."""
        return me(context, caller)

    return router


def count_try(
    context: Context, login: str, address: str = "", *, teller: str | None = None
) -> Mapping[Tried, str]:
    """Count a try of a password, and say what is to be told of its success. Who connects (`teller`)
    may state any `address`, and makes nobody wait there whose console is another. Raises
    TooManyTries."""
    tried: dict[Tried, str] = {"login": _mark("login", login)}
    if teller is not None:
        tried["address"] = _mark("address", f"{teller}\n{address}")
    waits_s = context.registry.accounts.try_once(tried, now=context.now())
    if waits_s > 0:
        log.warning("sign_in_held_back", wait_s=round(waits_s, 1), address=address)
        raise TooManyTries(
            f"too many tries to sign in; try again in {waits_s:.0f} s", wait_s=waits_s
        )
    return tried


def _refused(address: str) -> Untrusted:
    log.warning("sign_in_refused", address=address)
    return Untrusted("the name or the password is wrong")


def _begin(context: Context, account: Account, *, now: int) -> Begun | None:
    """None where the password was changed while it was compared."""
    secret = new_secret(context, SESSION_PREFIX, None)
    session = Session(
        secret_sha256=hash_of(secret), principal_id=account.principal_id, org_id=account.org_id,
        begun_at=now, expires_at=now + SESSION_NS,
    )
    if not context.registry.accounts.begin(session, password=account.password):
        return None
    log.info("signed_in", principal=account.principal_id)
    return Begun(token=secret, expires_at=session.expires_at)


def me(context: Context, caller: Caller) -> Me:
    """What is known of the caller."""
    name, account = None, None
    kind, _, id_ = caller.id.partition(":")
    if kind == "principal":
        name = context.registry.members.member(caller.scope, id_).name
        account = context.registry.accounts.account(caller.scope, id_)
    return Me(
        id=id_, role=caller.role, org_id=caller.scope.org_id,
        organisation=_organisation(context, caller), name=name,
        login=None if account is None else account.login,
        is_given=account is not None and account.is_given, rights=sorted(MAY[caller.role]),
    )


def _organisation(context: Context, caller: Caller) -> str | None:
    org_id = caller.scope.org_id
    if org_id is None:
        return None
    return context.registry.tenants.organisation(caller.scope, OrgId(org_id)).name


def _mark(kind: Tried, text: str) -> str:
    """What is kept of what was tried."""
    return sha256(f"{kind}\n{text}".encode()).hexdigest()
