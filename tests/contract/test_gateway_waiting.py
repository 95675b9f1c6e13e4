"""What waits before engines with few slots is counted, and told to the site's agent."""

import asyncio

from isochrone.core.world.queued import QueueReport
from isochrone.core.world.site_policy import SitePolicy
from isochrone.wire import fleet, subjects
from tests.fixtures.few_slots import admit_by, is_quiet, queue_of
from tests.fixtures.gateways import MODEL, Client, GatewayCloud, ask, chat_body, post, run, until


def test_what_waits_is_counted_at_once_and_told_to_the_agent() -> None:
    async def main(cloud: GatewayCloud) -> None:
        paris = await cloud.add_site("paris", "FR", replica={"slots": 1})
        await cloud.key("secret")
        await cloud.ready()
        await admit_by(cloud, "paris", SitePolicy())
        reports: list[QueueReport] = []
        await cloud.control.subscribe(
            subjects.queued_subject("paris"),
            lambda _, payload: reports.append(fleet.decode(payload, QueueReport)),
        )
        context = paris.running.context
        paris.engines[0].hold.clear()
        first = asyncio.create_task(ask(paris, post(chat_body())))
        await until(lambda: len(paris.engines[0].asked) == 1)
        clients = [await Client.open(paris) for _ in range(2)]
        for client in clients:
            client.send(post(chat_body(max_tokens=30)))
        await until(lambda: queue_of(paris).queued == 2)
        waiting = [each.waiting for each in context.exchanges if each.waiting is not None]
        assert [each.output_tokens for each in waiting] == [30, 30]
        await until(lambda: bool(reports) and reports[-1].queues != ())
        await until(lambda: reports[-1].queues[0].requests == 2)
        (said,) = reports[-1].queues
        work = queue_of(paris).waiting()
        assert (said.model, said.pushed) == (MODEL, 0)
        assert (said.prompt_tokens, said.output_tokens) == (work.prompt_tokens, 60)
        for client in clients:
            client.close()
        await until(lambda: queue_of(paris).queued == 0)
        assert all(each.waiting is None for each in context.exchanges)
        await until(lambda: reports[-1].queues == ())
        paris.engines[0].hold.set()
        assert (await first).status == 200
        await until(lambda: is_quiet(paris))

    run(main)
