"""A gateway that reaches very many sites itself, none of which can serve."""

import asyncio
from dataclasses import replace

from isochrone.core.ids import ReplicaId, SiteName
from isochrone.core.world.model import Deployment, EngineSpec, Replica
from isochrone.wire import subjects
from tests.fixtures.gateways import (
    MODEL,
    GatewayCloud,
    a_digest_of_one,
    ask,
    chat_body,
    post,
    run,
    until,
)

MANY = 250


def test_who_finds_no_replica_at_hundreds_of_sites_is_told_so() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=1)
        await cloud.key("secret")
        await cloud.ready()
        context = sydney.running.context
        names = [SiteName(f"s{number:03d}") for number in range(MANY)]
        spec = EngineSpec(kind="llamacpp", source="x.gguf")
        for name in names:
            await cloud.publish(subjects.site_key(name), replace(sydney.site, name=name))
            await cloud.publish(subjects.deployment_key(name, MODEL), Deployment(
                site=name, model=MODEL, replicas=1, engine=spec, context_tokens=2048,
            ))
        await until(lambda: len(context.view.table.view.deployments.get(MODEL, ())) == MANY + 1)
        replicas, now_ns = context.view.replicas, context.clock.monotonic_ns()
        digest = a_digest_of_one(sydney, 1)
        for name in names:
            replica = Replica(
                id=ReplicaId(f"{name}-r"), site=name, model=MODEL, revision="r1", generation=1,
                state="ready", engine="llamacpp", base_url="http://127.0.0.1:1/v1", engine_key="x",
                credential=None, upstream_model="e", slots=4, pid=None, started_at=0,
                slots_stated=True,
            )
            replicas.put(subjects.replica_key(replica.id), replica)
            context.loads.heard(replace(digest, site=name), now_ns)
        for replica, _, _ in list(replicas.states()):
            replicas.lost(replica, now_ns, context.rng)
        answer = await asyncio.wait_for(ask(sydney, post(chat_body())), 10)
        assert answer.status == 503
        assert not context.exchanges

    run(main)
