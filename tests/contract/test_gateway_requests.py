"""What clients send besides the plain case: upgrade offers, absolute targets, the wrong model."""

import json

import pytest

from isochrone.core.world.model import Model
from isochrone.wire import subjects
from tests.fixtures.gateways import (
    MODEL,
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)

OFFER = {
    "connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQAAP__",
}


async def one_site(cloud: GatewayCloud) -> RunningSite:
    site = await cloud.add_site("frankfurt", "DE")
    await cloud.key("secret")
    await cloud.ready()
    await until(lambda: site.running.context.view.replicas._by_entry)
    return site


def test_an_offered_upgrade_is_ignored_and_the_body_is_read() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        client = await Client.open(site)
        for _ in range(2):  # and the connection can be used again
            client.send(post(chat_body(), headers=OFFER))
            assert (await client.answer()).status == 200
        raw = post(chat_body(), headers=OFFER)
        for at in range(0, len(raw), 7):
            client.send(raw[at : at + 7])
        assert (await client.answer()).status == 200
        client.close()
        contents = [one.json["messages"][0]["content"] for one in site.engines[0].asked]
        assert contents == ["hello"] * 3

    run(main)


def test_an_offered_upgrade_with_a_chunked_body() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        body = chat_body()
        offer = "".join(f"{name}: {value}\r\n" for name, value in OFFER.items())
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer secret\r\n"
            f"transfer-encoding: chunked\r\n{offer}\r\n"
        )
        raw = head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert (await ask(site, raw)).status == 200

    run(main)


@pytest.mark.parametrize("target", ["http://test:80/v1/chat/completions", "HTTP://t/v1/models"])
def test_a_target_may_be_absolute(target: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        raw = post(chat_body(), path=target)
        if target.endswith("models"):
            raw = raw.partition(b"content-length")[0].replace(b"POST", b"GET")
            raw += b"authorization: Bearer secret\r\n\r\n"
        assert (await ask(site, raw)).status == 200

    run(main)


def test_a_model_of_the_other_kind_is_a_bad_request() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        body = json.dumps({"model": MODEL, "input": "hello"}).encode()
        answer = await ask(site, post(body, path="/v1/embeddings"))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (400, "model_kind")
        model = Model(name=MODEL, kind="embedding", revision="r", context_tokens=9, created_at=0)
        await cloud.publish(subjects.model_key(MODEL), model)
        view = site.running.context.view
        await until(lambda: view.table.view.models[MODEL].kind == "embedding")
        assert (await ask(site, post(chat_body()))).status == 400
        assert (await ask(site, post(body, path="/v1/embeddings"))).status == 200
        assert len(site.engines[0].asked) == 1

    run(main)


def test_a_client_that_leaves_after_the_last_event_has_had_its_answer() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        site.engines[0].never_ends = True
        client = await Client.open(site)
        client.send(post(chat_body(stream=True)))
        await client.reader.readuntil(b"data: [DONE]\n\n")
        client.close()
        await until(cloud.all_events)
        event = cloud.all_events()[-1]
        assert (event.outcome, event.status) == ("finished", 200)
        assert (event.tokens.output, event.tokens.source) == (3, "engine")

    run(main)
