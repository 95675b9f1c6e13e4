"""Headers that say who somebody is: from outside they reach nobody and are believed by nobody."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from isochrone.core.ids import SiteName
from isochrone.wire import peer, subjects
from tests.fixtures.gateways import (
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    get,
    post,
    run,
    until,
)
from tests.fixtures.scripted_engine import ScriptedEngine

OURS = (
    peer.REQUEST, peer.SITE, peer.COUNTRY, peer.REASON, peer.PEER, peer.KEY_ID,
    peer.CLASS, peer.HOP, peer.REFUSED,
)
FORGED = {
    **dict.fromkeys(OURS, "forged"),
    peer.REQUEST: "00000000-0000-7000-8000-000000000000",
    peer.HOP: f"00000000-0000-7000-8000-000000000000 1790000000000000000 {48 * '0'}",
    peer.PEER: "frankfurt",
    peer.KEY_ID: "k-other",
    "x-isochrone-not-yet-invented": "forged",
    "X-Isochrone-Shouted": "forged",
    "x_isochrone_key": "forged",
    "x-forwarded-for": "forged",
    "x-real-ip": "forged",
    "forwarded": "for=forged",
    "cookie": "forged",
    "x-api-key": "forged",
    "proxy-authorization": "forged",
    "openai-organization": "forged",
}


async def sites(cloud: GatewayCloud) -> tuple[RunningSite, RunningSite]:
    sydney = await cloud.add_site("sydney", "AU")
    frankfurt = await cloud.add_site("frankfurt", "DE")
    await cloud.key("australian", residency=("AU",))
    await cloud.key("german", residency=("DE",))
    await cloud.key("other")
    await cloud.ready()
    return sydney, frankfurt


def nothing_forged(headers: Mapping[str, str]) -> bool:
    return not any("forged" in f"{name} {value}" for name, value in headers.items())


@pytest.mark.parametrize("stream", [False, True])
def test_no_engine_sees_them(stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await sites(cloud)
        for key, site in (("australian", sydney), ("german", frankfurt)):
            raw = post(chat_body(stream=stream), key=key, headers=FORGED)
            answer = await ask(sydney, raw)
            assert (answer.status, answer.headers["x-isochrone-site"]) == (200, site.site.name)
            assert answer.request_id != FORGED[peer.REQUEST]
            assert nothing_forged(answer.headers)
            (asked,) = site.engines[0].asked
            assert nothing_forged(asked.headers)
            assert asked.headers["authorization"] == "Bearer engine-secret"
            assert not any("isochrone" in name for name in asked.headers)
            for event in await cloud.events(answer.request_id):
                assert (event.key_id, event.ingress_site) == (f"k-{key}", "sydney")
                assert event.class_ == "on_demand"

    run(main)


def test_a_peer_sees_only_what_the_gateway_says() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await sites(cloud)
        listener = ScriptedEngine()  # stands where Frankfurt's gateway should be
        await listener.start()
        moved = replace(frankfurt.site, port=listener.port)
        await cloud.publish(subjects.site_key("frankfurt"), moved)
        view = sydney.running.context.view
        await until(lambda: (s := view.site(SiteName("frankfurt"))) and s.port == listener.port)
        await ask(sydney, post(chat_body(), key="german", headers=FORGED))
        (asked,) = listener.asked
        assert nothing_forged(asked.headers)
        assert asked.headers[peer.PEER] == "sydney"
        assert asked.headers[peer.KEY_ID] == "k-german"
        assert asked.headers[peer.HOP].split(" ")[0] != FORGED[peer.REQUEST]
        assert "authorization" not in asked.headers
        assert "german" not in " ".join(asked.headers.values()).replace("k-german", "")
        ours = {name for name in asked.headers if "isochrone" in name}
        assert ours == {peer.PEER, peer.KEY_ID, peer.CLASS, peer.HOP}
        listener.kill()

    run(main)


def test_nobody_is_let_in_by_them() -> None:
    async def main(cloud: GatewayCloud) -> None:
        for site in await sites(cloud):
            for raw in (
                post(chat_body(), key=None, headers=FORGED),
                post(chat_body(), key="wrong", headers=FORGED),
                post(chat_body(), key=None, headers={peer.KEY_ID: "k-other"}),
                get("/v1/models", key=None).replace(
                    b"\r\n\r\n", b"\r\nx-isochrone-key: k-other\r\n\r\n"
                ),
            ):
                answer = await ask(site, raw)
                assert answer.status == 401
                assert "x-isochrone-code" not in answer.headers
            assert site.engines[0].asked == []

    run(main)


def test_trailers_are_no_headers() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await sites(cloud)
        body = chat_body()
        top = (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\n%btransfer-encoding: chunked\r\n"
            b"content-type: application/json\r\n\r\n%x\r\n%b\r\n0\r\n"
        )
        trailers = "".join(f"{name}: {value}\r\n" for name, value in FORGED.items()).encode()
        known = b"authorization: Bearer australian\r\n"
        stolen = b"user-agent: forged\r\nx-request-id: forged\r\ntraceparent: forged\r\n"
        client = await Client.open(sydney)
        client.send(top % (known, len(body), body) + trailers + stolen + b"\r\n")
        answer = await client.answer()
        assert answer.status in (200, 400)  # taken without its trailers, or not at all
        assert nothing_forged(answer.headers)
        client.close()
        client = await Client.open(sydney)
        client.send(top % (b"", len(body), body) + known + trailers + b"\r\n")
        assert (await client.answer()).status == 401
        client.close()
        for asked in sydney.engines[0].asked:
            assert nothing_forged(asked.headers)

    run(main)


class TalkativeEngine(ScriptedEngine):
    """An engine whose answers claim to come from the cloud."""

    async def start(self) -> None:
        self.hold.set()
        self._server = await asyncio.start_server(self._claim, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _claim(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
        claims = "".join(f"{name}: forged\r\n" for name in (*OURS, "set-cookie", "x-request-id"))
        body = b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}'
        writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{claims}"
            f"content-length: {len(body)}\r\n\r\n".encode() + body
        )
        await writer.drain()
        writer.close()


def test_what_an_engine_claims_reaches_no_client() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await sites(cloud)
        for site in (sydney, frankfurt):
            site.engines[0].kill()
            site.engines[0] = TalkativeEngine()
            await site.engines[0].start()
            url = f"http://127.0.0.1:{site.engines[0].port}/v1"
            model = next(iter(site.running.context.view.table.view.models))
            await cloud.deploy(site.site.name, model, {"base_url": url, "generation": 2})
        for key, name in (("australian", "sydney"), ("german", "frankfurt")):
            answer = await ask(sydney, post(chat_body(), key=key))
            assert answer.status == 200
            assert nothing_forged(answer.headers)
            assert answer.headers["x-isochrone-site"] == name
            event = (await cloud.events(answer.request_id))[0]
            assert event.tokens.output == 1

    run(main)


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_who_sends_a_key_is_a_client_whatever_else_is_said(header: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        _, frankfurt = await sites(cloud)
        forged = {name: value for name, value in FORGED.items() if name in OURS}
        key = "Bearer german" if header == "authorization" else "german"
        answer = await ask(frankfurt, post(chat_body(), key=None, headers={**forged, header: key}))
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "frankfurt")

    run(main)
