"""Grounds and decisions: what is kept once, what is kept of each request, and both together."""

from dataclasses import replace

from isochrone.core.ids import PolicyId
from isochrone.core.residency.blocs import Blocs
from isochrone.core.routing.choice import Candidate, Ground, GroundSite, Refused
from isochrone.core.routing.explain import explain
from isochrone.core.routing.loads import Loads
from isochrone.core.routing.table import compile_table
from isochrone.core.world.view import View
from isochrone.gateway.journal import RECORD_BYTES
from isochrone.gateway.journal_state import Grounds
from tests.builders import (
    MODEL,
    a_choice,
    a_digest,
    a_load,
    a_policy,
    a_site,
    a_table,
    a_view,
    idle_loads,
)

SITES = [a_site("sydney", "AU"), a_site("frankfurt", "DE"), a_site("oslo", "NO")]
EEA = a_policy("eea", ("EEA",), ("AU",))


def world(**changes: float) -> View:
    rtt_ms = {"frankfurt": 290.1, "oslo": 310.0} | changes
    return a_view(SITES, rtt_ms=rtt_ms, policies=[EEA])


def ground_of(view: View, policy_id: str = "eea") -> Ground:
    return a_table(view).ground(MODEL, PolicyId(policy_id))


def test_a_ground_says_what_all_choices_have_in_common() -> None:
    ground = ground_of(world())
    assert ground == Ground(
        id=ground.id,
        model=MODEL,
        policy_id=EEA.id,
        residency=("EEA",),
        transit=("AU",),
        plaintext_ingress="AU",
        open_sites=(
            GroundSite(site=SITES[1].name, rtt_ms=290.1, rtt_source="probed"),
            GroundSite(site=SITES[2].name, rtt_ms=310.0, rtt_source="probed"),
        ),
        refused=(
            Refused(
                site=SITES[0].name, rule="residency",
                detail="the site is in AU, the policy allows EEA",
            ),
        ),
        allowed_exists=True,
        elsewhere=0,
    )


def test_the_id_of_a_ground_is_its_content() -> None:
    same = ground_of(world())
    assert same == ground_of(world())
    drained = [SITES[0], SITES[1], replace(SITES[2], draining=True)]
    other_axis = replace(EEA, transit=("DE",))
    others = [
        ground_of(world(oslo=310.5)),
        ground_of(world(), "anywhere"),
        ground_of(world(), "unknown"),
        ground_of(a_view(drained, rtt_ms={"frankfurt": 290.1}, policies=[EEA])),
        ground_of(replace(world(), policies={EEA.id: other_axis})),
        ground_of(replace(world(), own_site=SITES[1].name)),
        a_table(replace(world(), deployments={})).ground(MODEL, EEA.id),
    ]
    assert len({ground.id for ground in [same, *others]}) == 1 + len(others)


def test_an_ingress_of_unstated_country_is_called_unknown() -> None:
    view = a_view([a_site("sydney", None)])
    assert ground_of(view, "anywhere").plaintext_ingress == "unknown"


def test_batch_decisions_keep_what_each_site_would_take_to_decode() -> None:
    loads = Loads()
    loads.heard(a_digest("frankfurt", a_load(prompt_tokens=50)), 0)
    loads.heard(a_digest("oslo", a_load(prefill_tok_s=500, decode_tok_s=50)), 0)
    choice = a_choice(a_table(world()), loads, policy_id="eea", class_="batch", now_ns=250_000_000)
    explanation = explain(choice.ground, choice.decision(actual_ttft_ms=400.0))
    assert explanation is not None
    assert explanation.candidates == (
        Candidate(
            site=SITES[1].name, cost_ms=1440.1, rtt_ms=290.1, rtt_source="probed", queue_ms=50.0,
            prefill_ms=100.0, decode_ms=1000.0, digest_age_ms=250.0,
        ),
        Candidate(
            site=SITES[2].name, cost_ms=2510.0, rtt_ms=310.0, rtt_source="probed", queue_ms=0.0,
            prefill_ms=200.0, decode_ms=2000.0, digest_age_ms=None,
        ),
    )
    assert choice.predicted_ttft_ms is not None
    assert abs(choice.predicted_ttft_ms - 440.1) < 1e-3  # costs are float32


def test_nobody_chosen_is_explained_by_rules_alone() -> None:
    choice = a_choice(a_table(world()), Loads(), policy_id="eea")
    decision = choice.decision()
    assert (decision.chosen, decision.predicted_ttft_ms) == (-1, None)
    explanation = explain(choice.ground, decision)
    assert explanation is not None
    assert explanation.candidates == ()
    assert [(each.site, each.rule) for each in explanation.refused] == [
        ("frankfurt", "digest_stale"), ("oslo", "digest_stale"), ("sydney", "residency"),
    ]


def test_a_decision_is_not_explained_by_another_ground() -> None:
    view = world()
    choice = a_choice(a_table(view), idle_loads(view), policy_id="eea")
    decision = choice.decision()
    assert explain(ground_of(view, "anywhere"), decision) is None
    assert explain(choice.ground, replace(decision, costs_ms=decision.costs_ms[:4])) is None
    assert explain(choice.ground, replace(decision, decodes_ms=b"123")) is None


def test_what_refuses_a_whole_fleet_fits_into_a_record() -> None:
    """Beyond `RECORD_BYTES` the journal keeps a record without its decision."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    codes = sorted(first + second for first in letters for second in letters)
    blocs = Blocs(countries=frozenset(codes), members={})
    sites = [a_site(f"data-centre-{number:04}", codes[number % 400]) for number in range(1_100)]
    policy = a_policy("long", tuple(codes[400:]))
    ground = compile_table(a_view(sites, policies=[policy]), blocs).ground(MODEL, policy.id)
    assert (len(ground.refused), len(ground.residency)) == (1_100, 276)
    assert len(Grounds().encoded(ground.id, ground)) < RECORD_BYTES
