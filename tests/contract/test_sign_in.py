"""Signing in over a real PostgreSQL: sessions, passwords, and how often one may try."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

from isochrone.adapters.postgres.members import write_account
from isochrone.adapters.postgres.pool import Pool
from isochrone.control.api.sessions import count_try
from isochrone.control.joining import hash_of
from isochrone.core.tenancy.sign_in import SESSION_NS, Tried
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.ports.accounts import Session
from isochrone.ports.audit import AuditFilter
from tests.contract.test_control_api import ADMIN, NOW, Api, an_api

PASSWORD, OTHER = "correct horse battery", "staple of another kind"
SECOND_NS = 1_000_000_000


class TestClock:
    """Wall and monotonic time that a test moves."""

    __test__ = False

    def __init__(self) -> None:
        self.now = NOW

    def wall_ns(self) -> int:
        return self.now

    def monotonic_ns(self) -> int:
        return self.now


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def api(pool: Pool, clock: TestClock) -> Iterator[Api]:
    with an_api(pool, clock) as found:
        yield found


def a_member(api: Api, role: str = "owner", email: str = "Ada@acme.example") -> str:
    """Somebody of a new organisation who may sign in with PASSWORD; their principal's id."""
    org = api.make("organisations", {"name": f"org of {email}"})["id"]
    body = {"name": "Ada", "role": role, "org_id": org, "email": email}
    made = str(api.make("principals", body)["id"])
    status, account = api.call("PUT", f"principals/{made}/password", {"password": PASSWORD})
    assert (status, account["login"], account["password"]) == (200, email.lower(), None)
    return made


def sign_in(
    api: Api, login: str = "ada@acme.example", password: str = PASSWORD, address: str = "10.1.1.1"
) -> tuple[int, dict[str, object]]:
    body = {"login": login, "password": password, "address": address}
    return api.call("POST", "sessions", body, key=None)


def a_session(api: Api) -> str:
    status, begun = sign_in(api)
    assert status == 201, begun
    return str(begun["token"])


def test_a_session_may_do_what_its_member_may(api: Api) -> None:
    member = a_member(api)
    session = a_session(api)
    status, me = api.call("GET", "me", key=session)
    assert (status, me["id"], me["role"], me["login"]) == (200, member, "owner", "ada@acme.example")
    assert me["is_given"], "somebody else chose the password"
    assert api.call("GET", "projects", key=session)[0] == 200
    assert api.call("POST", "organisations", {"name": "x"}, key=session)[0] == 403


def test_names_are_the_same_in_any_case_and_without_blanks(api: Api) -> None:
    a_member(api)
    assert sign_in(api, login="  ADA@Acme.Example ")[0] == 201


def test_a_session_ends_by_signing_out_and_by_itself(api: Api, clock: TestClock) -> None:
    a_member(api)
    first, second = a_session(api), a_session(api)
    assert api.call("DELETE", "sessions/current", key=first)[1] == {"ended": True}
    assert api.call("DELETE", "sessions/current", key=first)[1] == {"ended": False}
    assert api.call("GET", "me", key=first)[0] == 401
    clock.now += SESSION_NS - 1
    assert api.call("GET", "me", key=second)[0] == 200
    clock.now += 1
    status, problem = api.call("GET", "me", key=second)
    assert (status, problem["detail"]) == (401, "the session is over; sign in again")


def test_who_signs_in_and_out_is_named_in_the_log(api: Api, clock: TestClock) -> None:
    member = a_member(api)
    a_session(api)
    api.call("DELETE", "sessions/current", key=a_session(api))
    clock.now += SESSION_NS
    api.context.registry.accounts.forget_old(now=clock.now)
    entries = api.context.registry.audit.entries(
        EVERY_TENANT, AuditFilter(kind="session"), most=100
    )
    herself = f"principal:{member}"
    assert [(each.change, each.actor) for each in entries] == [
        ("made", herself), ("made", herself), ("removed", herself), ("removed", "control"),
    ]
    assert len({each.org_id for each in entries}) == 1


def test_a_password_that_is_changed_while_it_is_compared_begins_no_session(
    api: Api, pool: Pool
) -> None:
    """Whoever changes it has all sessions ended, and means those of the old one."""
    member = a_member(api)
    accounts = api.context.registry.accounts
    account = accounts.named("ada@acme.example", now=NOW)
    assert account is not None
    session = Session(
        secret_sha256="a" * 64, principal_id=member, org_id=account.org_id, begun_at=NOW,
        expires_at=NOW + SESSION_NS,
    )
    with ThreadPoolExecutor(1) as other, pool.transaction(EVERY_TENANT) as connection:
        write_account(connection, replace(account, password="another"), now=NOW)
        begun = other.submit(accounts.begin, session, password=account.password)
    assert begun.result(timeout=10) is False
    assert accounts.holder(session.secret_sha256, now=NOW) is None
    assert accounts.begin(session, password="another")


def test_a_revoked_member_is_out_at_once_and_leaves_no_name(api: Api, pool: Pool) -> None:
    member = a_member(api, role="admin")  # an organisation keeps its last owner
    session = a_session(api)
    assert api.call("DELETE", f"principals/{member}")[0] == 200
    assert api.call("GET", "me", key=session)[0] == 401
    assert sign_in(api)[0] == 401
    with pool.transaction(EVERY_TENANT) as connection:
        assert connection.execute("SELECT FROM accounts").fetchall() == []


def test_a_wrong_name_and_a_wrong_password_are_answered_alike(api: Api) -> None:
    a_member(api)
    wrong = sign_in(api, password=OTHER)
    assert wrong == sign_in(api, login="nobody@acme.example")
    assert wrong[0] == 401


def test_tries_on_one_name_wait_longer_and_longer(api: Api, clock: TestClock) -> None:
    a_member(api)
    for number in range(5):
        assert sign_in(api, password=OTHER, address=f"10.0.0.{number}")[0] == 401
    assert sign_in(api, address="10.0.0.9")[0] == 429, "the right password waits as well"
    clock.now += SECOND_NS
    assert sign_in(api, password=OTHER)[0] == 401
    clock.now += SECOND_NS
    answer = api.client.post(
        "/api/v1/sessions", json={"login": "ada@acme.example", "password": PASSWORD}
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    clock.now += SECOND_NS
    assert sign_in(api)[0] == 201
    assert sign_in(api, password=OTHER)[0] == 401, "a success is a new beginning"


def test_tries_from_one_address_wait_whatever_the_name(api: Api, clock: TestClock) -> None:
    a_member(api)
    for number in range(30):
        api.context.registry.accounts.try_once(
            {"address": "an address", "login": f"name {number}"}, now=clock.now
        )
    tries = api.context.registry.accounts.try_once
    assert tries({"address": "an address", "login": "new"}, now=clock.now) > 0
    assert tries({"address": "elsewhere", "login": "new"}, now=clock.now) == 0
    assert sign_in(api)[0] == 201, "others sign in meanwhile"


def tried_from(api: Api, peer: str, **stated: str) -> int:
    """The code of a wrong try that comes over a connection from `peer`."""

    async def run() -> int:
        transport = httpx.ASGITransport(app=api.client.app, client=(peer, 4000))
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
            body = {"login": f"somebody@{peer}", "password": OTHER, **stated}
            return (await client.post("/api/v1/sessions", json=body)).status_code

    return asyncio.run(run())


def test_nobody_makes_the_visitors_of_a_console_wait_by_stating_their_address(api: Api) -> None:
    """Nor passes the count by stating none."""
    for number in range(30):
        count_try(api.context, f"name {number}", "10.1.1.1", teller="198.51.100.7")
        count_try(api.context, f"other {number}", teller="198.51.100.8")
    assert tried_from(api, "198.51.100.7", address="10.1.1.1") == 429
    assert tried_from(api, "10.0.0.1", address="10.1.1.1") == 401, "as the console says"
    assert tried_from(api, "198.51.100.8") == 429


def test_the_own_password_is_changed_with_the_present_one(api: Api) -> None:
    a_member(api)
    mine, elsewhere = a_session(api), a_session(api)
    changed = {"present": PASSWORD, "password": OTHER}
    wrong = {"present": "not this one", "password": OTHER}
    assert api.call("PUT", "me/password", wrong, key=mine)[0] == 422
    status, me = api.call("PUT", "me/password", changed, key=mine)
    assert (status, me["is_given"]) == (200, False)
    assert api.call("GET", "me", key=mine)[0] == 200
    assert api.call("GET", "me", key=elsewhere)[0] == 401
    assert sign_in(api)[0] == 401
    assert sign_in(api, password=OTHER)[0] == 201


def test_wrong_present_passwords_are_counted_as_wrong_ones(api: Api, clock: TestClock) -> None:
    """Whoever finds an open browser may not guess for as long as it is open."""
    a_member(api)
    mine = a_session(api)
    wrong = {"present": "not this one", "password": OTHER}
    for _ in range(5):
        assert api.call("PUT", "me/password", wrong, key=mine)[0] == 422
    assert api.call("PUT", "me/password", wrong, key=mine)[0] == 429
    clock.now += SECOND_NS
    changed = {"present": PASSWORD, "password": OTHER}
    assert api.call("PUT", "me/password", changed, key=mine)[0] == 200
    assert sign_in(api, password=OTHER)[0] == 201, "a success is a new beginning"


def test_right_passwords_from_one_address_make_nobody_wait(api: Api, clock: TestClock) -> None:
    accounts = api.context.registry.accounts
    for number in range(40):
        tried: dict[Tried, str] = {"login": f"name {number}", "address": "an office"}
        assert accounts.try_once(tried, now=clock.now) == 0
        accounts.succeeded(tried)
    for _ in range(29):
        assert accounts.try_once({"address": "an office"}, now=clock.now) == 0
    assert accounts.try_once({"address": "an office"}, now=clock.now) > 0


def test_a_session_gives_itself_no_admin_key(api: Api) -> None:
    """It would be good for longer than the session, and would set a password without the present
    one."""
    member = a_member(api)
    status, problem = api.call("POST", f"principals/{member}/rotate", {}, key=a_session(api))
    assert (status, problem["code"]) == (403, "forbidden")


@pytest.mark.parametrize("bad", ["short", "a" * 30, "xx ada@acme.example xx", "y" * 201])
def test_weak_passwords_are_refused_with_the_reason(api: Api, bad: str) -> None:
    member = a_member(api)
    status, problem = api.call("PUT", f"principals/{member}/password", {"password": bad})
    assert (status, problem["problems"][0].partition(":")[0]) == (422, "password")


def test_a_session_cannot_take_over_its_own_account(api: Api) -> None:
    """Whoever finds an open browser may not set a password without knowing the present one."""
    member = a_member(api)
    status, problem = api.call(
        "PUT", f"principals/{member}/password", {"password": OTHER}, key=a_session(api)
    )
    assert (status, problem["code"]) == (403, "forbidden")


def test_the_operator_gets_an_account_with_the_admin_key(api: Api) -> None:
    status, made = api.call("PUT", "principals/operator/password", {"login": "operator"})
    assert (status, made["login"]) == (200, "operator")
    assert sign_in(api, login="operator", password=made["password"])[0] == 201


def test_a_taken_name_is_refused_without_saying_whose_it_is(api: Api) -> None:
    a_member(api)
    other = a_member(api, email="eve@acme.example")
    status, problem = api.call(
        "PUT", f"principals/{other}/password", {"login": "ada@acme.example"}
    )
    assert (status, problem["code"]) == (409, "conflict")
    assert "default" not in problem["detail"]


def test_nothing_that_signs_in_is_in_the_log_or_the_book(api: Api, pool: Pool) -> None:
    a_member(api)
    session = a_session(api)
    entries = api.context.registry.audit.entries(EVERY_TENANT, AuditFilter(), most=1000)
    kinds = {entry.kind for entry in entries}
    assert {"account", "session"} <= kinds
    with pool.transaction(EVERY_TENANT) as connection:
        kept = str(connection.execute("SELECT * FROM accounts, sessions").fetchall())
    said = str(entries) + kept
    for secret in (PASSWORD, session):
        assert secret not in said
    assert "ada@acme.example" not in str(entries)
    assert hash_of(session) in kept


def test_what_is_over_is_removed(api: Api, pool: Pool, clock: TestClock) -> None:
    a_member(api)
    a_session(api)
    sign_in(api, password=OTHER)
    clock.now += SESSION_NS
    api.context.registry.accounts.forget_old(now=clock.now)
    with pool.transaction(EVERY_TENANT) as connection:
        assert connection.execute("SELECT FROM sessions").fetchall() == []
        assert connection.execute("SELECT FROM sign_in_tries").fetchall() == []


def test_a_key_is_no_session(api: Api) -> None:
    assert api.call("PUT", "me/password", {"present": "x", "password": OTHER}, key=ADMIN)[0] == 422
