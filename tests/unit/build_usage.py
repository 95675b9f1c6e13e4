"""Builders of usage events and records for tests."""

from array import array
from dataclasses import asdict

from isochrone.core.ids import (
    KeyId,
    ModelName,
    OrgId,
    PolicyId,
    ProjectId,
    RequestId,
    SiteName,
)
from isochrone.core.metering.event import Reporter, Tokens, UsageEvent
from isochrone.core.routing.choice import Decision, Ground, GroundSite, Refused
from isochrone.wire.usage import BondRecord, DecisionRecord, Opening, UsageRecord


def a_usage_event(
    request: str = "r-1", *, reporter: Reporter = "ingress", output: int = 3
) -> UsageEvent:
    """One finished request of the default project at Sydney."""
    return UsageEvent(
        request_id=RequestId(request),
        org_id=OrgId("org"),
        project_id=ProjectId("project"),
        key_id=KeyId("key"),
        client_request_id=None,
        endpoint="chat.completions",
        stream=True,
        class_="on_demand",
        model=ModelName("tiny-fable"),
        revision=None,
        ingress_site=SiteName("sydney"),
        ingress_country="AU",
        serving_site=SiteName("sydney"),
        serving_country="AU",
        replica=None,
        received_at=1_000_000_000,
        finished_at=2_000_000_000,
        chosen_ms=0.1,
        sent_ms=0.2,
        first_byte_ms=10.0,
        total_ms=1000.0,
        tokens=Tokens(input_uncached=5, output=output, source="engine"),
        outcome="finished",
        status=200,
        reason=None,
        reporter=reporter,
        attempts=1,
    )


def a_record(event: UsageEvent) -> UsageRecord:
    """What a gateway writes down of this event."""
    fields = {
        name: getattr(event, name)
        for name in UsageRecord.__struct_fields__
        if hasattr(event, name) and name != "decision"
    }
    tokens, decision = event.tokens, event.decision
    return UsageRecord(
        **fields, input_uncached=tokens.input_uncached, input_cached=tokens.input_cached,
        output=tokens.output, token_source=tokens.source,
        decision=None if decision is None else a_decision_record(decision),
    )


def a_decision_record(decision: Decision) -> DecisionRecord:
    fields = {name: getattr(decision, name) for name in DecisionRecord.__struct_fields__}
    bond = decision.bond
    return DecisionRecord(**fields | {"bond": None if bond is None else BondRecord(**asdict(bond))})


def a_usage_record(
    request: str = "r-1", *, reporter: Reporter = "ingress", output: int = 3
) -> UsageRecord:
    """The record of `a_usage_event`."""
    return a_record(a_usage_event(request, reporter=reporter, output=output))


def an_opening(request: str = "r-1", *, ingress: str = "sydney") -> Opening:
    """What is written down of that request before it is served."""
    event = a_usage_event(request)
    fields = {
        name: getattr(event, name) for name in Opening.__struct_fields__ if name != "ingress_site"
    }
    return Opening(**fields, ingress_site=SiteName(ingress))


def a_ground(name: str = "ground-1", *, sites: int = 2) -> Ground:
    """What choices of the default model share at Sydney."""
    return Ground(
        id=name,
        model=ModelName("tiny-fable"),
        policy_id=PolicyId("policy"),
        residency=("AU",),
        transit=("any",),
        plaintext_ingress="AU",
        open_sites=tuple(
            GroundSite(site=SiteName(f"site-{i}"), rtt_ms=1.5 * i, rtt_source="emulated")
            for i in range(sites)
        ),
        refused=(Refused(site=SiteName("frankfurt"), rule="residency", detail="DE is not in AU"),),
        allowed_exists=True,
        elsewhere=3,
    )


def a_decision(ground: Ground) -> Decision:
    """A choice of the first open site of `ground`."""
    costs = array("f", [12.5 + i for i in range(len(ground.open_sites))]).tobytes()
    return Decision(
        ground=ground.id, chosen=0, costs_ms=costs, queues_ms=bytes(len(costs)), prefill_ms=12.0,
        decode_ms=0.5, digest_age_ms=3.0, predicted_ttft_ms=12.0, actual_ttft_ms=None, refused=(),
    )
