"""Tenancy over the Control API: ends, scopes and rotation of keys, members, erasure, bad input."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.postgres.pool import Pool
from isochrone.control.joining import hash_of
from isochrone.control.retention import erase_for_ever
from isochrone.core.errors import LastOwner
from isochrone.core.ids import OrgId
from isochrone.core.tenancy.terms import DAY_NS
from isochrone.core.world.tenant import EVERY_TENANT, Scope
from isochrone.ports.audit import AuditFilter
from tests.contract.test_control_api import ADMIN, Api, a_booked, an_api

T = TypeVar("T")
SECOND_NS = 1_000_000_000


class Ahead:
    """The machine's clock, `ahead_ns` later than it is."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.ahead_ns = 0

    def wall_ns(self) -> int:
        return self._clock.wall_ns() + self.ahead_ns

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()


@pytest.fixture
def clock() -> Ahead:
    """Time that the test moves."""
    return Ahead()


@pytest.fixture
def api(pool: Pool, clock: Ahead) -> Iterator[Api]:
    with an_api(pool, clock) as found:
        yield found


def published(api: Api) -> list[str]:
    """Ids of the keys that gateways are told."""
    snapshot = api.context.registry.estate.snapshot(now=api.context.now())
    return [str(key.id) for key in snapshot.keys]


def test_a_key_has_an_end_and_scopes_and_gateways_are_told(api: Api, clock: Ahead) -> None:
    end = api.context.now() + 60 * SECOND_NS
    made = api.make("keys", {"scopes": ["usage", "chat", "chat"], "expires_at": str(end)})
    assert (made["scopes"], made["expires_at"]) == (["chat", "usage"], end)
    (told,) = api.context.registry.estate.snapshot(now=api.context.now()).keys
    assert (told.scopes, told.expires_at) == (("chat", "usage"), end)
    assert api.call("GET", "usage", key=made["key"])[0] == 200
    clock.ahead_ns = 61 * SECOND_NS
    assert published(api) == []
    status, problem = api.call("GET", "usage", key=made["key"])
    assert (status, problem["detail"]) == (401, "the key is unknown, revoked or past its end")


def test_a_key_without_the_scope_sees_no_usage(api: Api) -> None:
    made = api.make("keys", {"scopes": ["chat"]})
    event = a_booked(api, made["org_id"], made["id"], 1)
    for path in ("usage", f"requests/{event.request_id}"):
        status, problem = api.call("GET", path, key=made["key"])
        assert (status, problem["detail"]) == (403, "the key lacks the scope 'usage'")
    assert api.call("GET", "models", key=made["key"])[0] == 200


def test_a_rotated_key_goes_on_for_the_overlap(api: Api, clock: Ahead) -> None:
    body = {
        "name": "app", "residency": ["DE"], "classes": ["batch"], "scopes": ["chat", "usage"],
        "expires_at": str(api.context.now() + 30 * DAY_NS),
    }
    old = api.make("keys", body)
    clock.ahead_ns = 10 * DAY_NS
    status, new = api.call("POST", f"keys/{old['id']}/rotate", {"overlap_s": 3600}, once="r")
    assert status == 201
    assert api.call("POST", f"keys/{old['id']}/rotate", {"overlap_s": 3600}, once="r")[1] == new
    kept = ("name", "residency", "classes", "scopes", "project_id", "policy_id")
    assert {name: new[name] for name in kept} == {name: old[name] for name in kept}
    assert (new["replaces"], new["id"] != old["id"], new["key"] != old["key"]) == (
        old["id"], True, True,
    )
    assert abs(new["expires_at"] - (api.context.now() + 30 * DAY_NS)) < 60 * SECOND_NS
    assert sorted(published(api)) == sorted([old["id"], new["id"]])
    for each in (old, new):
        assert api.call("GET", "usage", key=each["key"])[0] == 200
    clock.ahead_ns += 3601 * SECOND_NS
    assert published(api) == [new["id"]]
    assert [api.call("GET", "usage", key=each["key"])[0] for each in (old, new)] == [401, 200]
    assert api.call("POST", f"keys/{old['id']}/rotate", {})[0] == 404, "its end is past"
    assert api.changes


def test_a_key_is_rotated_at_once_and_never_lengthened(api: Api, clock: Ahead) -> None:
    soon = api.context.now() + 60 * SECOND_NS
    old = api.make("keys", {"expires_at": str(soon)})
    api.make(f"keys/{old['id']}/rotate", {})
    ends = {each["id"]: each["expires_at"] for each in api.call("GET", "keys")[1]["items"]}
    assert ends[old["id"]] == soon, "an overlap of a day does not lengthen it"
    other = api.make("keys", {})
    new = api.make(f"keys/{other['id']}/rotate", {"overlap_s": 0})
    assert [api.call("GET", "usage", key=each["key"])[0] for each in (other, new)] == [401, 200]


def test_a_member_gets_a_new_admin_key_and_the_old_one_ends(api: Api, clock: Ahead) -> None:
    owner = api.tenant("two")
    made = api.make("principals", {"name": "robot", "role": "admin", "kind": "service"}, key=owner)
    second = api.make(f"principals/{made['id']}/rotate", {"overlap_s": 60}, key=owner)
    assert second["id"] == made["id"]
    assert [api.call("GET", "keys", key=each["key"])[0] for each in (made, second)] == [200, 200]
    third = api.make(f"principals/{made['id']}/rotate", {"overlap_s": 60}, key=second["key"])
    states = [api.call("GET", "keys", key=each["key"])[0] for each in (made, second, third)]
    assert states == [401, 200, 200], "a member rotates their own; two keys at most"
    clock.ahead_ns = 61 * SECOND_NS
    assert api.call("GET", "keys", key=second["key"])[0] == 401
    assert api.call("DELETE", f"principals/{made['id']}", key=owner)[0] == 200
    assert api.call("GET", "keys", key=third["key"])[0] == 401
    assert api.call("POST", f"principals/{made['id']}/rotate", {}, key=owner)[0] == 404


def test_who_is_past_the_end_gets_no_key_without_a_later_one(api: Api, clock: Ahead) -> None:
    owner = api.tenant("two")
    body = {"name": "Ada", "role": "admin", "expires_at": str(api.context.now() + 60 * SECOND_NS)}
    ada = api.make("principals", body, key=owner)["id"]
    clock.ahead_ns = 120 * SECOND_NS
    status, problem = api.call("POST", f"principals/{ada}/rotate", {}, key=owner)
    assert (status, problem["problems"][0].partition(":")[0]) == (422, "expires_at")
    later = {"expires_at": str(api.context.now() + 60 * SECOND_NS)}
    made = api.make(f"principals/{ada}/rotate", later, key=owner)
    assert api.call("GET", "me", key=made["key"])[0] == 200


def test_nobody_gives_themselves_more_time(api: Api, clock: Ahead) -> None:
    owner = api.tenant("two")
    end, later = (str(api.context.now() + days * DAY_NS) for days in (1, 2))
    made = api.make("principals", {"name": "x", "role": "admin", "expires_at": end}, key=owner)
    path = f"principals/{made['id']}/rotate"
    status, problem = api.call("POST", path, {"expires_at": later}, key=made["key"])
    assert (status, problem["code"]) == (403, "forbidden")
    clock.ahead_ns = DAY_NS // 2
    own = api.make(path, {"overlap_s": 0}, key=made["key"])
    assert own["expires_at"] == int(end), "another key for as long"
    assert api.make(path, {"expires_at": later}, key=owner)["expires_at"] == int(later)


@pytest.mark.parametrize("escape", ["\x1b]0;x\x07", "\x9b2J", "\x7f"])
def test_what_operators_read_of_members_commands_no_terminal(api: Api, escape: str) -> None:
    owner = api.tenant("two")
    body = {"name": "x", "role": "developer", "email": f"a{escape}@acme.example"}
    status, problem = api.call("POST", "principals", body, key=owner)
    assert (status, len(problem["problems"])) == (422, 1)
    account = {"login": f"a{escape}b"}
    wanted = {"name": "x", "role": "developer", "account": account}
    status, problem = api.call("POST", "principals", wanted, key=owner)
    assert (status, len(problem["problems"])) == (422, 1)


def test_an_admin_key_has_an_end(api: Api, clock: Ahead) -> None:
    body = {"name": "x", "role": "operator", "expires_at": str(api.context.now() + SECOND_NS * 60)}
    made = api.make("principals", body)
    assert api.call("GET", "keys", key=made["key"])[0] == 200
    clock.ahead_ns = 61 * SECOND_NS
    assert api.call("GET", "keys", key=made["key"])[0] == 401


def test_a_role_changes_at_once_and_nobody_changes_themselves(api: Api) -> None:
    owner = api.tenant("two")
    made = api.make("principals", {"name": "x", "role": "billing"}, key=owner)
    assert api.call("GET", "keys", key=made["key"])[0] == 403
    path = f"principals/{made['id']}"
    assert api.call("PATCH", path, {"role": "developer"}, key=owner)[1]["role"] == "developer"
    assert api.call("GET", "keys", key=made["key"])[0] == 200
    for role, status in (("operator", 403), ("emperor", 422)):
        assert api.call("PATCH", path, {"role": role}, key=owner)[0] == status
    assert api.call("PATCH", path, {"role": "operator"})[0] == 422
    (me,) = [
        each["id"] for each in api.call("GET", "principals", key=owner)[1]["items"]
        if each["role"] == "owner"
    ]
    for method, own in (("PATCH", ""), ("DELETE", ""), ("POST", "/erase")):
        body = {"role": "admin"} if method == "PATCH" else None
        assert api.call(method, f"principals/{me}{own}", body, key=owner)[0] == 403


def everything_in(pool: Pool) -> str:
    """All rows of all tables, as text."""
    with pool.transaction(EVERY_TENANT) as connection:
        names = connection.execute(
            "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p')"
            " AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'"
        ).fetchall()
        return "\n".join(
            str(connection.execute(f"SELECT * FROM {name}").fetchall()) for (name,) in names
        )


def test_a_person_is_erased_and_the_book_still_stands(api: Api, pool: Pool) -> None:
    owner = api.tenant("two")
    ada = api.make(
        "principals",
        {"name": "Ada Lovelace", "role": "developer", "email": "ada@analytical.example"}, key=owner,
    )
    key = api.make("keys", {"name": "engine"}, key=ada["key"])
    event = a_booked(api, key["org_id"], key["id"], 1)
    assert "Ada Lovelace" in everything_in(pool)
    usage = api.call("GET", "usage", key=owner)
    entries = api.call("GET", "audit", key=owner)[1]["items"]
    assert api.call("POST", f"principals/{ada['id']}/erase", key=ada["key"])[0] == 403
    status, erased = api.call("POST", f"principals/{ada['id']}/erase", key=owner)
    assert (status, erased["name"], erased["email"]) == (200, None, None)
    assert api.call("POST", f"principals/{ada['id']}/erase", key=owner)[1] == erased
    left = everything_in(pool)
    assert "Ada" not in left
    assert "analytical" not in left
    assert api.call("GET", "usage", key=owner) == usage
    assert api.call("GET", f"requests/{event.request_id}", key=key["key"])[0] == 200
    after = api.call("GET", "audit", key=owner)[1]["items"]
    assert after[: len(entries)] == entries, "what was logged stays as it was"
    by = [each for each in after if each["actor"] == f"principal:{ada['id']}"]
    assert {(each["kind"], each["change"]) for each in by} == {("key", "made"), ("policy", "made")}
    assert api.call("GET", "keys", key=ada["key"])[0] == 401, "who is erased has left"
    robot = api.make("principals", {"name": "r", "role": "billing", "kind": "service"}, key=owner)
    status, problem = api.call("POST", f"principals/{robot['id']}/erase", key=owner)
    assert (status, "not a person" in problem["detail"]) == (409, True)


def test_members_who_left_are_erased_when_they_are_retained_no_longer(
    api: Api, clock: Ahead
) -> None:
    owner = api.tenant("two")
    org = api.call("GET", "organisations", key=owner)[1]["items"][0]
    assert org["retain_days"] == 90
    changed = api.call("PATCH", f"organisations/{org['id']}", {"retain_days": 10}, key=owner)[1]
    assert changed == {**org, "retain_days": 10}
    body = {"name": "Charles", "role": "billing"}
    gone, here = (api.make("principals", body, key=owner)["id"] for _ in range(2))
    api.call("DELETE", f"principals/{gone}", key=owner)
    members = api.context.registry.members
    clock.ahead_ns = 10 * DAY_NS - 60 * SECOND_NS
    assert members.erase_overdue(now=api.context.now()) == 0
    clock.ahead_ns = 10 * DAY_NS + 60 * SECOND_NS
    asyncio.run(one_round(api))
    assert members.member(EVERY_TENANT, gone).name is None
    assert members.member(EVERY_TENANT, here).name == "Charles"
    assert members.erase_overdue(now=api.context.now()) == 0
    (entry,) = api.context.registry.audit.entries(
        Scope(org_id=OrgId(org["id"])),
        AuditFilter(kind="person", subject=gone, actor="control"), most=9,
    )
    assert entry.change == "changed"


async def one_round(api: Api) -> None:
    """What control's loop does, until it has done it once."""
    done = asyncio.Event()
    calls: list[object] = []

    async def offload(call: Callable[[], T], /) -> T:
        found = call()
        calls.append(call)
        if len(calls) == 3:
            done.set()
        return found

    registry = api.context.registry
    task = asyncio.create_task(
        erase_for_ever(
            registry.members, registry.accounts, registry.writes, api.context.clock, offload
        )
    )
    async with asyncio.timeout(10):
        await done.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def test_bad_input_lists_everything_wrong_and_writes_nothing(api: Api, pool: Pool) -> None:
    key = api.make("keys", {})
    before = everything_in(pool)
    past, far = "2001-01-01T00:00:00Z", "2199-01-01T00:00:00Z"
    for method, path, body, said in (
        ("POST", "keys", {"scopes": ["chat", "root"], "classes": [], "name": " "}, 3),
        ("POST", "keys", {"scopes": []}, 1),
        ("POST", "keys", {"expires_at": past, "residency": ["XX"], "logs": []}, 3),
        ("POST", "keys", {"expires_at": past}, 1), ("POST", "keys", {"expires_at": far}, 1),
        ("POST", "keys", {"expires_at": "tomorrow"}, 1),
        ("POST", f"keys/{key['id']}/rotate", {"overlap_s": 2_592_001}, 1),
        ("POST", f"keys/{key['id']}/rotate", {"overlap_s": -1, "expires_at": past}, 2),
        ("POST", "principals", {"name": "x", "role": "king", "email": "x", "kind": "dog"}, 3),
        ("POST", "principals",
         {"name": "x", "role": "owner", "kind": "service", "email": "a@b.c"}, 2),
        ("POST", "principals", {"name": "x", "role": "operator", "org_id": "default"}, 1),
        ("PATCH", "organisations/default", {}, 1),
        ("PATCH", "organisations/default", {"retain_days": 3651, "name": ""}, 2),
        ("PATCH", "projects/default", {"name": ""}, 1),
        ("GET", "audit?after=x", None, 1), ("GET", "audit?since=yesterday&limit=0", None, 1),
        ("GET", "audit?kind=nothing", None, 1),
    ):
        status, problem = api.call(method, path, body)
        assert (status, len(problem["problems"])) == (422, said), problem
    for method, path, body, status in (
        ("PATCH", "organisations/nowhere", {"name": "x"}, 404),
        ("GET", "audit?org=nowhere", None, 404), ("GET", "projects?org=nowhere", None, 404),
        ("PATCH", "projects/nowhere", {"name": "x"}, 404),
        ("POST", "keys/nowhere/rotate", {}, 404), ("POST", "principals/nowhere/erase", None, 404),
    ):
        assert api.call(method, path, body)[0] == status
    assert everything_in(pool) == before


def test_names_have_no_control_characters(api: Api) -> None:
    """They are printed on the terminals of others."""
    for name in ("a\x1b[31m", "a\nb", "a\x00b", "\x9b2J"):
        for path in ("organisations", "projects", "keys", "principals"):
            body = {"name": name} | ({} if path in ("organisations", "keys") else
                                     {"org_id": "default"})
            body |= {"role": "developer"} if path == "principals" else {}
            status, said = api.call("POST", path, body)
            assert (status, said["problems"]) == (
                422, ["name: must not have control characters, such as line breaks"],
            )
    joined = {"name": "\U0001f469\u200d\U0001f4bb é", "org_id": "default"}
    assert api.call("POST", "projects", joined)[0] == 201


def test_names_are_changed_and_taken_once(api: Api) -> None:
    owner = api.tenant("two")
    (org,) = api.call("GET", "organisations", key=owner)[1]["items"]
    assert api.call("PATCH", f"organisations/{org['id']}", {"name": "default"})[0] == 409
    renamed = api.call("PATCH", f"organisations/{org['id']}", {"name": "acme"}, key=owner)[1]
    assert renamed["name"] == "acme"
    assert api.call("GET", f"organisations/{org['id']}", key=owner)[1] == renamed
    second = api.make("projects", {"name": "second"}, key=owner)
    path = f"projects/{second['id']}"
    assert api.call("PATCH", path, {"name": "main"}, key=owner)[0] == 409
    assert api.call("PATCH", path, {"name": "third"}, key=owner)[1]["name"] == "third"


def test_the_audit_log_is_paged_and_filtered(api: Api) -> None:
    key = api.make("keys", {})
    api.call("DELETE", f"keys/{key['id']}")
    page = api.call("GET", "audit?limit=1&kind=key")[1]
    assert [each["change"] for each in page["items"]] == ["made"]
    rest = api.call("GET", f"audit?limit=1&kind=key&after={page['next']}")[1]
    assert [each["change"] for each in rest["items"]] == ["changed"]
    assert rest["next"] is None
    (revoked,) = rest["items"]
    assert (revoked["actor"], revoked["subject"]) == ("principal:operator", key["id"])
    assert (revoked["before"]["revoked_at"], revoked["after"]["revoked_at"] > 0) == (None, True)
    assert hash_of(key["key"]) not in str(page)
    assert api.call("GET", f"audit?until={revoked['at']}&kind=key")[1]["items"] == page["items"]
    assert api.call("GET", "audit?actor=nobody")[1]["items"] == []
    assert {each["subject"] for each in api.call("GET", "audit?org=default")[1]["items"]} >= {
        "default", key["id"],
    }
    assert ADMIN not in str(api.call("GET", "audit")[1])


# -- closing ---------------------------------------------------------------------------------------


def test_the_keys_of_a_closed_project_are_refused_and_all_that_it_has_stays(api: Api) -> None:
    owner = api.tenant("two")
    project = api.make("projects", {"name": "app"}, key=owner)
    wanted = {"project_id": project["id"]}
    made, revoked = (api.make("keys", wanted, key=owner) for _ in range(2))
    other = api.make("keys", {})
    assert api.call("DELETE", f"keys/{revoked['id']}", key=owner)[0] == 200
    event = a_booked(api, made["org_id"], made["id"], 1)
    status, closed = api.call("POST", f"projects/{project['id']}/close", key=owner)
    assert (status, closed["closed_at"] > 0) == (200, True)
    assert published(api) == [other["id"]]
    assert api.call("GET", "usage", key=made["key"])[0] == 401
    for path, body in (("keys", wanted), (f"keys/{made['id']}/rotate", {})):
        status, problem = api.call("POST", path, body)
        assert (status, problem["code"]) == (409, "closed"), path
    limit = {"kind": "concurrent", "amount": "3", "project_id": project["id"]}
    assert api.call("PUT", "limits", limit, key=owner)[1]["code"] == "closed"
    assert api.call("GET", f"requests/{event.request_id}", key=owner)[0] == 200
    again = api.call("POST", f"projects/{project['id']}/close", key=owner)[1]
    assert again == closed, "it keeps its first instant"
    assert api.changes

    assert api.call("POST", f"projects/{project['id']}/reopen", key=owner)[1]["closed_at"] is None
    assert sorted(published(api)) == sorted([made["id"], other["id"]]), "the revoked one stays so"
    assert api.call("GET", "usage", key=made["key"])[0] == 200
    said = api.call("GET", f"audit?kind=project&subject={project['id']}", key=owner)[1]["items"]
    states = [
        (each["before"]["closed_at"] is None, each["after"]["closed_at"] is None)
        for each in said if each["before"] is not None
    ]
    assert sorted(states) == [(False, True), (True, False)]


def test_a_closed_organisation_makes_nothing_and_is_reopened_by_operators(api: Api) -> None:
    owner = api.tenant("two")
    project = api.make("projects", {"name": "app"}, key=owner)
    made = api.make("keys", {"project_id": project["id"]}, key=owner)
    org = made["org_id"]
    assert api.call("POST", f"organisations/{org}/close", key=owner)[0] == 200
    assert published(api) == []
    assert api.call("GET", "usage", key=made["key"])[0] == 401
    for path, body in (
        ("projects", {"name": "more"}), ("keys", {"project_id": project["id"]}),
        ("policies", {"residency": ["DE"]}), ("principals", {"name": "New", "role": "billing"}),
    ):
        assert api.call("POST", path, body, key=owner)[1]["code"] == "closed", path
    assert [each["id"] for each in api.call("GET", "keys", key=owner)[1]["items"]] == [made["id"]]
    assert api.call("POST", f"organisations/{org}/reopen", key=owner)[0] == 403
    assert api.call("POST", f"organisations/{org}/reopen")[0] == 200
    assert published(api) == [made["id"]]


def test_an_organisation_keeps_an_owner(api: Api, clock: Ahead) -> None:
    owner = api.tenant("two")
    (first,) = (each for each in api.call("GET", "principals", key=owner)[1]["items"])
    paths = ("DELETE", f"principals/{first['id']}"), ("POST", f"principals/{first['id']}/erase")
    for method, path in paths:
        status, problem = api.call(method, path)
        assert (status, problem["code"]) == (409, "last_owner")
    demoted = {"role": "admin"}
    assert api.call("PATCH", f"principals/{first['id']}", demoted)[1]["code"] == "last_owner"
    assert api.call("GET", "keys", key=owner)[0] == 200, "nothing has changed"

    soon = {"name": "Second", "role": "owner", "expires_at": str(api.context.now() + SECOND_NS * 9)}
    api.make("principals", {**soon, "org_id": first["org_id"]})
    clock.ahead_ns = 10 * SECOND_NS
    assert api.call(*paths[0])[1]["code"] == "last_owner", "an owner whose key has ended is none"
    third = api.make("principals", {"name": "Third", "role": "owner", "org_id": first["org_id"]})
    assert api.call("PATCH", f"principals/{first['id']}", demoted)[0] == 200
    assert api.call("DELETE", f"principals/{third['id']}")[1]["code"] == "last_owner"
    assert api.call("POST", f"organisations/{first['org_id']}/close")[0] == 200
    assert api.call("POST", f"principals/{third['id']}/erase")[0] == 200


def test_two_owners_cannot_remove_each_other_at_once(api: Api) -> None:
    api.tenant("two")
    (first,) = (each for each in api.call("GET", "principals")[1]["items"] if each["org_id"])
    second = api.make("principals", {"name": "B", "role": "owner", "org_id": first["org_id"]})
    members, scope, now = api.context.registry.members, EVERY_TENANT, api.context.now()

    def remove(each: str) -> str:
        try:
            members.revoke(scope, each, judge=lambda _: None, now=now)
        except LastOwner:
            return "kept"
        return "removed"

    with ThreadPoolExecutor(2) as both:
        done = sorted(both.map(remove, (first["id"], second["id"])))
    assert done == ["kept", "removed"]


def test_an_organisation_is_made_with_its_first_project_or_not_at_all(api: Api) -> None:
    body = {"name": "Acme", "project": "main"}
    made = api.call("POST", "organisations", body, once="a")
    assert made[0] == 201
    assert api.call("POST", "organisations", body, once="a") == made
    projects = api.call("GET", f"projects?org={made[1]['id']}")[1]["items"]
    assert [each["name"] for each in projects] == ["main"]
    assert api.call("POST", "organisations", body)[0] == 409
    assert len(api.call("GET", "projects?limit=1000")[1]["items"]) == 2, "and the seed's"


def test_a_member_is_made_with_an_account_or_not_at_all(api: Api) -> None:
    org = api.make("organisations", {"name": "Acme"})["id"]

    def a_member(name: str, **account: str) -> dict[str, object]:
        return {"name": name, "role": "owner", "org_id": org, "email": f"{name}@acme.example",
                "account": account}

    made = api.call("POST", "principals", a_member("Ada"), once="a")
    assert made[0] == 201
    assert made[1]["login"] == "ada@acme.example"
    assert api.call("POST", "principals", a_member("Ada"), once="a") == made, "the same password"
    signed = {"login": "ada@acme.example", "password": made[1]["password"]}
    assert api.call("POST", "sessions", signed, key=None)[0] == 201
    for wrong, status in (
        (a_member("Eve", login="ADA@acme.example"), 409), (a_member("Eve", password="short"), 422),
        ({**a_member("Eve"), "email": None}, 422),
    ):
        assert api.call("POST", "principals", wrong)[0] == status
    names = [each["name"] for each in api.call("GET", "principals?limit=1000")[1]["items"]]
    assert "Eve" not in names
    chosen = api.make("principals", a_member("Joy", login="joy", password="correct horse battery"))
    assert (chosen["login"], chosen["password"]) == ("joy", None)
    assert api.make("principals", {"name": "Bo", "role": "owner", "org_id": org})["login"] is None
