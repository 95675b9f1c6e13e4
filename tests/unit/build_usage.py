"""Builders of usage events for tests."""

from isochrone.core.ids import KeyId, ModelName, OrgId, ProjectId, RequestId, SiteName
from isochrone.core.metering.event import Reporter, Tokens, UsageEvent


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
