"""/v1/responses and /v1/messages through gateways to llama.cpp: passed on, metered, refused."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from isochrone.core.metering.event import Endpoint
from isochrone.core.world.model import ALL_ENDPOINTS
from isochrone.gateway.surface import PATHS
from isochrone.ports.engine import Engine
from tests.contract.test_engines import HELLO
from tests.contract.test_gateway_http import one_site
from tests.contract.test_several_prompts import with_engine
from tests.fixtures.gateways import (
    MODEL,
    Client,
    GatewayCloud,
    RunningSite,
    a_cloud,
    ask,
    post,
    run,
    until,
)

MADE = 6
ASKED: dict[Endpoint, dict[str, Any]] = {
    "responses": {"input": HELLO, "max_output_tokens": MADE},
    "messages": {"messages": HELLO, "max_tokens": MADE},
}
LAST: dict[Endpoint, str] = {"responses": "response.completed", "messages": "message_stop"}


def asked(endpoint: Endpoint, **more: Any) -> bytes:
    body = json.dumps({"model": MODEL} | ASKED[endpoint] | more).encode()
    return post(body, path=PATHS[endpoint])


async def has_everything(site: RunningSite) -> RunningSite:
    """Its digests say so from now on, and its gateway has heard it."""
    site.endpoints = ALL_ENDPOINTS
    known = site.running.context.endpoints
    await until(lambda: ALL_ENDPOINTS in known.of(MODEL))
    return site


def with_gateway(path: Path, main: Callable[[GatewayCloud, RunningSite], Awaitable[None]]) -> None:
    async def use(engine: Engine) -> None:
        replica = {
            "base_url": engine.base_url, "engine_key": engine.key, "upstream_model": "tiny",
            "running_counts": "timings", "usage_counts_one_choice": True,
            "endpoints": engine.traits.endpoints,
        }
        async with a_cloud() as cloud:
            await main(cloud, await has_everything(await one_site(cloud, replica=replica)))

    with_engine(path, use)


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
def test_answers_and_streams_are_passed_on_and_booked(tmp_path: Path, endpoint: Endpoint) -> None:
    async def main(cloud: GatewayCloud, site: RunningSite) -> None:
        whole = await ask(site, asked(endpoint))
        assert whole.status == 200
        assert whole.json["usage"]["output_tokens"] == MADE
        stream = await ask(site, asked(endpoint, stream=True))
        assert stream.whole
        assert f"event: {LAST[endpoint]}" in stream.body.decode()
        for answer in (whole, stream):
            event = (await cloud.events(answer.request_id))[0]
            assert (event.endpoint, event.outcome) == (endpoint, "finished")
            assert (event.tokens.output, event.tokens.source) == (MADE, "engine")

    with_gateway(tmp_path, main)


def test_a_client_of_anthropics_api_uses_its_own_header_and_gets_its_own_errors(
    tmp_path: Path,
) -> None:
    async def main(cloud: GatewayCloud, site: RunningSite) -> None:
        body = json.dumps({"model": MODEL} | ASKED["messages"]).encode()
        headers = {"x-api-key": "secret", "anthropic-version": "2023-06-01"}
        path = PATHS["messages"]
        assert (await ask(site, post(body, key=None, path=path, headers=headers))).status == 200
        long = asked("messages", messages=[{"role": "user", "content": "word " * 2000}])
        refused = (
            (401, "authentication_error", post(body, key="wrong", path=path)),
            (401, "authentication_error",
             post(body, key=None, path=path, headers={"x-api-key": "wrong"})),
            (404, "not_found_error", asked("messages", model="none")),
            (400, "invalid_request_error", asked("messages", container="c")),
            (400, "invalid_request_error", long),
        )
        for status, kind, raw in refused:
            answer = await ask(site, raw)
            assert answer.status == status
            assert answer.json["type"] == "error"
            assert answer.json["error"]["type"] == kind

    with_gateway(tmp_path, main)


def test_a_response_that_asks_for_state_is_refused_with_its_name() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await has_everything(await one_site(cloud, replica={"endpoints": ALL_ENDPOINTS}))
        for param, value in (("store", True), ("previous_response_id", "r"), ("background", True)):
            answer = await ask(site, asked("responses", **{param: value}))
            assert answer.status == 400
            assert answer.json["error"]["param"] == param
        assert site.engines[0].asked == []

    run(main)


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
def test_no_engine_is_asked_for_what_it_lacks(endpoint: Endpoint) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        await until(lambda: site.running.context.endpoints.of(MODEL))
        answer = await ask(site, asked(endpoint))
        assert answer.status == 404
        assert answer.headers["x-isochrone-reason"] == "endpoint_not_served"
        site.endpoints = ALL_ENDPOINTS  # its digest promises more than its replica has
        await until(lambda: ALL_ENDPOINTS in site.running.context.endpoints.of(MODEL))
        assert (await ask(site, asked(endpoint))).status == 503
        assert site.engines[0].asked == []

    run(main)


def test_a_site_without_the_endpoint_is_passed_over() -> None:
    async def main(cloud: GatewayCloud) -> None:
        near = await one_site(cloud)
        far = await cloud.add_site("paris", "FR", replica={"endpoints": ALL_ENDPOINTS})
        await cloud.ready()
        far.endpoints = ALL_ENDPOINTS
        await until(lambda: len(near.running.context.endpoints.of(MODEL)) == 2)
        await until(lambda: ALL_ENDPOINTS in near.running.context.endpoints.of(MODEL))
        answer = await ask(near, asked("messages"))
        assert answer.headers["x-isochrone-site"] == "paris"
        assert [each.path for each in far.engines[0].asked] == [PATHS["messages"]]
        assert near.engines[0].asked == []

    run(main)


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
def test_a_stream_that_loses_its_engine_ends_in_an_error_of_its_api(endpoint: Endpoint) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await has_everything(await one_site(cloud, replica={"endpoints": ALL_ENDPOINTS}))
        site.engines[0].die_after = 2
        client = await Client.open(site)
        client.send(asked(endpoint, stream=True))
        answer = await client.answer()
        client.close()
        assert not answer.whole
        last = answer.body.decode().rstrip().rpartition("\n\n")[2]
        assert last.startswith('event: error\ndata: {"type":"error"')
        event = (await cloud.events(answer.request_id))[0]
        assert event.outcome == "engine_lost"

    run(main)
