"""What llama.cpp has beside chat completions, that it is metered right, and what never reaches it.

Run it again whenever the version of the llama.cpp wheel moves.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from isochrone.core.metering.event import Endpoint, Tokens
from isochrone.core.world.model import ALL_ENDPOINTS
from isochrone.gateway.counts import tokens_of_answer
from isochrone.gateway.message_meter import MessageMeter
from isochrone.gateway.request import engine_body, parse_request
from isochrone.gateway.surface import UNMETERED
from isochrone.ports.engine import Engine
from tests.contract.test_engines import HELLO, ask
from tests.contract.test_gateway_http import one_site
from tests.contract.test_several_prompts import with_engine
from tests.fixtures.gateways import Client, GatewayCloud, chat_body, get, post, run

MADE = 6
ASKED: dict[Endpoint, dict[str, Any]] = {
    "responses": {"input": HELLO, "max_output_tokens": MADE, "temperature": 0},
    "messages": {"messages": HELLO, "max_tokens": MADE, "temperature": 0},
}


def as_sent(endpoint: Endpoint, **more: Any) -> dict[str, Any]:
    """The body as the gateway would send it to llama.cpp."""
    body = json.dumps({"model": "tiny"} | ASKED[endpoint] | more).encode()
    request = parse_request(endpoint, body)
    sent: dict[str, Any] = json.loads(
        engine_body(request, body, model=None, running_counts="timings")
    )
    return sent


@pytest.mark.parametrize("endpoint", ["responses", "messages"])
def test_an_answer_is_metered_whole_streamed_and_broken(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    async def main(engine: Engine) -> None:
        assert engine.traits.endpoints == ALL_ENDPOINTS
        whole = await ask(engine, f"/{endpoint}", as_sent(endpoint))
        assert whole.status == 200
        first = tokens_of_answer(whole.body, endpoint, 1)
        assert (first.output, first.source) == (MADE, "engine")
        prompt = first.input_uncached + first.input_cached

        stream = (await ask(engine, f"/{endpoint}", as_sent(endpoint, stream=True))).body
        meter = MessageMeter(endpoint)
        assert meter.feed(stream) + meter.end() == stream
        assert (meter.finished, meter.error) == (True, False)
        assert meter.tokens(0) == Tokens(
            input_uncached=1, input_cached=prompt - 1, output=MADE, source="engine"
        )

        broken = MessageMeter(endpoint)
        events = stream.split(b"\n\n")
        deltas = [at for at, event in enumerate(events) if b'"delta":' in event]
        broken.feed(b"\n\n".join(events[: deltas[3]]) + b"\n\n")
        assert not broken.finished
        tokens = broken.tokens(0)
        assert (tokens.input_uncached, tokens.input_cached) == (1, prompt - 1)
        assert (tokens.output, tokens.source) == (
            3, "running" if endpoint == "responses" else "counted"
        )

    with_engine(tmp_path, main, shares_cache=True)


def test_a_field_given_twice_counts_as_last(tmp_path: Path) -> None:
    async def main(engine: Engine) -> None:
        twice = b'{"model":"tiny","prompt":"Once","max_tokens":9,"ignore_eos":true,"max_tokens":3}'
        request = parse_request("completions", twice)
        assert request.output_tokens == 3
        host, _, port = engine.base_url.split("/")[2].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: t\r\nconnection: close\r\n"
            b"authorization: Bearer %b\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % ((engine.key or "").encode(), len(twice), twice)
        )
        answer = await reader.read()
        writer.close()
        usage = json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]
        assert usage["completion_tokens"] == 3

    with_engine(tmp_path, main)


def test_unmetered_routes_never_reach_an_engine() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        client = await Client.open(site)
        below = [f"{path.rstrip('/')}/below" for path in UNMETERED]
        for path in (*UNMETERED, *below, "/v1/audio/speech", "/v1/images/generations"):
            for request in (post(chat_body(), path=path), get(path)):
                client.send(request)
                answer = await client.answer()
                assert answer.status == 404, path
                assert answer.headers["x-isochrone-reason"] == "unknown_path"
        client.close()
        assert site.engines[0].asked == []

    run(main)
