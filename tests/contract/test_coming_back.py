"""Real gateways: when a client is told to come back for which an allowed site exists, and none now.
"""

from dataclasses import replace

from isochrone.core.world.model import Deployment, EngineSpec
from isochrone.wire import subjects
from tests.fixtures.gateways import (
    MODEL,
    Answer,
    GatewayCloud,
    ask,
    chat_body,
    post,
    run,
    until,
)


async def two_sites(cloud: GatewayCloud) -> None:
    for name, country in (("paris", "FR"), ("berlin", "DE")):
        await cloud.add_site(name, country)
    await cloud.add_site("boston", "US")
    await cloud.key("secret", residency=("EU",))
    await cloud.ready()


async def drain(cloud: GatewayCloud, name: str, *, draining: bool = True) -> None:
    noun = replace(cloud.sites[name].site, draining=draining)
    await cloud.publish(subjects.site_key(name), noun)
    view = cloud.sites["paris"].running.context.view
    await until(lambda: view.table.view.sites[noun.name].draining == draining)


async def deploy(cloud: GatewayCloud, name: str, replicas: int) -> None:
    site = cloud.sites[name].site.name
    await cloud.publish(subjects.deployment_key(name, MODEL), Deployment(
        site=site, model=MODEL, replicas=replicas, context_tokens=2048,
        engine=EngineSpec(kind="llamacpp", source="x.gguf"),
    ))
    view = cloud.sites["paris"].running.context.view
    await until(lambda: view.is_stopped(MODEL, site) == (replicas == 0))


async def refused(cloud: GatewayCloud) -> Answer:
    answer = await ask(cloud.sites["paris"], post(chat_body()))
    assert (answer.status, answer.headers["x-isochrone-reason"]) == (503, "no_healthy_site")
    return answer


def test_where_all_that_is_allowed_is_drained_clients_come_back_after_a_while() -> None:
    async def main(cloud: GatewayCloud) -> None:
        await two_sites(cloud)
        await drain(cloud, "paris")
        assert (await ask(cloud.sites["paris"], post(chat_body()))).status == 200
        await drain(cloud, "berlin")
        answer = await refused(cloud)
        assert answer.headers["retry-after"] == "30"
        assert "waits for its operator" in answer.json["error"]["message"]
        (event,) = await cloud.events(answer.request_id)
        assert {each.rule for each in cloud.explained(event).refused} == {"draining", "residency"}
        await drain(cloud, "berlin", draining=False)
        assert (await ask(cloud.sites["paris"], post(chat_body()))).status == 200

    run(main)


def test_where_one_of_them_is_only_ill_they_come_back_soon() -> None:
    async def main(cloud: GatewayCloud) -> None:
        await two_sites(cloud)
        await drain(cloud, "berlin")
        cloud.sites["paris"].engines[0].kill()
        answer = await refused(cloud)
        assert answer.headers["retry-after"] == "1"
        assert "waits for its operator" not in answer.json["error"]["message"]

    run(main)


def test_a_site_that_was_stopped_is_as_one_that_is_drained() -> None:
    async def main(cloud: GatewayCloud) -> None:
        await two_sites(cloud)
        await drain(cloud, "berlin")
        cloud.sites["paris"].engines[0].kill()
        await deploy(cloud, "paris", 0)
        assert (await refused(cloud)).headers["retry-after"] == "30"
        await deploy(cloud, "paris", 1)
        assert (await refused(cloud)).headers["retry-after"] == "1"

    run(main)
