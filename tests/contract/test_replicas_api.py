"""Restarting a replica and stopping a site over the Control API, on a real PostgreSQL."""

from collections.abc import Iterator

import pytest

from isochrone.adapters.postgres.pool import Pool
from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.digest import ReplicaLoad, SiteDigest
from isochrone.wire import fleet, subjects
from tests.contract.test_control_api import NOW, Api, an_api

FIRST = ReplicaId("sydney/tiny/0")


@pytest.fixture
def api(pool: Pool) -> Iterator[Api]:
    with an_api(pool) as found:
        yield found


def says(api: Api, generation: int, sequence: int, *, replica: ReplicaId = FIRST) -> None:
    """Sydney's agent says which process runs there."""
    load = ReplicaLoad(
        id=replica, model=ModelName("tiny"), generation=generation, state="ready", pid=42,
        running=0, waiting=0, restarts=0, prompt_tokens_total=0, cached_tokens_total=0,
        output_tokens_total=0,
    )
    digest = SiteDigest(
        site=SiteName("sydney"), epoch=1, sequence=sequence, at=NOW, loads=(), replicas=(load,)
    )
    api.context.fleet.on_message(subjects.digest_subject("sydney"), fleet.encode(digest))


def test_the_process_that_was_meant_restarts_and_no_later_one(api: Api) -> None:
    body: dict[str, object] = {"replica": FIRST}
    assert api.call("POST", "replicas/restart", body)[0] == 409, "nothing was heard from there"
    says(api, 70, 1)
    status, made = api.call("POST", "replicas/restart", body)
    assert (status, made["generation"], made["restart_up_to"]) == (200, 70, 70)
    assert api.changes == [True], "the publisher tells the agent"
    says(api, 80, 2)
    again = api.call("POST", "replicas/restart", {**body, "generation": 70})[1]
    assert (again["generation"], again["restart_up_to"]) == (80, 70), "its reply had been lost"
    assert api.call("POST", "replicas/restart", body)[1]["restart_up_to"] == 80
    (wish,) = api.context.registry.estate.snapshot(now=NOW).deployments[-1:]
    assert wish.restart_up_to == (80,)


def test_what_cannot_restart_says_why(api: Api) -> None:
    says(api, 70, 1)
    assert api.call("POST", "replicas/restart", {"replica": "sydney/tiny/9"})[0] == 404
    assert api.call("POST", "replicas/restart", {"replica": "nowhere/tiny/0"})[0] == 404
    status, said = api.call("POST", "replicas/restart", {"replica": FIRST, "generation": 71})
    assert status == 422
    assert "the last is 70" in said["problems"][0]
    for number, odd in enumerate(("first", "-1", "²", "9" * 5000)):  # as a site may call one
        says(api, 70, 2 + number, replica=ReplicaId(f"sydney/tiny/{odd}"))
        assert api.call("POST", "replicas/restart", {"replica": f"sydney/tiny/{odd}"})[0] in (
            404, 422
        )
    says(api, 70, 9)
    api.call("PUT", "deployments", {"site": "sydney", "model": "tiny", "replicas": 0})
    assert api.call("POST", "replicas/restart", {"replica": FIRST})[0] == 404, "not wanted any more"


def test_a_restart_is_in_the_audit_log(api: Api) -> None:
    says(api, 70, 1)
    api.call("POST", "replicas/restart", {"replica": FIRST})
    entries = api.call("GET", "audit?kind=deployment&limit=1000")[1]["items"]
    (entry,) = [each for each in entries if each["change"] == "changed"]
    assert entry["actor"].startswith("principal:")
    assert (entry["before"]["restart_up_to"], entry["after"]["restart_up_to"]) == ([], [70])


def test_a_site_is_stopped_and_started(api: Api) -> None:
    def site() -> tuple[bool, int, int | None]:
        (wish,) = api.call("GET", "deployments?site=sydney")[1]["items"]
        stopped = api.call("GET", "sites/sydney")[1]["stopped"]
        return stopped, wish["replicas"], wish["stopped_replicas"]

    assert site() == (False, 1, None)
    for at_once in (False, True, True):
        body = {"running": False, "at_once": at_once}
        assert api.call("PUT", "sites/sydney/running", body)[1]["stopped"]
    assert site() == (True, 0, 1)
    wishes = {each.site: each for each in api.context.registry.estate.snapshot(now=NOW).deployments}
    assert wishes[SiteName("sydney")].at_once
    assert not wishes[SiteName("frankfurt")].at_once
    assert not api.call("PUT", "sites/sydney/running", {"running": True})[1]["stopped"]
    assert site() == (False, 1, None)
    assert api.call("PUT", "sites/nowhere/running", {"running": True})[0] == 404
    both = {"running": True, "at_once": True}
    assert api.call("PUT", "sites/sydney/running", both)[0] == 422
