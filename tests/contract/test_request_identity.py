"""Who names a request: the ingress, always. What the client calls it is kept beside that."""

import json

from tests.fixtures.gateways import (
    Client,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)

OURS = "00000000-0000-7000-8000-000000000000"


async def two_sites(cloud: GatewayCloud) -> RunningSite:
    """Sydney; `german` is served in Frankfurt."""
    sydney = await cloud.add_site("sydney", "AU")
    await cloud.add_site("frankfurt", "DE")
    await cloud.key("secret")
    await cloud.key("other")
    await cloud.key("german", residency=("DE",))
    await cloud.ready()
    return sydney


def test_a_hundred_requests_of_one_name_are_a_hundred_charges() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        clients = [await Client.open(sydney) for _ in range(4)]
        names = {"x-request-id": "mine", "x-isochrone-request": OURS}
        ids = []
        for at in range(100):
            client, key = clients[at % 4], ("secret", "german")[at % 2]
            client.send(post(chat_body(stream=at % 3 == 0), key=key, headers=names))
            answer = await client.answer()
            assert answer.status == 200
            assert answer.headers["x-request-id"] == "mine"
            ids.append(answer.request_id)
        assert len({*ids, OURS}) == 101
        await until(lambda: len([e for e in cloud.all_events() if e.reporter == "ingress"]) >= 100)
        charged = [event for event in cloud.all_events() if event.reporter == "ingress"]
        assert sorted(event.request_id for event in charged) == sorted(ids)
        assert {event.client_request_id for event in charged} == {"mine"}
        assert sum(event.tokens.output for event in charged) == 34 * 3 + 66 * 2
        for client in clients:
            client.close()

    run(main)


def test_two_keys_may_use_one_name() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        for key in ("secret", "other"):
            answer = await ask(sydney, post(chat_body(), key=key, headers={"x-request-id": "1"}))
            event = (await cloud.events(answer.request_id))[0]
            assert (event.key_id, event.client_request_id) == (f"k-{key}", "1")
        by_key = {event.key_id: event.request_id for event in cloud.all_events()}
        assert len(set(by_key.values())) == 2

    run(main)


def test_a_request_that_claims_an_id_gets_its_own() -> None:
    """Also where it is refused, and where nothing is charged."""

    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        named = {"x-request-id": "mine", "x-isochrone-request": OURS}
        for raw in (
            post(b"{", headers=named),
            post(chat_body(), key="wrong", headers=named),
            post(chat_body(), path="/nothing", headers=named),
        ):
            answer = await ask(sydney, raw)
            assert answer.status >= 400
            assert answer.request_id != OURS
            assert answer.headers["x-request-id"] == "mine"

    run(main)


def test_a_name_that_is_none_is_not_kept() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        for name in ("x" * 201, "\u00e9", "a\tb", ""):
            raw = post(chat_body(), headers={"x-request-id": "@"})
            answer = await ask(sydney, raw.replace(b"@", name.encode("latin-1")))
            assert answer.status == 200
            assert "x-request-id" not in answer.headers
            event = (await cloud.events(answer.request_id))[0]
            assert event.client_request_id is None

    run(main)


def test_no_engine_is_told_what_a_request_is_called() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        names = {"x-request-id": "mine", "x-isochrone-request": OURS}
        for key in ("secret", "german"):
            await ask(sydney, post(chat_body(), key=key, headers=names))
        asked = [one for site in cloud.sites.values() for e in site.engines for one in e.asked]
        assert len(asked) == 2
        assert "mine" not in json.dumps([one.headers for one in asked])
        assert OURS not in json.dumps([one.headers for one in asked])

    run(main)
