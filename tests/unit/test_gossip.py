"""Bytes of gossip: what a site says each second to every gateway, and how soon all know it."""

from dataclasses import replace

from isochrone.core.ids import ModelName, ReplicaId
from isochrone.core.world.digest import DeploymentLoad, ReplicaLoad, SiteDigest
from isochrone.wire import fleet
from tests.builders import a_digest, a_load, a_site
from tests.fixtures.herd import Cloud, Plan

MODELS = 44  # 50,000 replicas over 60 sites and 200 models, of which 20 run everywhere
REPLICAS = 834


def a_full_digest(*, credits_said: bool = True, replicas: int = 0) -> SiteDigest:
    loads = tuple(
        replace(
            a_load(ready=19, slots=608, running=511, waiting=3, prompt_tokens=70_123,
                   output_tokens=61_320, prefill_tok_s=8123.4, decode_tok_s=91.7),
            model=ModelName(f"some-model-{number:03}"), revision="0123456789abcdef" * 4,
            arrived=123.456 if credits_said else None, spare=-7.891 if credits_said else None,
        )
        for number in range(MODELS)
    )
    return replace(a_digest("frankfurt", *loads), replicas=tuple(map(_replica, range(replicas))))


def _replica(number: int) -> ReplicaLoad:
    return ReplicaLoad(
        id=ReplicaId(f"frankfurt/some-model-{number % MODELS:03}/{number}"),
        model=ModelName(f"some-model-{number % MODELS:03}"), generation=1_790_000_000_000,
        state="ready", pid=4711, running=27, waiting=0, restarts=0, prompt_tokens_total=10**6,
        cached_tokens_total=10**5, output_tokens_total=10**6,
    )


def test_what_routing_reads_of_a_large_site_is_a_few_hundred_bytes_a_model() -> None:
    said = len(fleet.encode(a_full_digest()))
    assert said < 350 * MODELS
    assert 60 * said < 1_000_000  # what a gateway hears a second of all sites


def test_credits_for_a_thousand_ingresses_are_two_numbers_a_model() -> None:
    with_them, without = (
        len(fleet.encode(a_full_digest(credits_said=each))) for each in (True, False)
    )
    assert with_them - without == 16 * MODELS


def test_an_older_reader_skips_what_it_does_not_know() -> None:
    """And a newer one takes a digest that says nothing of credits."""
    (load,) = a_digest("frankfurt").loads
    fields = {name: getattr(load, name) for name in load.__slots__}
    del fields["arrived"], fields["spare"]
    old = fleet.decode(fleet.encode(fields), DeploymentLoad)
    assert (old.arrived, old.spare) == (None, None)


def test_all_know_a_change_within_an_interval_and_act_on_it_within_a_few() -> None:
    """A third of a hot region goes away at 4 s: every ingress knows it with the next digest, and
    six seconds later no queue is twice the mean."""
    plan = Plan(
        ingresses=200, sites=30, regions=10, load=0.7, seconds=10, warm_s=3, away=(10, 4, 60)
    )
    cloud = Cloud(plan)
    seen = cloud.run()
    station = cloud.stations[10]
    for loads in cloud.loads:
        known = loads.of(a_site(station.name).name)
        assert known is not None
        assert all(load.ready == 0 for load in known.models.values())
        assert 10_000_000_000 - known.heard_ns <= 1_000_000_000
    last = seen.backlogs[-1]
    assert max(last) / (sum(last) / len(last)) < 2
