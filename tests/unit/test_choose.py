"""Choosing a site: the worked example of docs/routing.md, each refusal, ties, and the table."""

from collections.abc import Sequence

import pytest

from isochrone.core.ids import ModelName, PolicyId, ReplicaId, SiteName
from isochrone.core.residency.rule import Admitted, Denied
from isochrone.core.rng import stream
from isochrone.core.routing.choice import Choice, Refused
from isochrone.core.routing.choose import RouteRequest, choose
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.replica import ReplicaSlots, choose_replica
from isochrone.core.routing.table import compile_table
from isochrone.core.world.view import View
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_digest,
    a_load,
    a_policy,
    a_request,
    a_site,
    a_table,
    a_view,
    idle_loads,
    some_blocs,
)

SYDNEY = a_site("sydney", "AU")
FRANKFURT = a_site("frankfurt", "DE")
ASHBURN = a_site("ashburn", "US")
RTT_MS = {"frankfurt": 290.0, "ashburn": 206.0}
DE = a_policy("de", ("DE",), ("DE",))
OF_DE = a_request(policy_id="de")


def world(*, own_site: str = "sydney", serving: Sequence[str] | None = None) -> View:
    return a_view(
        [SYDNEY, FRANKFURT, ASHBURN],
        own_site=own_site, rtt_ms=RTT_MS, policies=[DE], serving=serving,
    )


def decide(
    view: View,
    loads: Loads | None = None,
    request: RouteRequest | None = None,
    *,
    now_ns: int = 0,
) -> Choice:
    loads = loads or idle_loads(view)
    return choose(request or a_request(), a_table(view), loads, now_ns, stream(1, "test"))


def refusals(choice: Choice) -> dict[str, str]:
    return {each.site: each.rule for each in choice.refused}


def test_idle_sites_are_ranked_by_round_trip() -> None:
    choice = decide(world())
    assert [each.site for each in choice.candidates] == ["sydney", "ashburn", "frankfurt"]
    assert [each.cost_ms for each in choice.candidates] == [100.0, 306.0, 390.0]
    assert choice.refused == ()
    assert choice.candidates[0].rtt_ms == 0


def worked_example() -> tuple[View, Loads]:
    view = world()
    loads = Loads()
    loads.heard(a_digest("sydney", a_load(running=4, waiting=4, output_tokens=800)), 0)
    loads.heard(a_digest("ashburn", a_load(running=1, prompt_tokens=60)), 0)
    loads.heard(a_digest("frankfurt", a_load(ready=2, slots=8)), 0)
    return view, loads


def test_worked_example_interactive() -> None:
    choice = decide(*worked_example(), now_ns=500_000_000)
    terms = {
        each.site: (each.rtt_ms, each.queue_ms, each.prefill_ms, each.decode_ms, each.cost_ms)
        for each in choice.candidates
    }
    assert terms == {
        "ashburn": (206.0, 60.0, 100.0, 0.0, 366.0),
        "frankfurt": (290.0, 0.0, 100.0, 0.0, 390.0),
        "sydney": (0.0, 1250.0, 100.0, 0.0, 1350.0),
    }
    assert [each.site for each in choice.candidates] == ["ashburn", "frankfurt", "sydney"]
    assert {each.digest_age_ms for each in choice.candidates} == {500.0}


def test_worked_example_batch_adds_the_answer() -> None:
    choice = decide(*worked_example(), a_request(class_="batch"))
    costs = {each.site: (each.decode_ms, each.cost_ms) for each in choice.candidates}
    assert costs == {
        "ashburn": (1000.0, 1366.0),
        "frankfurt": (1000.0, 1390.0),
        "sydney": (1000.0, 2350.0),
    }
    assert choice.candidates[0].site != "sydney"  # the other two are within 5 %: chance decides


def test_worked_example_own_dispatches() -> None:
    view, loads = worked_example()
    loads.dispatched(ASHBURN.name, MODEL, 60, 100, 0, rtt_ms=206.0)
    choice = decide(view, loads)
    assert [each.site for each in choice.candidates] == ["frankfurt", "ashburn", "sydney"]
    assert choice.candidates[1].queue_ms == 120.0


def test_residency_refuses_and_says_so() -> None:
    choice = decide(world(), request=OF_DE)
    assert [each.site for each in choice.candidates] == ["frankfurt"]
    assert choice.refused == (
        Refused(site=ASHBURN.name, rule="residency", detail="the site is in US, the policy "
                "allows DE"),
        Refused(site=SYDNEY.name, rule="residency", detail="the site is in AU, the policy "
                "allows DE"),
    )


def test_allowed_but_unhealthy_is_not_the_same_as_not_allowed() -> None:
    view = world()
    loads = idle_loads(view)
    loads.heard(a_digest("frankfurt", a_load(ready=0), sequence=2), 0)
    unhealthy = decide(view, loads, OF_DE)
    assert (unhealthy.candidates, unhealthy.allowed_exists) == ((), True)
    assert refusals(unhealthy)["frankfurt"] == "no_ready_replica"
    elsewhere = decide(world(serving=["sydney", "ashburn"]), request=OF_DE)
    assert (elsewhere.candidates, elsewhere.allowed_exists) == ((), False)
    assert refusals(elsewhere)["frankfurt"] == "model_not_served"


def test_an_unknown_policy_opens_nothing() -> None:
    choice = decide(world(), request=a_request(policy_id="revoked"))
    assert choice.candidates == ()
    assert set(refusals(choice).values()) == {"residency"}
    assert not choice.allowed_exists


def test_an_unknown_model_is_served_nowhere() -> None:
    choice = decide(world(), request=a_request(model="other"))
    assert set(refusals(choice).values()) == {"model_not_served"}
    assert not a_table(world()).is_served(ModelName("other"))


def test_lasting_refusals() -> None:
    sites = [
        a_site("here"),
        a_site("emptied", draining=True),
        a_site("stranger", peer_key=None),
        a_site("nowhere", country=None),
    ]
    view = a_view(sites, policies=[a_policy("au", ("AU",))])
    choice = decide(view, request=a_request(policy_id="au"))
    assert [each.site for each in choice.candidates] == ["here"]
    assert refusals(choice) == {
        "emptied": "draining",
        "stranger": "not_joined",
        "nowhere": "attribute_missing",
    }


def test_the_own_site_needs_no_identity_to_serve_itself() -> None:
    choice = decide(a_view([a_site("here", peer_key=None)]))
    assert [each.site for each in choice.candidates] == ["here"]


def test_passing_refusals_state_their_numbers() -> None:
    view = a_view([a_site(name) for name in ("silent", "stale", "lost", "empty", "busy")])
    loads = Loads(stale_after_ms=5000)
    loads.heard(a_digest("stale"), 0)
    loads.heard(a_digest("lost"), 5 * SECOND_NS)
    loads.heard(a_digest("empty", a_load(ready=0)), 5 * SECOND_NS)
    loads.heard(a_digest("busy"), 5 * SECOND_NS)
    loads.lost(SiteName("lost"), 5 * SECOND_NS)
    choice = decide(view, loads, now_ns=6_200_000_000)
    details = {each.site: (each.rule, each.detail) for each in choice.refused}
    assert details == {
        "silent": ("digest_stale", "nothing heard from silent yet"),
        "stale": (
            "digest_stale", "the last digest of stale is 6.2 s old, at most 5.0 s count"
        ),
        "lost": (
            "unreachable",
            "the connection to lost was lost 1.2 s ago; "
            "tried again at its first digest after 2 s",
        ),
        "empty": (
            "no_ready_replica", "empty has no ready replica of tiny: its digest says 0 ready"
        ),
    }
    assert [each.site for each in choice.candidates] == ["busy"]


def test_a_site_that_was_tried_is_not_tried_again() -> None:
    earlier = Refused(site=SYDNEY.name, rule="no_ready_replica", detail="its engine died")
    choice = decide(world(), request=a_request(tried=(earlier,)))
    assert [each.site for each in choice.candidates] == ["ashburn", "frankfurt"]
    assert choice.refused == (
        Refused(
            site=SYDNEY.name,
            rule="tried_before",
            detail="this request was there already: no_ready_replica (its engine died)",
        ),
    )


def test_near_ties_are_broken_by_chance_and_others_never() -> None:
    view = a_view(
        [a_site("here"), a_site("near"), a_site("far")], rtt_ms={"near": 4.0, "far": 6.0}
    )
    table, loads = a_table(view), idle_loads(view)
    rng = stream(7, "ties")
    firsts = [choose(a_request(), table, loads, 0, rng).candidates[0].site for _ in range(200)]
    assert set(firsts) == {"here", "near"}  # 100 and 104 ms are within 5 %, 106 ms is not
    assert 60 < firsts.count(SiteName("here")) < 140


def test_chance_is_not_asked_without_a_tie() -> None:
    rng = stream(7, "ties")
    choose(a_request(), a_table(world()), idle_loads(world()), 0, rng)
    assert rng.random() == stream(7, "ties").random()


def test_rates_not_measured_yet_are_seeded() -> None:
    view = a_view([a_site("here")])
    loads = Loads()
    loads.heard(a_digest("here", a_load(prefill_tok_s=0, decode_tok_s=0)), 0)
    choice = decide(
        view, loads, a_request(class_="batch", prompt_tokens=20, output_tokens=1)
    )
    assert (choice.candidates[0].prefill_ms, choice.candidates[0].decode_ms) == (100.0, 100.0)


def test_a_missing_link_is_estimated_by_distance() -> None:
    here, there = a_site("here"), a_site("there", longitude_deg=9.0)
    view = a_view([here, there])
    linkless = View(
        own_site=view.own_site, sites=view.sites, links={}, models=view.models,
        deployments=view.deployments, policies=view.policies,
    )
    far = next(each for each in a_table(linkless).opens if each.name == "there")
    assert far.rtt_source == "distance"
    assert far.rtt_ms == pytest.approx(20.0, rel=0.01)  # 1,001 km of fibre, doubled for detours


def test_transit_is_judged_for_the_own_site() -> None:
    table = a_table(world())
    assert table.transit_allows(PolicyId("anywhere")) == Admitted()
    verdict = table.transit_allows(PolicyId("de"))
    assert isinstance(verdict, Denied)
    assert verdict.rule == "transit"
    assert [site.name for site in table.allowed_ingresses(PolicyId("de"))] == ["frankfurt"]
    assert [site.name for site in table.allowed_ingresses(PolicyId("anywhere"))] == [
        "ashburn", "frankfurt", "sydney",
    ]


def test_a_destination_checks_residency_for_itself() -> None:
    assert a_table(world(own_site="frankfurt")).residency_allows(PolicyId("de")) == Admitted()
    assert isinstance(a_table(world()).residency_allows(PolicyId("de")), Denied)


def test_policies_unknown_to_the_view_deny_on_every_question() -> None:
    table = a_table(world())
    for verdict in (
        table.transit_allows(PolicyId("revoked")), table.residency_allows(PolicyId("revoked"))
    ):
        assert isinstance(verdict, Denied)
        assert verdict.rule == "policy_unknown"
    assert table.allowed_ingresses(PolicyId("revoked")) == ()


def test_a_gateway_that_is_not_in_its_view_allows_nothing() -> None:
    table = a_table(world(own_site="unlisted"))
    verdict = table.residency_allows(PolicyId("anywhere"))
    assert isinstance(verdict, Denied)
    assert verdict.rule == "attribute_missing"
    assert isinstance(table.transit_allows(PolicyId("anywhere")), Denied)


def test_remembered_shortlists_are_bounded_and_stay_right() -> None:
    view = a_view([a_site("here")])
    table = compile_table(view, some_blocs())
    for number in range(1000):
        table.shortlist(ModelName(f"m{number}"), PolicyId("anywhere"))
    assert len(table.shortlists) <= 256
    assert table.shortlist(MODEL, PolicyId("anywhere")).open_sites == table.opens


def slots(replica: str, running: int, of: int = 4, *, ready: bool = True) -> ReplicaSlots:
    return ReplicaSlots(id=ReplicaId(replica), ready=ready, running=running, slots=of)


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [
        ([], None),
        ([slots("a", 0, ready=False)], None),
        ([slots("a", 3), slots("b", 1), slots("c", 0, ready=False)], "b"),
        ([slots("a", 3, of=8), slots("b", 2, of=4)], "a"),
        ([slots("a", 9), slots("b", 7)], "b"),
        ([slots("a", 1, of=0), slots("b", 5)], "a"),
    ],
)
def test_the_least_loaded_ready_replica(
    replicas: list[ReplicaSlots], expected: str | None
) -> None:
    assert choose_replica(replicas, stream(1, "test")) == expected


def test_equal_replicas_are_drawn() -> None:
    rng = stream(3, "replicas")
    drawn = {choose_replica([slots("a", 1), slots("b", 1)], rng) for _ in range(50)}
    assert drawn == {"a", "b"}
