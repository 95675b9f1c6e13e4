"""Choosing a site: the worked example of docs/routing.md, each refusal, ties, and the table."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from isochrone.core.ids import ModelName, PolicyId, SiteName
from isochrone.core.residency.bounds import Narrowing
from isochrone.core.residency.rule import Admitted, Denied
from isochrone.core.rng import stream
from isochrone.core.routing.choice import Explanation, Refused
from isochrone.core.routing.explain import explain
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.prefix import BLOCK_TOKENS, Prefixes
from isochrone.core.routing.table import LISTINGS_KEPT, SHORTLISTS_KEPT, compile_table
from isochrone.core.world.site import Link
from isochrone.core.world.view import View
from tests.builders import (
    MODEL,
    SECOND_NS,
    a_choice,
    a_digest,
    a_load,
    a_policy,
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


def world(*, own_site: str = "sydney", serving: Sequence[str] | None = None) -> View:
    return a_view(
        [SYDNEY, FRANKFURT, ASHBURN],
        own_site=own_site, rtt_ms=RTT_MS, policies=[DE], serving=serving,
    )


def decide(view: View, loads: Loads | None = None, **asked: Any) -> Explanation:
    """The explanation of a choice, as it is shown. `asked` as for `a_choice`."""
    table = a_table(view)
    choice = a_choice(table, loads or idle_loads(view), **asked)
    explained = explain(choice.ground, choice.decision())
    assert explained is not None
    return explained


def sites_of(explanation: Explanation) -> list[str]:
    return [each.site for each in explanation.candidates]


def refusals(explanation: Explanation) -> dict[str, str]:
    return {each.site: each.rule for each in explanation.refused}


def test_idle_sites_are_ranked_by_round_trip() -> None:
    choice = decide(world())
    assert sites_of(choice) == ["sydney", "ashburn", "frankfurt"]
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
    assert sites_of(choice) == ["ashburn", "frankfurt", "sydney"]
    assert [each.digest_age_ms for each in choice.candidates] == [500.0, None, None]


def test_worked_example_batch_adds_the_answer() -> None:
    choice = decide(*worked_example(), class_="batch")
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
    assert sites_of(choice) == ["frankfurt", "ashburn", "sydney"]
    assert choice.candidates[1].queue_ms == 120.0


def test_residency_refuses_and_says_so() -> None:
    choice = decide(world(), policy_id="de")
    assert sites_of(choice) == ["frankfurt"]
    assert choice.refused == (
        Refused(site=ASHBURN.name, rule="residency", detail="the site is in US, the policy "
                "allows DE"),
        Refused(site=SYDNEY.name, rule="residency", detail="the site is in AU, the policy "
                "allows DE"),
    )


def residency_example() -> View:
    """The worked example of docs/residency.md."""
    sites = [
        replace(SYDNEY, operator="Acme", parent="Big Corp."),
        replace(FRANKFURT, operator="Acme", parent="Big Corp."),
        replace(ASHBURN, operator="Acme", parent="Big Corp."),
        replace(a_site("oslo", "NO"), operator="Nordlys", parent="Nordlys"),
        replace(a_site("paris", "FR"), operator="Acme", parent=None),
    ]
    view = a_view(
        sites, policies=[
            a_policy("own", ("EEA", "-parent:big-corp")),
            a_policy("by-land", ("EEA",), ("any", "via:EEA")),
            replace(a_policy("cached", ("EEA",)), caches=("DE",)),
        ],
    )
    ways = {"frankfurt": (9.0, ("DE", "FR")), "oslo": (30.0, ("FR", "NO", "US"))}
    links = {
        SiteName(name): Link(peer=SiteName(name), rtt_ms=rtt_ms, source="stated", via=via)
        for name, (rtt_ms, via) in ways.items()
    }
    return replace(view, own_site=SiteName("paris"), links=links)


def test_the_worked_example_of_residency() -> None:
    view = residency_example()
    own = decide(view, policy_id="own")
    assert sites_of(own) == ["oslo"]
    assert refusals(own) == {
        "ashburn": "residency", "frankfurt": "residency", "sydney": "residency",
        "paris": "attribute_missing",
    }
    by_land = decide(view, policy_id="by-land")
    assert sites_of(by_land) == ["paris", "frankfurt"]
    assert {each.detail for each in by_land.refused if each.rule == "transit"} == {
        "the way there passes US, the policy allows transit by any,via:EEA"
    }
    cached = decide(view, policy_id="cached")
    assert sites_of(cached) == ["frankfurt"]
    assert {each.detail for each in cached.refused if each.site == "paris"} == {
        "the site is in FR, the policy of caches allows DE"
    }
    narrowed = decide(view, policy_id="by-land", narrowing=Narrowing(residency=("DE", "US")))
    assert sites_of(narrowed) == ["frankfurt"]
    assert {each.detail for each in narrowed.refused if each.site == "paris"} == {
        "the site is in FR, the request allows DE,US"
    }


def test_allowed_but_unhealthy_is_not_the_same_as_not_allowed() -> None:
    view = world()
    loads = idle_loads(view)
    loads.heard(a_digest("frankfurt", a_load(ready=0), sequence=2), 0)
    unhealthy = decide(view, loads, policy_id="de")
    assert (unhealthy.candidates, unhealthy.allowed_exists) == ((), True)
    assert refusals(unhealthy)["frankfurt"] == "no_ready_replica"
    elsewhere = decide(world(serving=["sydney", "ashburn"]), policy_id="de")
    assert (elsewhere.candidates, elsewhere.allowed_exists) == ((), False)
    assert "frankfurt" not in refusals(elsewhere)
    assert elsewhere.elsewhere == 1


def test_an_unknown_policy_opens_nothing() -> None:
    choice = decide(world(), policy_id="revoked")
    assert choice.candidates == ()
    assert set(refusals(choice).values()) == {"residency"}
    assert not choice.allowed_exists


def test_an_unknown_model_is_served_nowhere() -> None:
    choice = decide(world(), model="other")
    assert (choice.candidates, choice.refused, choice.elsewhere) == ((), (), 3)
    assert not choice.allowed_exists
    assert not a_table(world()).is_served(ModelName("other"))


def test_lasting_refusals() -> None:
    sites = [
        a_site("here"),
        a_site("emptied", draining=True),
        a_site("stranger", peer_key=None),
        a_site("nowhere", country=None),
    ]
    view = a_view(sites, policies=[a_policy("au", ("AU",))])
    choice = decide(view, policy_id="au")
    assert sites_of(choice) == ["here"]
    assert refusals(choice) == {
        "emptied": "draining",
        "stranger": "not_joined",
        "nowhere": "attribute_missing",
    }


def test_the_own_site_needs_no_identity_to_serve_itself() -> None:
    choice = decide(a_view([a_site("here", peer_key=None)]))
    assert sites_of(choice) == ["here"]


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
            "digest_stale", "the last digest of stale is at least 6.2 s old, at most 5.0 s count"
        ),
        "lost": (
            "unreachable",
            "the connection to lost was lost at least 1.2 s ago; "
            "tried again at its first digest after 2 s",
        ),
        "empty": (
            "no_ready_replica", "empty has no ready replica of tiny: its digest says 0 ready"
        ),
    }
    assert sites_of(choice) == ["busy"]


def test_a_site_that_was_tried_is_not_tried_again() -> None:
    earlier = Refused(site=SYDNEY.name, rule="no_ready_replica", detail="its engine died")
    choice = decide(world(), tried=(earlier,))
    assert sites_of(choice) == ["ashburn", "frankfurt"]
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
    firsts = [a_choice(table, loads, rng=rng, target_ms=0).site for _ in range(200)]
    assert set(firsts) == {"here", "near"}  # 100 and 104 ms are within 5 %, 106 ms is not
    assert 60 < firsts.count(SiteName("here")) < 140


def test_chance_changes_nothing_without_a_tie_but_for_exploring() -> None:
    table, loads, rng = a_table(world()), idle_loads(world()), stream(7, "ties")
    choices = [a_choice(table, loads, rng=rng, target_ms=0) for _ in range(500)]
    assert {choice.site for choice in choices} == {SYDNEY.name}
    assert {choice.because for choice in choices} == {"nearest"}


def test_rates_not_measured_yet_are_seeded() -> None:
    view = a_view([a_site("here")])
    loads = Loads()
    loads.heard(a_digest("here", a_load(prefill_tok_s=0, decode_tok_s=0)), 0)
    choice = decide(view, loads, class_="batch", prompt_tokens=20, output_tokens=1)
    assert (choice.candidates[0].prefill_ms, choice.candidates[0].decode_ms) == (100.0, 100.0)


def test_a_cached_prefix_costs_no_prefill() -> None:
    prefixes, blocks = Prefixes(), [11, 12, 13]
    prefixes.saw(ASHBURN.name, MODEL, blocks[:2], 0)
    asked: dict[str, Any] = {"prompt_tokens": 700, "blocks": blocks, "prefixes": prefixes}
    costs = {each.site: each for each in decide(world(), **asked).candidates}
    assert {site: (each.prefill_ms, each.cost_ms) for site, each in costs.items()} == {
        "ashburn": (700.0 - 2 * BLOCK_TOKENS, 206 + 700.0 - 2 * BLOCK_TOKENS),
        "frankfurt": (700.0, 990.0),
        "sydney": (700.0, 700.0),
    }
    assert sites_of(decide(world(), **asked)) == ["ashburn", "sydney", "frankfurt"]
    choice = a_choice(a_table(world()), idle_loads(world()), **asked)
    assert (choice.prefill_ms, choice.cost_ms) == (188.0, 394.0)


def test_no_more_than_the_prompt_is_cached_and_only_where_it_is_allowed() -> None:
    prefixes = Prefixes()
    prefixes.saw(FRANKFURT.name, MODEL, [1, 2], 0)
    prefixes.saw(SiteName("left-the-view"), MODEL, [1], 0)
    asked: dict[str, Any] = {"prompt_tokens": 300, "blocks": [1, 2], "prefixes": prefixes}
    frankfurt = decide(world(), policy_id="de", **asked).candidates[0]
    assert (frankfurt.site, frankfurt.prefill_ms, frankfurt.cost_ms) == ("frankfurt", 0.0, 290.0)
    prefixes.saw(SYDNEY.name, MODEL, [1, 2], 0)
    assert sites_of(decide(world(), policy_id="de", **asked)) == ["frankfurt"]


def test_a_choice_among_sixty_of_eleven_hundred_sites() -> None:
    sites = [a_site(f"s{number:04}", "DE" if number % 2 else "AU") for number in range(1100)]
    serving = [site.name for site in sites[::18]][:60]
    rtt_ms: dict[str, float] = {name: 40.0 + number for number, name in enumerate(serving)}
    view = a_view(
        sites, own_site=sites[1].name, rtt_ms=rtt_ms, policies=[DE], serving=serving
    )
    table, loads = a_table(view), idle_loads(view)
    choice = a_choice(table, loads)
    assert (choice.eligible, choice.allowed_exists) == (60, True)
    assert choice.site in serving[:8]  # 140 ms, and what is within 5 % of it
    explanation = explain(choice.ground, choice.decision())
    assert explanation is not None
    assert len(explanation.candidates) == 60
    assert explanation.elsewhere == 1040
    nobody = a_choice(table, loads, policy_id="de")
    assert (nobody.site, nobody.index, nobody.eligible) == (None, -1, 0)
    assert not nobody.allowed_exists
    assert len(nobody.ground.refused) == 60


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
    for number in range(SHORTLISTS_KEPT + 10):
        table.shortlist(ModelName(f"m{number}"), PolicyId("anywhere"))
    assert len(table.shortlists) <= SHORTLISTS_KEPT
    assert table.shortlist(MODEL, PolicyId("anywhere")).open_sites == table.opens


def test_remembered_listings_and_boards_are_bounded() -> None:
    table, loads = compile_table(a_view([a_site("here")]), some_blocs()), Loads()
    for number in range(LISTINGS_KEPT // 2 + 10):
        table.listing(MODEL, PolicyId(f"p{number}"))
        a_choice(table, loads, model=f"m{number}")
    assert len(table.listings) <= LISTINGS_KEPT
    assert table.boards == {}  # nobody serves these models


# -- local first, exploring, bodies (docs/spill.md, docs/routing.md) -------------------------------


def two_sites(*, waiting: int = 0, output_tokens: int = 0) -> tuple[View, Loads]:
    """The own site with a queue, and an idle one 20 ms away."""
    view = a_view([a_site("here"), a_site("near")], rtt_ms={"near": 20.0})
    loads = Loads()
    busy = a_load(running=4, waiting=waiting, output_tokens=output_tokens)
    loads.heard(a_digest("here", busy), 0)
    loads.heard(a_digest("near"), 0)
    return view, loads


def test_the_own_site_serves_what_it_can_serve_in_time() -> None:
    view, loads = two_sites(output_tokens=80)  # a queue of 50 ms, 100 ms of prefill
    choice = a_choice(a_table(view), loads)
    assert (choice.site, choice.because, choice.pushed) == ("here", "local", False)
    assert choice.cost_ms == 150.0
    assert choice.costs.min() == 120.0
    late = a_choice(a_table(view), loads, target_ms=149.0)
    assert (late.site, late.because, late.pushed) == ("near", "cheapest", True)


def test_batch_goes_by_cost_alone() -> None:
    view, loads = two_sites(output_tokens=80)
    assert a_choice(a_table(view), loads, class_="batch", output_tokens=1).site == "near"


def test_a_site_that_spilled_is_local_again_well_within_the_target() -> None:
    view, loads = two_sites(waiting=1, output_tokens=400)  # 160 ms and 100 ms
    table = a_table(view)
    assert a_choice(table, loads).because == "cheapest"
    steps = ((2, 150, "cheapest"), (3, 60, "local"), (4, 150, "local"))
    for step, output_tokens, expected in steps:
        busy = a_load(running=4, output_tokens=output_tokens)  # 94, 38 and again 94 ms of queue
        for again in range(30):  # until that is usual
            loads.heard(a_digest("here", busy, sequence=100 * step + again), 0)
        assert a_choice(table, loads).because == expected


def explored(view: View, loads: Loads, **asked: Any) -> list[str]:
    """Where the explored ones of many requests went."""
    table, rng = a_table(view), stream(11, "explore")
    choices = [a_choice(table, loads, rng=rng, **asked) for _ in range(4000)]
    found = [choice for choice in choices if choice.because == "explored"]
    assert all(choice.pushed for choice in found)
    return [str(choice.site) for choice in found]


def test_one_in_a_hundred_explores_what_answers_within_the_target() -> None:
    view = a_view(
        [a_site("here"), a_site("near"), a_site("far")], rtt_ms={"near": 50.0, "far": 101.0}
    )
    found = explored(view, idle_loads(view))
    assert set(found) == {"here", "near"}  # the far one would need 201 ms
    assert 20 <= len(found) <= 60
    assert len(explored(view, idle_loads(view), target_ms=201.5)) == pytest.approx(40, abs=20)


def test_who_bought_or_waits_anyway_explores_nothing() -> None:
    view = a_view([a_site("here"), a_site("near")], rtt_ms={"near": 5.0})
    assert explored(view, idle_loads(view), class_="reserved") == []
    assert explored(view, idle_loads(view), class_="batch") == []
    assert explored(view, idle_loads(view), target_ms=0) == []
    assert explored(view, idle_loads(view), policy_id="nobody") == []
    assert explored(*two_sites(waiting=9, output_tokens=9000), prompt_tokens=9000) == []


def test_worked_example_of_a_body() -> None:
    """800 kB to Frankfurt, 290 ms away: 256 KiB a round trip, so 885 ms beyond it."""
    choice = decide(world(), idle_loads(world()), body_bytes=800_000, prompt_tokens=10)
    frankfurt = next(each for each in choice.candidates if each.site == "frankfurt")
    assert frankfurt.transfer_ms == pytest.approx(885.0, abs=0.1)
    assert frankfurt.cost_ms == pytest.approx(290 + 885.0 + 10, abs=0.1)
    assert choice.candidates[0].site == "sydney"
    assert choice.candidates[0].transfer_ms == 0
    short = decide(world(), idle_loads(world()), body_bytes=4095)
    assert {each.transfer_ms for each in short.candidates} == {0.0}


def test_a_body_may_decide() -> None:
    """A site 30 ms farther has its prompt read sooner, unless it takes too long to come there."""
    view = a_view([a_site("ingress"), a_site("near"), a_site("far")], serving=["near", "far"],
                  rtt_ms={"near": 20.0, "far": 50.0})
    loads = Loads()
    loads.heard(a_digest("near", a_load(prefill_tok_s=5000.0)), 0)
    loads.heard(a_digest("far", a_load(prefill_tok_s=10_000.0)), 0)
    table = a_table(view)
    assert a_choice(table, loads, prompt_tokens=1000, target_ms=0).site == "far"
    assert a_choice(
        table, loads, prompt_tokens=1000, body_bytes=600_000, target_ms=0
    ).site == "near"
