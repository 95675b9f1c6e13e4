"""Requests that are nested as deeply as a gateway just reads, whose engine is lost: read once more
from deeper in the stack, they end themselves at most."""

import asyncio

import pytest

from tests.fixtures.gateways import Answer, GatewayCloud, RunningSite, ask, post, run
from tests.fixtures.tellers import AT, Fate, body, site

SHALLOW, DEEP = 200, 1100


def nested(depth: int, field: str) -> bytes:
    return body()[:-1] + b',"%b":' % field.encode() + b"[" * depth + b"]" * depth + b"}"


async def asked_anew(paris: RunningSite, depth: int, field: str) -> Answer | None:
    """On a new connection to the engine; None where there was no answer."""
    paris.running.context.pool.close()
    try:
        return await ask(paris, post(nested(depth, field)))
    except asyncio.IncompleteReadError:
        return None


@pytest.mark.parametrize("field", ["x", "metadata"])
@pytest.mark.parametrize("how", ["reset", "wait"])
def test_no_request_ends_its_gateway(how: str, field: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate()
        paris = await site(
            cloud, fate, "paris", "FR", engines=2, between_events_timeout_s=0.3,
            breaker_failures=1000, breaker_failure_rate=1.0,
        )
        await cloud.key("secret")
        await cloud.ready()
        taken, refused = SHALLOW, DEEP
        while refused - taken > 1:
            depth = (taken + refused) // 2
            answer = await asked_anew(paris, depth, field)
            if answer is not None and answer.status == 200 and answer.whole:
                taken = depth
            else:
                refused = depth
        for depth in range(taken, taken - 24, -3):
            fate.places = [(how, AT)]
            answer = await asked_anew(paris, depth, field)
            assert answer is not None
            assert answer.status in (200, 400)
            assert paris.task is not None
            assert not paris.task.done()
        assert not paris.running.context.exchanges

    run(main)
