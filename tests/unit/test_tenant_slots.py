"""Which run of an engine a place is in."""

from isochrone.core.ids import ModelName, ReplicaId, SiteName
from isochrone.core.world.model import Replica
from isochrone.gateway.tenant_slots import TenantSlots


def a_run(generation: int) -> Replica:
    return Replica(
        id=ReplicaId("r"), site=SiteName("s"), model=ModelName("m"), revision=None,
        generation=generation, state="ready", engine="llamacpp", base_url="http://127.0.0.1:1/v1",
        engine_key=None, credential=None, upstream_model="m", slots=1, pid=1, started_at=0,
    )


def test_a_request_that_is_late_for_the_last_run_leaves_what_is_known_of_this_one() -> None:
    slots = TenantSlots(lambda replica: 2)
    now = slots.of_run(a_run(2))
    before = slots.of_run(a_run(1))
    assert before is not now
    assert slots.of_run(a_run(2)) is now
    assert slots.of_run(a_run(3)) is not now
