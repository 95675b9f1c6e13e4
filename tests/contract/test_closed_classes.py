"""Gateways over real sockets: a class that some sites do not take."""

from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.world.site_policy import ClassRule, SitePolicy
from tests.fixtures.few_slots import ALL, admit_by, ask_as
from tests.fixtures.gateways import MODEL, GatewayCloud, run, until


def test_a_class_goes_where_it_is_taken_however_many_nearer_sites_are_closed_to_it() -> None:
    async def main(cloud: GatewayCloud) -> None:
        lisbon = await cloud.add_site("lisbon", "PT", engines=0)
        nearer = {"paris": "FR", "berlin": "DE", "oslo": "NO"}
        for name, country in nearer.items():
            await cloud.add_site(name, country)
        await cloud.add_site("madrid", "ES")
        await cloud.key("secret", classes=ALL)
        await cloud.ready()
        await cloud.link("lisbon", "madrid", 300.0)
        closed = SitePolicy(batch=ClassRule(ceiling=0.0))
        for name in nearer:
            await admit_by(cloud, name, closed)
        context = lisbon.running.context
        context.retries = RetryBudget(0.0, 0.0)
        await until(lambda: len(context.view.closed_to("batch", MODEL)) == len(nearer))
        await until(lambda: context.view.table.view.links)
        answer = await ask_as(lisbon, "batch")
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "madrid")
        answer = await ask_as(lisbon, "on_demand")
        assert answer.headers["x-isochrone-site"] in nearer
        await admit_by(cloud, "madrid", closed)
        await until(lambda: len(context.view.closed_to("batch", MODEL)) == len(nearer) + 1)
        answer = await ask_as(lisbon, "batch")
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (429, "class_closed")

    run(main)
