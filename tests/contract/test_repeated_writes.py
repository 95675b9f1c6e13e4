"""A write under an idempotency key that is repeated has the first answer, whatever came since."""

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import Any

from isochrone.adapters.postgres.pool import Pool
from isochrone.core.tenancy.terms import DAY_NS
from isochrone.core.world.tenant import EVERY_TENANT
from tests.contract.test_control_api import Api, an_intent
from tests.contract.test_tenancy_api import (
    SECOND_NS,
    Ahead,
    api,
    clock,
    everything_in,
    one_round,
)

__all__ = ["api", "clock"]


def in_a_minute(api: Api) -> str:
    return str(api.context.now() + 60 * SECOND_NS)


def test_a_sale_is_shown_again_when_its_window_is_over(api: Api, clock: Ahead) -> None:
    body = {"model": "tiny", "tok_s": 100, "ends_at": in_a_minute(api)}
    first = api.call("POST", "entitlements", body, once="k")
    assert first[0] == 201
    clock.ahead_ns = 61 * SECOND_NS
    assert api.call("POST", "entitlements", body, once="k") == first
    assert api.call("POST", "entitlements", body, once="other")[0] == 422
    assert len(api.call("GET", "entitlements")[1]["items"]) == 1


def test_a_sale_is_shown_again_when_its_deployments_went(api: Api) -> None:
    body = {"model": "tiny", "tok_s": 100, "ends_at": in_a_minute(api)}
    first = api.call("POST", "entitlements", body, once="k")
    gone = replace(an_intent(), fingerprint="2", deployments=())
    api.context.registry.estate.reconcile(gone, now=api.context.now())
    assert api.call("POST", "entitlements", body, once="other")[0] == 422
    assert api.call("POST", "entitlements", body, once="k") == first
    assert api.call("POST", "entitlements", {**body, "tok_s": 5}, once="k")[0] == 409


def test_a_key_is_shown_again_when_it_is_past_its_end(api: Api, clock: Ahead) -> None:
    body = {"expires_at": in_a_minute(api)}
    first = api.call("POST", "keys", body, once="k")
    assert first[0] == 201
    clock.ahead_ns = 61 * SECOND_NS
    assert api.call("POST", "keys", body, once="k") == first
    assert api.call("POST", "keys", body, once="other")[0] == 422


def test_a_key_is_shown_again_when_its_organisation_has_more_projects(api: Api) -> None:
    owner = api.tenant("one")
    first = api.call("POST", "keys", {}, key=owner, once="k")
    assert first[0] == 201
    api.make("projects", {"name": "second"}, key=owner)
    assert api.call("POST", "keys", {}, key=owner, once="k") == first
    assert api.call("POST", "keys", {}, key=owner, once="other")[0] == 422


def test_a_rotated_key_is_shown_again_when_the_new_one_is_past_its_end(
    api: Api, clock: Ahead
) -> None:
    old, body = api.make("keys", {}), {"expires_at": in_a_minute(api)}
    first = api.call("POST", f"keys/{old['id']}/rotate", body, once="k")
    assert first[0] == 201
    clock.ahead_ns = 61 * SECOND_NS
    assert api.call("POST", f"keys/{old['id']}/rotate", body, once="k") == first


def test_a_member_is_shown_again_when_its_key_is_past_its_end(api: Api, clock: Ahead) -> None:
    org = api.make("organisations", {"name": "one"})["id"]
    body = {
        "name": "Ada", "role": "admin", "org_id": org, "email": "ada@one.example",
        "expires_at": in_a_minute(api), "account": {},
    }
    first = api.call("POST", "principals", body, once="k")
    assert (first[0], first[1]["login"]) == (201, "ada@one.example")
    clock.ahead_ns = 61 * SECOND_NS
    assert api.call("POST", "principals", body, once="k") == first
    assert api.call("POST", "principals", body, once="other")[0] == 422


def test_a_members_new_key_is_shown_again_when_it_is_past_its_end(
    api: Api, clock: Ahead
) -> None:
    org = api.make("organisations", {"name": "one"})["id"]
    made = api.make("principals", {"name": "Ada", "role": "admin", "org_id": org})
    body, path = {"expires_at": in_a_minute(api)}, f"principals/{made['id']}/rotate"
    first = api.call("POST", path, body, once="k")
    assert first[0] == 201
    clock.ahead_ns = 61 * SECOND_NS
    assert api.call("POST", path, body, once="k") == first


def test_a_policy_is_shown_again_when_its_organisation_is_closed(api: Api) -> None:
    org = api.make("organisations", {"name": "one"})["id"]
    body = {"org_id": org, "residency": ["DE"]}
    first = api.call("POST", "policies", body, once="k")
    assert first[0] == 201
    assert api.call("POST", f"organisations/{org}/close")[0] == 200
    assert api.call("POST", "policies", body, once="k") == first
    assert api.call("POST", "policies", body, once="other")[0] == 409


def test_a_key_that_is_forgotten_makes_a_new_write(api: Api, clock: Ahead) -> None:
    """After a day, and not before: then the checks are those of a new one."""
    body = {"expires_at": in_a_minute(api)}
    first = api.call("POST", "keys", body, once="k")
    clock.ahead_ns = DAY_NS - SECOND_NS
    assert api.call("POST", "keys", body, once="k") == first
    clock.ahead_ns = DAY_NS + 60 * SECOND_NS
    assert api.call("POST", "keys", body, once="k")[0] == 422


def test_what_was_asked_under_an_idempotency_key_is_forgotten_after_a_day(
    api: Api, pool: Pool, clock: Ahead
) -> None:
    """Also where the tenant never writes again: it is a hash of who somebody is."""
    body = {"name": "Charles", "role": "billing"}
    assert api.call("POST", "principals", body, key=api.tenant("two"), once="k")[0] == 201
    for ahead_ns, left in ((DAY_NS - 60 * SECOND_NS, 1), (DAY_NS + 60 * SECOND_NS, 0)):
        clock.ahead_ns = ahead_ns
        asyncio.run(one_round(api))
        with pool.transaction(EVERY_TENANT) as connection:
            rows = connection.execute("SELECT FROM idempotency WHERE key = 'k'").fetchall()
        assert len(rows) == left


def test_a_chosen_password_is_nowhere_in_the_book_as_a_hash_that_is_quick(
    api: Api, pool: Pool
) -> None:
    """Whoever steals the book knows all else of the request that made the member."""
    org = api.make("organisations", {"name": "Acme"})["id"]
    body: dict[str, Any] = {
        "name": "Ada", "role": "owner", "org_id": org, "kind": "person",
        "email": "ada@acme.example", "expires_at": None,
        "account": {"login": None, "password": "correct horse battery"},
    }
    assert api.call("POST", "principals", body, once="a")[0] == 201
    asked = f"/api/v1/principals\n{json.dumps(body, sort_keys=True)}"
    assert hashlib.sha256(asked.encode()).hexdigest() not in everything_in(pool)
    assert api.call("POST", "principals", body, once="a")[0] == 201
    body["account"]["password"] = "staple of another kind"
    assert api.call("POST", "principals", body, once="a")[0] == 409
