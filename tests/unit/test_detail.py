"""What the record keeps of a choice: all of it, or the outcome in brief."""

from dataclasses import replace
from random import Random

import msgspec
import pytest

from isochrone.core.ids import RANDOM_BITS, RequestId, uuid7
from isochrone.core.routing.choice import Decision, Refused, RunnerUp
from isochrone.core.routing.explain import explain
from isochrone.core.routing.loads import Loads
from isochrone.gateway.detail import Detail
from isochrone.wire.usage import DecisionRecord
from tests.builders import a_choice, a_digest, a_load, a_policy, a_site, a_table, a_view, idle_loads
from tests.unit.build_usage import a_decision, a_ground

SITES = [a_site("sydney", "AU"), a_site("frankfurt", "DE"), a_site("oslo", "NO")]
VIEW = a_view(
    SITES, rtt_ms={"frankfurt": 290.1, "oslo": 310.0}, policies=[a_policy("eea", ("EEA",), ("AU",))]
)


@pytest.mark.parametrize("share", [0.0, 1 / 16, 0.5, 1.0])
def test_the_sample_has_its_share_of_the_requests_and_is_the_same_whoever_asks(
    share: float,
) -> None:
    rng = Random(3)
    ids = [RequestId(uuid7(number, rng.getrandbits(RANDOM_BITS))) for number in range(20_000)]
    sampled = [each for each in ids if Detail(share).is_sampled(each)]
    assert sampled == [each for each in ids if Detail(share).is_sampled(each)]
    assert len(sampled) == pytest.approx(share * len(ids), rel=0.1)
    if share in (0.0, 1.0):
        assert len(sampled) == share * len(ids)


def test_a_brief_decision_keeps_the_chosen_site_and_the_next_best() -> None:
    loads = Loads()
    loads.heard(a_digest("frankfurt", a_load(prompt_tokens=5)), 0)
    loads.heard(a_digest("oslo", a_load(prefill_tok_s=500)), 0)
    choice = a_choice(a_table(VIEW), loads, policy_id="eea", now_ns=250_000_000)
    brief, full = choice.decision(in_full=False), choice.decision()
    assert (brief.costs_ms, brief.queues_ms, brief.decodes_ms) == (b"", b"", b"")
    shown, whole = explain(choice.ground, brief), explain(choice.ground, full)
    assert shown is not None
    assert whole is not None
    assert shown.candidates == whole.candidates[:1]
    assert shown.candidates[0].queue_ms == 5.0
    assert (shown.is_full, shown.eligible) == (False, 2)
    assert shown.runner_up == RunnerUp(site=SITES[2].name, cost_ms=510.0) == whole.runner_up
    assert shown.refused == whole.refused
    assert choice.decision() == full, "asking for the runner-up changed the costs"


def test_the_only_candidate_has_no_runner_up() -> None:
    loads = Loads()
    loads.heard(a_digest("oslo"), 0)
    choice = a_choice(a_table(VIEW), loads, policy_id="eea")
    shown = explain(choice.ground, choice.decision(in_full=False))
    assert shown is not None
    assert (shown.eligible, shown.runner_up) == (1, None)
    assert [(each.site, each.rule) for each in shown.refused] == [
        ("frankfurt", "digest_stale"), ("sydney", "residency"),
    ]


def test_nobody_chosen_has_nothing_to_leave_out() -> None:
    choice = a_choice(a_table(VIEW), Loads(), policy_id="eea")
    decision = choice.decision(in_full=False)
    assert not decision.is_brief
    closed = a_choice(a_table(VIEW), Loads(), policy_id="unknown").decision(in_full=False)
    assert not closed.is_brief


def test_a_spill_is_a_choice_against_an_own_site_that_could_have_served() -> None:
    table, loads = a_table(VIEW), idle_loads(VIEW)
    assert not a_choice(table, loads).is_spill
    loads.heard(a_digest("sydney", a_load(prompt_tokens=5000), sequence=2), 0)
    away = a_choice(table, loads)
    assert (away.site, away.is_spill) == ("frankfurt", True)
    gone = [Refused(site=SITES[0].name, rule="unreachable", detail="no connection")]
    assert not a_choice(table, loads, tried=gone).is_spill
    assert not a_choice(table, loads, policy_id="eea").is_spill


def test_a_brief_decision_that_names_no_site_of_its_ground_is_not_explained() -> None:
    ground = a_ground()
    brief = replace(
        a_decision(ground), costs_ms=b"", queues_ms=b"", eligible=2, runner_up=1, runner_up_ms=13.5
    )
    assert explain(ground, brief) is not None
    for wrong in ({"chosen": 2}, {"runner_up": 2}, {"predicted_ttft_ms": None}):
        assert explain(ground, replace(brief, **wrong)) is None


def test_a_record_of_an_older_gateway_is_a_whole_decision() -> None:
    decision = a_decision(a_ground())
    names = list(DecisionRecord.__struct_fields__)
    older = [getattr(decision, name) for name in names[: names.index("chosen_queue_ms")]]
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(older), type=DecisionRecord)
    assert read.decision() == decision
    shown = explain(a_ground(), read.decision())
    assert shown is not None
    assert (shown.is_full, shown.eligible) == (True, 2)


def test_a_brief_record_is_small() -> None:
    decision = a_decision(a_ground(sites=60))
    brief = replace(decision, costs_ms=b"", queues_ms=b"", eligible=60, runner_up=1)
    assert _size(decision) - _size(brief) > 450
    assert _size(brief) < 120


def _size(decision: Decision) -> int:
    fields = {name: getattr(decision, name) for name in DecisionRecord.__struct_fields__}
    return len(msgspec.msgpack.encode(DecisionRecord(**fields)))
