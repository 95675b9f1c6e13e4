"""The Control API over a real PostgreSQL: who may do what, pages, idempotency, problem details."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from struct import pack
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from isochrone.adapters.clock import SystemClock
from isochrone.adapters.postgres.pool import Pool
from isochrone.control.api.app import build_app
from isochrone.control.api.context import Context
from isochrone.control.joining import hash_of
from isochrone.control.world import seed_of
from isochrone.core.ids import (
    KeyId,
    ModelName,
    OrgId,
    PolicyId,
    ProjectId,
    RequestId,
    SiteName,
    uuid7,
)
from isochrone.core.metering.event import Tokens, UsageEvent
from isochrone.core.routing.bond import Bond
from isochrone.core.routing.choice import Decision, Ground, GroundSite, Refused
from isochrone.core.world.digest import DeploymentLoad, ReplicaLoad, SiteDigest
from isochrone.core.world.model import Deployment, EngineSpec, Model
from isochrone.core.world.site import Link, Site, SiteLinks
from isochrone.ports.clock import Clock
from isochrone.ports.estate import Intent
from isochrone.ports.experiments import Player
from isochrone.wire import fleet, subjects
from tests.fixtures.standing_app import STANDING, a_context
from tests.unit.build_usage import a_usage_event

ADMIN = "isoadm_" + "a" * 43
NOW = 1_760_000_000_000_000_000
JOIN = {
    "peer_key": "ab" * 32, "nats_key": "U" + "A" * 55, "host": "10.0.0.1", "port": 4100,
    "public_url": "https://sydney.example/v1",
}


@dataclass
class Api:
    """A client of the app, and what lies behind it."""

    client: TestClient
    context: Context
    changes: list[bool]

    def call(
        self, method: str, path: str, body: object = None, *, key: str | None = ADMIN,
        once: str | None = None,
    ) -> tuple[int, Any]:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        if once is not None:
            headers["idempotency-key"] = once
        answer = self.client.request(method, f"/api/v1/{path}", json=body, headers=headers)
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert {"type", "title", "status", "detail", "code"} <= answer.json().keys()
        is_text = answer.headers.get("content-type", "").startswith("text/")
        return answer.status_code, answer.text if is_text else answer.json()

    def make(self, path: str, body: object, *, key: str = ADMIN) -> Any:
        status, made = self.call("POST", path, body, key=key)
        assert status == 201, made
        return made

    def tenant(self, name: str, role: str = "owner") -> str:
        """A new organisation with one project; the admin key of its principal."""
        org = self.make("organisations", {"name": name})["id"]
        self.make("projects", {"name": "main", "org_id": org})
        made = self.make("principals", {"name": name, "role": role, "org_id": org})
        return str(made["key"])


@contextmanager
def an_api(
    pool: Pool, clock: Clock | None = None, archive: Path | None = None,
    player: Player | None = None,
) -> Iterator[Api]:
    """The app that stands for all tests; one of its own where it keeps files or plays."""
    clock = clock or SystemClock()
    if archive is None and player is None:
        with STANDING.over(pool, clock) as (app, context, changes):
            yield from _served(app, context, changes)
    else:
        context = a_context(pool, clock, Random(7), changes := [], archive, player)
        yield from _served(build_app(context), context, changes)


def _served(app: FastAPI, context: Context, changes: list[bool]) -> Iterator[Api]:
    context.registry.tenants.seed(seed_of(hash_of(ADMIN), now=NOW), now=NOW)
    context.registry.estate.reconcile(an_intent(), now=NOW)
    with TestClient(app) as client:
        yield Api(client=client, context=context, changes=changes)


@pytest.fixture
def api(pool: Pool) -> Iterator[Api]:
    with an_api(pool) as found:
        yield found


def an_intent() -> Intent:
    names = [SiteName("ashburn"), SiteName("frankfurt"), SiteName("sydney")]
    tiny = ModelName("tiny")
    link = Link(peer=names[1], rtt_ms=250.0, source="emulated")
    return Intent(
        fingerprint="1",
        sites=tuple(
            Site(
                name=name, country="DE", operator=None, parent=None, latitude_deg=0.0,
                longitude_deg=0.0, host="", port=0, public_url="", peer_key=None,
            )
            for name in names
        ),
        models=(
            Model(name=tiny, kind="chat", revision=None, context_tokens=2048, created_at=NOW),
        ),
        deployments=tuple(
            Deployment(
                site=name, model=tiny, replicas=1, context_tokens=2048,
                engine=EngineSpec(kind="llamacpp", source="/m.gguf"),
            )
            for name in names
        ),
        links=(SiteLinks(site=names[2], links=(link,)),),
    )


def test_without_a_good_key_there_is_only_health(api: Api) -> None:
    assert api.call("GET", "health", key=None)[0] == 200
    for path in ("sites", "keys", "usage", "status", "organisations"):
        for key in (None, "", "isoadm_wrong"):
            status, problem = api.call("GET", path, key=key)
            assert (status, problem["code"]) == (401, "untrusted")
    assert api.client.get("/api/v1/sites").headers["www-authenticate"] == "Bearer"


def test_every_failure_is_a_problem_document(api: Api) -> None:
    assert api.call("GET", "nowhere")[0] == 404
    assert api.call("DELETE", "sites")[0] == 405
    status, problem = api.call("POST", "keys", {"nmae": "x", "classes": ["gold"], "name": ""})
    assert (status, problem["code"]) == (422, "invalid_input")
    assert "nmae: unknown field" in problem["problems"]
    assert len(problem["problems"]) == 3
    headers = {"authorization": f"Bearer {ADMIN}", "content-type": "application/json"}
    for body, fault in (
        (b"{", "the body is not valid JSON"), (b"[]", "the body must be a JSON object"),
        (b"", "body: missing"),
    ):
        answer = api.client.post("/api/v1/keys", content=body, headers=headers)
        assert answer.json()["problems"] == [fault]
    large = api.client.post(
        "/api/v1/keys", content=b" " * (1 << 20) + b"{}",
        headers=headers,
    )
    assert (large.status_code, large.json()["status"]) == (413, 413)


def test_unknown_countries_and_blocs_are_all_named(api: Api) -> None:
    body = {"residency": ["DE", "XX"], "transit": ["any", "EUU"]}
    for path in ("keys", "policies"):
        status, problem = api.call("POST", path, body)
        assert status == 422
        text = " ".join(problem["problems"])
        assert "residency: 'XX'" in text
        assert "transit: 'EUU'" in text
        assert "transit: 'any' stands alone" in text
    assert api.call("POST", "keys", {"residency": []})[0] == 422
    assert api.call("GET", "keys")[1]["items"] == []


def test_a_key_is_shown_once_and_bound_to_its_policy(api: Api) -> None:
    made = api.make("keys", {"name": "one", "residency": ["eu", "de"], "transit": ["DE"]})
    assert made["key"].startswith("iso_")
    assert len(made["key"]) == 47
    assert (made["residency"], made["transit"]) == (["DE", "EU"], ["DE"])
    assert api.changes
    (listed,) = api.call("GET", "keys")[1]["items"]
    assert "key" not in listed
    assert listed["id"] == made["id"]
    again = api.make("keys", {"residency": ["DE", "EU"], "transit": ["de"]})
    assert again["policy_id"] == made["policy_id"]
    assert api.call("GET", "models", key=made["key"])[0] == 200
    assert api.call("DELETE", f"keys/{made['id']}")[0] == 200
    assert api.call("GET", "models", key=made["key"])[0] == 401


def test_axes_of_every_kind_are_kept_in_canonical_terms(api: Api) -> None:
    wish = {
        "residency": ["eea", "-fr", "operator:Acme, Inc.".replace(",", ""), "-parent:Big Corp."],
        "transit": ["any", "via:eu"], "caches": ["de"], "logs": ["DE"],
    }
    made = api.make("policies", wish)
    said = {axis: made[axis] for axis in wish}
    assert said == {
        "residency": ["-FR", "-parent:big-corp", "EEA", "operator:acme-inc"],
        "transit": ["any", "via:EU"], "caches": ["DE"], "logs": ["DE"],
    }
    key = api.make("keys", said)
    assert key["policy_id"] == made["id"]
    plain = api.make("policies", {"residency": made["residency"], "transit": made["transit"]})
    assert plain["id"] != made["id"]
    assert (plain["caches"], plain["logs"]) == (None, ["any"])
    stored = {each.id: each for each in api.context.registry.estate.snapshot(now=NOW).policies}
    assert stored[made["id"]].caches == ("DE",)
    assert stored[plain["id"]].caches is None
    for axis, wrong, word in (
        ("residency", ["-DE"], "nothing is allowed"), ("caches", [], "empty"),
        ("residency", ["via:DE"], "which only transit has"), ("logs", ["planet:earth"], "unknown"),
        ("transit", ["any", "-operator:"], "names nothing"),
        ("residency", ["DE", "-DE"], "no country is left"), ("logs", ["EU", "-EEA"], "no country"),
    ):
        status, problem = api.call("POST", "policies", {axis: wrong})
        assert status == 422
        assert word in " ".join(problem["problems"])


def test_an_idempotency_key_makes_a_write_happen_once(api: Api) -> None:
    writes: list[tuple[str, object, object]] = [
        ("keys", {"name": "a"}, {"name": "b"}),
        ("organisations", {"name": "a"}, {"name": "b"}),
        ("principals", {"name": "a", "role": "operator"}, {"name": "b", "role": "operator"}),
        ("policies", {"residency": ["DE"]}, {"residency": ["FR"]}),
        ("sites/sydney/token", None, {}),
    ]
    for path, body, other in writes:
        first = api.call("POST", path, body, once=path)
        assert first[0] == 201
        assert api.call("POST", path, body, once=path) == first, "the same answer, secret included"
        if other != {}:
            status, problem = api.call("POST", path, other, once=path)
            assert (status, problem["code"]) == (409, "conflict")
    assert api.call("POST", "sites/ashburn/token", once="sites/sydney/token")[0] == 409
    owner = api.tenant("other")
    one = api.call("POST", "keys", {"name": "a"}, once="keys", key=owner)
    assert one[0] == 201, "idempotency keys of different callers have nothing to do with each other"
    assert one[1]["key"] != api.call("POST", "keys", {"name": "a"}, once="keys")[1]["key"]


def test_an_organisation_sees_and_touches_its_own_only(api: Api) -> None:
    owner = api.tenant("two")
    mine = api.make("keys", {"name": "mine"}, key=owner)
    foreign = api.make("keys", {"name": "of the default organisation"})
    assert [each["id"] for each in api.call("GET", "keys", key=owner)[1]["items"]] == [mine["id"]]
    assert len(api.call("GET", "keys")[1]["items"]) == 2
    for path in ("organisations", "projects", "policies", "principals"):
        (only,) = api.call("GET", path, key=owner)[1]["items"]
        assert only.get("org_id", only["id"]) == mine["org_id"]
    assert api.call("GET", "projects?org=default", key=owner)[0] == 404
    assert api.call("DELETE", f"keys/{foreign['id']}", key=owner)[0] == 404
    assert api.call("DELETE", "principals/operator", key=owner)[0] == 404
    assert api.call("POST", "keys", {"project_id": "default"}, key=owner)[0] == 404
    assert api.call("POST", "projects", {"name": "x", "org_id": "default"}, key=owner)[0] == 404
    assert api.call("POST", "policies", {"org_id": "default"}, key=owner)[0] == 404


def test_lists_come_in_pages(api: Api) -> None:
    made = [api.make("keys", {"name": str(number)})["id"] for number in range(5)]
    found: list[str] = []
    page = api.call("GET", "keys?limit=2")[1]
    for _ in range(3):
        assert len(page["items"]) <= 2
        found += [each["id"] for each in page["items"]]
        if page["next"] is not None:
            page = api.call("GET", f"keys?limit=2&after={page['next']}")[1]
    assert page["next"] is None
    assert sorted(found) == sorted(made)
    assert [each["name"] for each in api.call("GET", "sites?after=ashburn")[1]["items"]] == [
        "frankfurt", "sydney",
    ]
    page = api.call("GET", "deployments?limit=1")[1]
    assert page["next"] == "ashburn/tiny"
    page = api.call("GET", f"deployments?limit=1&after={page['next']}")[1]
    assert page["items"][0]["site"] == "frankfurt"
    for bad in ("limit=0", "limit=1001", "limit=x"):
        assert api.call("GET", f"keys?{bad}")[0] == 422


def test_a_site_joins_with_its_token_once(api: Api) -> None:
    token = api.make("sites/sydney/token", None)["token"]
    status, reply = api.call("POST", "sites/join", {"token": token, **JOIN}, key=None)
    assert status == 200
    assert reply == {
        "site": "sydney", "country": "DE", "nats_urls": ["nats://x"],
        "nats_jwt": f"jwt of sydney for {JOIN['nats_key']}", "control_key": "cd" * 32,
        "control_url": "http://c",
    }
    assert api.call("POST", "sites/join", {"token": token, **JOIN}, key=None) == (200, reply)
    other = {"token": token, **JOIN, "peer_key": "cd" * 32}
    assert api.call("POST", "sites/join", other, key=None)[0] == 401
    bad = {"token": token, **JOIN, "peer_key": "x", "port": 0, "public_url": "ftp://x"}
    status, problem = api.call("POST", "sites/join", bad, key=None)
    assert status == 422
    assert len(problem["problems"]) == 3
    (site,) = [
        each for each in api.call("GET", "sites")[1]["items"] if each["name"] == "sydney"
    ]
    assert site["joined"]
    assert not site["ready"]
    assert site["public_url"] == JOIN["public_url"]
    assert api.call("POST", "sites/nowhere/token")[0] == 404


def test_status_shows_what_sites_said_last(api: Api) -> None:
    token = api.make("sites/sydney/token", None)["token"]
    api.call("POST", "sites/join", {"token": token, **JOIN}, key=None)
    key = api.make("keys", {})["key"]
    replica = ReplicaLoad(
        id="r1", model=ModelName("tiny"), generation=3, state="ready", pid=42, running=1,
        waiting=0, restarts=2, prompt_tokens_total=5, cached_tokens_total=None,
        output_tokens_total=6,
    )
    load = DeploymentLoad(
        model=ModelName("tiny"), revision=None, ready=1, slots=4, running=1, waiting=0,
        pending_prompt_tokens=0, pending_output_tokens=0, prefill_tok_s=100.0, decode_tok_s=50.0,
    )
    digest = SiteDigest(
        site=SiteName("sydney"), epoch=1, sequence=2, at=NOW, loads=(load,), replicas=(replica,)
    )
    hear: Callable[[str, bytes], None] = api.context.fleet.on_message
    hear(subjects.digest_subject("sydney"), fleet.encode(digest))
    hear(subjects.digest_subject("sydney"), fleet.encode(replace(digest, sequence=1, replicas=())))
    hear(subjects.digest_subject("frankfurt"), fleet.encode(replace(digest, sequence=9)))
    hear(subjects.digest_subject("sydney"), b"nonsense")
    status, found = api.call("GET", "sites/sydney")
    assert status == 200
    assert found["ready"]
    assert found["replicas"][0]["pid"] == 42
    assert found["replicas"][0]["restarts"] == 2
    assert found["links"] == [
        {"peer": "frankfurt", "rtt_ms": 250.0, "source": "emulated", "via": None}
    ]
    everything = api.call("GET", "status")[1]
    assert [site["ready"] for site in everything["sites"]] == [False, False, True]
    assert not everything["ready"]
    assert api.call("GET", "sites/sydney", key=key)[1]["replicas"][0]["pid"] is None
    assert api.call("GET", "sites/nowhere")[0] == 404


def test_replicas_are_set_and_the_publisher_hears(api: Api) -> None:
    wish = {"site": "sydney", "model": "tiny", "replicas": 2}
    status, made = api.call("PUT", "deployments", wish)
    assert (status, made["replicas"]) == (200, 2)
    assert api.changes
    assert api.call("PUT", "deployments", {**wish, "site": "nowhere"})[0] == 404
    assert api.call("PUT", "deployments", {**wish, "replicas": -1})[0] == 422
    api.call("PUT", "deployments", {**wish, "replicas": 0})
    (model,) = api.call("GET", "models")[1]["items"]
    assert model["sites"] == ["ashburn", "frankfurt"]


def a_booked(api: Api, org: str, key_id: str, number: int) -> UsageEvent:
    ground = Ground(
        id="g1", model=ModelName("tiny"), policy_id=PolicyId("bound"), residency=("DE",),
        transit=("any",), plaintext_ingress="AU",
        open_sites=(
            GroundSite(site=SiteName("frankfurt"), rtt_ms=250.0, rtt_source="emulated"),
        ),
        refused=(Refused(site=SiteName("sydney"), rule="residency", detail="it is in AU"),),
        allowed_exists=True, elsewhere=7,
    )
    decision = Decision(
        ground="g1", chosen=0, costs_ms=pack("<f", 260.0), queues_ms=pack("<f", 0.0),
        prefill_ms=10.0, decode_ms=0.0, digest_age_ms=300.0, predicted_ttft_ms=260.0,
        actual_ttft_ms=270.0, queued_ms=12.5, refused=(),
        bond=Bond(
            cached_tokens=512, prompt_tokens=900, verdict="kept", home=SiteName("frankfurt"),
            limit_ms=40.0,
        ),
    )
    event = replace(
        a_usage_event(uuid7(NOW + number * 1_000_000, number)), org_id=OrgId(org),
        key_id=KeyId(key_id), project_id=ProjectId("p"), received_at=NOW + number,
        serving_site=SiteName("frankfurt"), client_request_id=f"c{number}", decision=decision,
    )
    api.context.book.keep_grounds([(event.ingress_site, ground)], now=NOW + 100)
    api.context.book.book_usage([event], now=NOW + 100)
    return event


def test_usage_and_explanations_stay_within_the_organisation_and_the_key(api: Api) -> None:
    owner = api.tenant("two")
    mine = api.make("keys", {}, key=owner)
    sibling = api.make("keys", {"name": "another"}, key=owner)
    own = a_booked(api, mine["org_id"], mine["id"], 1)
    beside = a_booked(api, mine["org_id"], sibling["id"], 2)
    foreign = a_booked(api, "default", "k", 3)

    def seen(key: str) -> list[str]:
        return [each["id"] for each in api.call("GET", "usage", key=key)[1]["items"]]

    assert seen(ADMIN) == [own.request_id, beside.request_id, foreign.request_id]
    assert seen(owner) == [own.request_id, beside.request_id]
    assert seen(mine["key"]) == [own.request_id]
    assert api.call("GET", f"usage?key_id={sibling['id']}", key=mine["key"])[0] == 404
    (total,) = api.call("GET", "usage?by=key", key=mine["key"])[1]["items"]
    assert (total["name"], total["requests"], total["output"]) == (mine["id"], 1, 3)
    for holder, event, status in (
        (ADMIN, foreign, 200), (owner, own, 200), (owner, foreign, 404),
        (mine["key"], own, 200), (mine["key"], beside, 404),
    ):
        assert api.call("GET", f"requests/{event.request_id}", key=holder)[0] == status
    assert api.call("GET", "requests/x")[0] == 404


def test_usage_is_filtered_and_paged(api: Api) -> None:
    events = [a_booked(api, "default", "k", number) for number in range(1, 4)]
    page = api.call("GET", "usage?limit=2")[1]
    assert [each["id"] for each in page["items"]] == [each.request_id for each in events[:2]]
    rest = api.call("GET", f"usage?limit=2&after={page['next']}")[1]
    assert [each["id"] for each in rest["items"]] == [events[2].request_id]
    assert rest["next"] is None
    row = page["items"][0]
    assert row["site"] == "frankfurt"
    assert row["class"] == "on_demand"
    assert row["client_request_id"] == "c1"
    within = api.call("GET", f"usage?since={NOW + 2}&until={NOW + 3}")[1]["items"]
    assert [each["id"] for each in within] == [events[1].request_id]
    assert api.call("GET", "usage?since=2020-01-01T00:00:00Z&until=2021-01-01T00:00:00Z")[1][
        "items"
    ] == []
    for group in ("key", "model", "site", "class", "day"):
        (total,) = api.call("GET", f"usage?by={group}")[1]["items"]
        assert total["requests"] == 3
    for bad in ("since=yesterday", "since=2026-01-01T00:00:00", "by=colour"):
        assert api.call("GET", f"usage?{bad}")[0] == 422


def test_a_request_is_explained(api: Api) -> None:
    event = a_booked(api, "default", "k", 1)
    found = api.call("GET", f"requests/{event.request_id}")[1]
    assert found["ingress"]["plaintext"] == "ingress AU saw plaintext"
    assert found["decision"]["refused"] == [
        {"site": "sydney", "rule": "residency", "detail": "it is in AU"}
    ]
    assert found["decision"]["candidates"] == [{
        "site": "frankfurt", "cost_ms": 260.0, "rtt_ms": 250.0, "rtt_source": "emulated",
        "queue_ms": 0.0, "prefill_ms": 10.0, "decode_ms": 0.0, "digest_age_ms": 300.0,
        "transfer_ms": 0.0,
    }]
    assert (found["decision"]["residency"], found["decision"]["elsewhere"]) == (["DE"], 7)
    assert found["decision"]["predicted_ttft_ms"] == 260.0
    assert found["decision"]["bond"] == {
        "cached_tokens": 512, "prompt_tokens": 900, "verdict": "kept", "home": "frankfurt",
        "limit_ms": 40.0,
    }
    assert found["decision"]["queued_ms"] == 12.5
    said = [found["decision"][name] for name in ("policy_id", "ground", "is_full", "eligible")]
    assert said == ["bound", "g1", True, 1]
    assert found["tokens"]["source"] == "engine"
    missing = uuid7(NOW, 99)
    assert api.call("GET", f"requests/{RequestId(missing)}")[0] == 404


@pytest.mark.parametrize(
    ("status", "reason", "body", "plaintext"),
    [
        (403, "transit", "unread", "the body was not read: ingress AU saw no plaintext"),
        (403, "attribute_missing", "unread", "the body was not read: ingress AU saw no plaintext"),
        (400, "bad_request", "read", "ingress AU saw plaintext"),
        (413, "body_too_large", "in_part",
         "the body was not read to its end: ingress AU may have seen plaintext"),
    ],
)
def test_a_refusal_before_a_model_was_known_says_what_the_ingress_saw(
    api: Api, status: int, reason: str, body: str, plaintext: str
) -> None:
    event = replace(
        a_usage_event(uuid7(NOW, 1)), model=ModelName(""), stream=False, serving_site=None,
        serving_country=None, tokens=Tokens(), outcome="refused", status=status, reason=reason,
    )
    api.context.book.book_usage([event], now=NOW)
    found = api.call("GET", f"requests/{event.request_id}")[1]
    assert found["ingress"] == {
        "site": "sydney", "country": "AU", "body": body, "plaintext": plaintext,
    }
    assert found["decision"] is None


def test_the_api_describes_itself_without_help_from_elsewhere(api: Api) -> None:
    document = api.client.get("/api/v1/openapi.json").json()
    assert {"/api/v1/keys", "/api/v1/requests/{request_id}"} <= document["paths"].keys()
    page = api.client.get("/api/v1/docs").text
    assert "/api/v1/deployments" in page
    assert "http://" not in page
    assert "https://" not in page
