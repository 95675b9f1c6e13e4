"""Refusals have the form of the API that was asked, however little of the request could be read."""

import asyncio
from collections.abc import Mapping

from tests.contract.test_gateway_http import one_site
from tests.fixtures.gateways import Client, GatewayCloud, RunningSite, chat_body, post, until
from tests.fixtures.loops import RunOnLoop

HEAD = b"POST %b HTTP/1.1\r\nhost: t\r\nauthorization: Bearer secret\r\n"
# What is sent to a path, and how it is refused.
REFUSED: Mapping[str, tuple[bytes, int, str]] = {
    "a head that does not end": (HEAD + b"x", 408, "head_timeout"),
    "a body that does not end": (HEAD + b"content-length: 9\r\n\r\n{", 408, "body_timeout"),
    "a body of nobody that does not end": (
        HEAD.replace(b"secret", b"wrong") + b"content-length: 9\r\n\r\n{", 401, "invalid_api_key"
    ),
    "a head that is none": (HEAD + b"x : y\r\n\r\n", 400, "bad_http"),
    "a header given twice": (HEAD + b"host: t\r\n\r\n", 400, "duplicate_header"),
}


async def refused(site: RunningSite, raw: bytes, form: str, status: int, reason: str) -> None:
    client = await Client.open(site)
    client.send(raw)
    answer = await client.answer()
    assert (answer.status, answer.headers["x-isochrone-reason"]) == (status, reason)
    assert answer.headers["x-isochrone-request"]
    assert answer.json.get("type") == ("error" if form == "anthropic" else None)
    assert answer.json["error"]["message"]
    assert ("code" in answer.json["error"]) == (form == "openai")
    if status != 404:
        assert answer.headers["connection"] == "close"
        client.send(b"more of it")  # is no reason to reset
        await asyncio.sleep(0)
        assert await client.closed()
    client.close()


def test_what_cannot_be_read_to_its_end(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud, head_timeout_s=0.1, body_timeout_s=0.1)
        for path, form in (("/v1/messages", "anthropic"), ("/v1/chat/completions", "openai")):
            await asyncio.gather(*(
                refused(site, raw.replace(b"%b", path.encode()), form, status, reason)
                for raw, status, reason in REFUSED.values()
            ))
        def late() -> set[str]:
            events = cloud.all_events()
            return {each.endpoint for each in events if each.reason == "body_timeout"}

        await until(lambda: late() == {"messages", "chat.completions"})

    on_each_loop(main)


def test_what_is_not_served_of_an_api(on_each_loop: RunOnLoop) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        for path, form in (
            ("/v1/messages/count_tokens", "anthropic"), ("/v1/messages/batches", "anthropic"),
            ("/v1/messagesx", "openai"), ("/v1/files", "openai"),
        ):
            await refused(site, post(chat_body(), path=path), form, 404, "unknown_path")

    on_each_loop(main)
