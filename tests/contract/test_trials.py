"""Trials of policies over a real PostgreSQL: what they would allow is what gateways would do."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from isochrone.adapters.postgres.pool import Pool
from isochrone.core.ids import SiteName
from isochrone.core.world.site import Link, SiteLinks
from tests.contract.test_control_api import NOW, Api, an_api, an_intent


@pytest.fixture
def api(pool: Pool) -> Iterator[Api]:
    """Ashburn in the US, Frankfurt in Germany, and Sydney, which states no country."""
    with an_api(pool) as found:
        intent = an_intent()
        countries = {"ashburn": "US", "frankfurt": "DE", "sydney": None}
        sites = tuple(replace(each, country=countries[each.name]) for each in intent.sites)
        way = Link(
            peer=SiteName("frankfurt"), rtt_ms=90.0, source="emulated", via=("US", "GB", "DE")
        )
        found.context.registry.estate.reconcile(
            replace(
                intent, fingerprint="2", sites=sites,
                links=(SiteLinks(site=SiteName("ashburn"), links=(way,)),),
            ),
            now=NOW,
        )
        yield found


def tried(api: Api, **body: object) -> dict[str, Any]:
    status, answer = api.call("POST", "policies/trials", body)
    assert status == 200, answer
    return dict(answer)


def asked(api: Api, body: Mapping[str, object], ingress: str, **more: str) -> dict[str, Any]:
    """What a request for the model meets."""
    request = {"ingress": ingress, "model": "tiny", **more}
    found = tried(api, **body, request=request)["request"]
    assert isinstance(found, dict)
    return found


def test_each_site_is_said_with_the_fact_that_decides(api: Api) -> None:
    found = tried(api, residency=["eea"], transit=["DE", "US"])
    assert (found["residency"], found["caches"]) == (["EEA"], None)
    sites = {each["site"]: each for each in found["sites"]}
    assert [(name, each["processes"], each["enters"]) for name, each in sites.items()] == [
        ("ashburn", False, True), ("frankfurt", True, True), ("sydney", False, False),
    ]
    assert "the site is in US" in sites["ashburn"]["processes_not"]
    assert "states no country" in sites["sydney"]["processes_not"]
    assert sites["frankfurt"]["processes_not"] is None
    kept = {tuple(each["residency"]) for each in api.call("GET", "policies")[1]["items"]}
    assert ("EEA",) not in kept


def test_faults_are_all_named_as_when_it_is_saved(api: Api) -> None:
    request = {"ingress": "ashburn", "model": "tiny", "residency": "XX"}
    body = {"residency": ["EUU"], "request": request}
    status, problem = api.call("POST", "policies/trials", body)
    assert status == 422
    assert [each.partition(":")[0] for each in problem["problems"]] == [
        "request residency", "residency",
    ]
    lost = {"request": {"ingress": "nowhere", "model": "tiny"}}
    assert api.call("POST", "policies/trials", lost)[0] == 404


def join_all(api: Api) -> None:
    """Sites can serve once they have joined."""
    for number, name in enumerate(("ashburn", "frankfurt", "sydney")):
        token = api.make(f"sites/{name}/token", None)["token"]
        body = {
            "token": token, "peer_key": f"{number}a" * 32, "nats_key": "U" + "ABC"[number] * 55,
            "host": "10.0.0.1", "port": 4100 + number, "public_url": "https://x.example/v1",
        }
        assert api.call("POST", "sites/join", body, key=None)[0] == 200


def test_a_request_meets_what_it_would_meet_at_a_gateway(api: Api) -> None:
    join_all(api)
    found = asked(api, {"residency": ["any", "-US"]}, "ashburn")
    assert (found["outcome"], found["open_sites"]) == ("served", ["frankfurt"])
    refused = {each["site"]: each["rule"] for each in found["refused"]}
    assert refused == {"ashburn": "residency", "sydney": "attribute_missing"}
    assert asked(api, {"residency": ["FR"]}, "ashburn")["outcome"] == "nowhere_allowed"
    no_entry = asked(api, {"transit": ["EEA"]}, "ashburn")
    assert (no_entry["outcome"], no_entry["open_sites"]) == ("no_entry", [])
    assert "the site is in US" in str(no_entry["entry_not"])
    over_gb = {"residency": ["DE"], "transit": ["any", "-via:GB"]}
    assert asked(api, over_gb, "ashburn")["outcome"] == "nowhere_allowed", "the way passes GB"
    assert asked(api, over_gb, "frankfurt")["outcome"] == "served"
    assert asked(api, {}, "ashburn", residency="DE")["open_sites"] == ["frankfurt"]
    request = {"ingress": "ashburn", "model": "another"}
    assert tried(api, request=request)["request"]["outcome"] == "not_deployed"


def test_a_drained_site_is_not_open(api: Api) -> None:
    join_all(api)
    api.changes.clear()
    status, site = api.call("PUT", "sites/frankfurt/draining", {"draining": True})
    assert (status, site["draining"], site["health"]) == (200, True, "draining")
    assert api.changes, "gateways are told"
    found = asked(api, {"residency": ["DE"]}, "ashburn")
    assert found["outcome"] == "nowhere_open"
    rules = {each["site"]: each["rule"] for each in found["refused"]}
    assert rules["frankfurt"] == "draining"
    assert api.call("PUT", "sites/nowhere/draining", {"draining": True})[0] == 404
    (said,) = api.call("GET", "audit?order=newest&limit=1")[1]["items"]
    assert (said["kind"], said["subject"], said["after"]["draining"]) == ("site", "frankfurt", True)
