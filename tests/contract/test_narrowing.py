"""Headers that narrow residency, on real gateways: what they refuse, and that the wish travels."""

import asyncio
import json
from dataclasses import replace

import pytest

from isochrone.core.ids import OrgId, PolicyId
from isochrone.core.world.tenant import Policy
from isochrone.wire import peer, subjects
from isochrone.wire.peer import HopHead
from isochrone.wire.peer_codes import proof, started
from tests.fixtures.gateways import (
    MODEL,
    Answer,
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

RESIDENCY, TRANSIT = "x-isochrone-residency", "x-isochrone-transit"


async def three_sites(cloud: GatewayCloud) -> tuple[RunningSite, RunningSite, RunningSite]:
    """Sydney, Frankfurt and Boston; `secret` is bound to nothing, `european` to the EEA."""
    sydney = await cloud.add_site("sydney", "AU")
    frankfurt = await cloud.add_site("frankfurt", "DE")
    boston = await cloud.add_site("boston", "US")
    await cloud.key("secret")
    await cloud.key("european", residency=("EEA",))
    await cloud.ready()
    return sydney, frankfurt, boston


async def narrowed(
    site: RunningSite, residency: str, *, key: str = "secret", stream: bool = False
) -> Answer:
    return await ask(
        site, post(chat_body(stream=stream), key=key, headers={RESIDENCY: residency})
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_served_where_its_own_header_allows(stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt, boston = await three_sites(cloud)
        client = await Client.open(sydney)
        for wish, place in (("DE", "frankfurt"), ("us", "boston"), ("any,-AU,-US", "frankfurt")):
            for _ in range(2):  # the second head is remembered
                headers = {RESIDENCY: wish}
                client.send(post(chat_body(stream=stream), headers=headers))
                answer = await client.answer()
                assert (answer.status, answer.headers["x-isochrone-site"]) == (200, place)
        client.close()
        for engine in (*frankfurt.engines, *boston.engines):
            assert not any("isochrone" in name for asked in engine.asked for name in asked.headers)
        answer = await narrowed(sydney, "DE")
        event = next(
            e for e in await cloud.events(answer.request_id, 2) if e.reporter == "ingress"
        )
        assert cloud.ground_of(event).narrowed == ("DE",)
        assert {(each.site, each.rule) for each in cloud.explained(event).refused} == {
            ("boston", "residency"), ("sydney", "residency"),
        }

    run(main)


def test_a_header_never_widens_what_the_policy_allows() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _, _ = await three_sites(cloud)
        for wish in ("any", "US,DE", "EEA", "site:frankfurt", "any,-operator:acme"):
            answer = await narrowed(sydney, wish, key="european")
            assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "frankfurt")
        for wish in ("US", "AU", "site:boston", "DE,-DE"):
            answer = await narrowed(sydney, wish, key="european")
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (403, "residency")
        assert "narrowed by this request to -DE, DE" in answer.json["error"]["message"]
        await cloud.key("forgetful", caches=("JP",))
        answer = await ask(sydney, post(chat_body(), key="forgetful"))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (403, "residency")
        assert "(any, caches JP)" in answer.json["error"]["message"], "what bound it is said"

    run(main)


@pytest.mark.parametrize(
    "wish", ["", ",", "XX", "DE;FR", "Germany", "-DE", "operator:", "planet:earth", "via:DE",
             "any,DE", "D\u00c9", "DE," * 70],
)
def test_a_header_that_is_not_understood_denies(wish: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _, _ = await three_sites(cloud)
        for request in (
            post(chat_body(), headers={RESIDENCY: wish}),
            get("/v1/models").replace(b"host: test", f"{RESIDENCY}: {wish}".encode("latin-1")
                                      + b"\r\nhost: test"),
        ):
            answer = await ask(sydney, request)
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (
                400, "residency_header",
            )
            assert answer.json["error"]["param"] == RESIDENCY
        assert sydney.engines[0].asked == []

    run(main)


def test_a_header_that_is_given_twice_is_refused() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _, _ = await three_sites(cloud)
        for name in (RESIDENCY, TRANSIT):
            raw = post(chat_body(), headers={name: "DE"})
            twice = raw.replace(b"\r\n\r\n", f"\r\n{name}: any\r\n\r\n".encode(), 1)
            answer = await ask(sydney, twice)
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (
                400, "duplicate_header",
            )

    run(main)


def test_transit_is_narrowed_before_the_body_is_read() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt, _ = await three_sites(cloud)
        client = await Client.open(sydney)
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer secret\r\n"
            b"x-isochrone-transit: EEA\r\ncontent-length: 1000\r\n\r\n"
        )
        answer = await client.answer()
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (403, "transit")
        assert "the site is in AU, the request allows EEA" in answer.json["error"]["message"]
        assert f"{frankfurt.url}/v1" in answer.json["error"]["message"]
        client.close()
        answer = await ask(frankfurt, post(chat_body(), headers={TRANSIT: "EEA"}))
        assert answer.status == 200

    run(main)


def test_models_are_those_of_the_narrowed_set() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _, _ = await three_sites(cloud)
        for wish, names in (("DE", [MODEL]), ("FR", [])):
            line = f"\r\n{RESIDENCY}: {wish}\r\n\r\n".encode()
            answer = await ask(sydney, get("/v1/models").replace(b"\r\n\r\n", line))
            assert [each["id"] for each in answer.json["data"]] == names

    run(main)


def hop(sydney: RunningSite, frankfurt: RunningSite, residency: str) -> bytes:
    """What Sydney's gateway would send to Frankfurt for a request that narrows to `residency`."""
    peers, body = sydney.running.context.peers, chat_body()
    shared = peers.key_for(frankfurt.site)
    assert shared is not None
    sent_at = sydney.clock.wall_ns()
    request_id = sydney.running.context.new_request_id(sent_at)
    head = HopHead(
        "POST", "/v1/chat/completions", "sydney", "frankfurt", "k-secret", "on_demand", residency
    )
    lines = head.lines()
    lines += f"{peer.HOP}: {proof(started(shared, head.covered()), request_id, sent_at, body)}"
    headers = dict(line.split(": ", 1) for line in lines.splitlines())
    return post(body, key=None, headers=headers)


def test_the_wish_travels_under_the_code_and_the_destination_judges_it() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt, _ = await three_sites(cloud)
        assert (await ask(frankfurt, hop(sydney, frankfurt, "DE"))).status == 200
        assert (await ask(frankfurt, hop(sydney, frankfurt, ""))).status == 200
        for wish in ("US", "EEA,-DE", "-site:frankfurt,any"):
            answer = await ask(frankfurt, hop(sydney, frankfurt, wish))
            assert (answer.status, answer.headers[peer.REFUSED]) == (403, "residency")
        answer = await ask(frankfurt, hop(sydney, frankfurt, "GROUP-OF-A-LATER-RELEASE"))
        assert (answer.status, answer.headers[peer.REFUSED]) == (400, "residency_header")
        asked = len(frankfurt.engines[0].asked)
        line = f"{RESIDENCY}: US\r\n".encode()
        raw = hop(sydney, frankfurt, "US")
        assert line in raw
        for forged in (
            raw.replace(line, b""), raw.replace(line, f"{RESIDENCY}: DE\r\n".encode()),
            hop(sydney, frankfurt, "").replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n", 1),
        ):
            answer = await ask(frankfurt, forged)
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (401, "peer_untrusted")
        assert len(frankfurt.engines[0].asked) == asked

    run(main)


def test_a_destination_that_knows_better_refuses_and_the_next_site_serves() -> None:
    """Boston's entry is corrected to Canada, and the ingress does not hear of it."""
    async def main(cloud: GatewayCloud) -> None:
        sydney, _, boston = await three_sites(cloud)
        await cloud.add_site("chicago", "US")
        await cloud.ready()
        view = boston.running.context.view
        corrected = replace(boston.site, country="CA")
        view._sites[boston.site.name] = corrected
        view._recompile()
        served = set()
        for _ in range(8):
            answer = await narrowed(sydney, "US")
            assert answer.status == 200
            served.add(answer.headers["x-isochrone-site"])
        assert served == {"chicago"}
        assert boston.engines[0].asked == []

    run(main)


PROMPT = "wander " * 600


def test_a_prompt_is_remembered_only_where_its_caches_may_be() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt, _ = await three_sites(cloud)
        await cloud.key("wide", residency=("DE",), caches=("any",))
        await cloud.ready()
        body = chat_body(messages=[{"role": "user", "content": PROMPT}])
        for key, headers in (("european", {}), ("secret", {RESIDENCY: "DE"})):
            answer = await ask(sydney, post(body, key=key, headers=headers))
            assert answer.headers["x-isochrone-site"] == "frankfurt"
            assert len(sydney.running.context.prefixes) == 0
        assert (await ask(frankfurt, post(body, key="european"))).status == 200
        assert len(frankfurt.running.context.prefixes) > 0
        assert (await ask(sydney, post(body, key="wide"))).status == 200
        assert len(sydney.running.context.prefixes) > 0

    run(main)


MARK = "only-for-our-own-eyes"


def test_records_leave_out_what_the_policy_of_logs_keeps_in() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt, _ = await three_sites(cloud)
        await cloud.key("quiet", residency=("DE",), logs=("DE",))
        await cloud.ready()
        secret = chat_body(messages=[{"role": "user", "content": f"{MARK} {PROMPT}"}])
        headers = {"x-request-id": MARK}
        for site, body in (
            (sydney, secret), (frankfurt, secret), (frankfurt, chat_body(model=MARK)),
        ):
            answer = await ask(site, post(body, key="quiet", headers=headers))
            assert answer.headers["x-request-id"] == MARK
            for event in await cloud.events(answer.request_id, 2 if site is sydney else 1):
                assert event.client_request_id is None
        for site in (sydney, frankfurt):
            site.running.context.log.flush()
            for name in site.disk.names():
                assert MARK.encode() not in site.disk.read(name)
        stream = cloud.hub.streams[subjects.USAGE_STREAM]
        assert stream.messages
        assert not any(MARK.encode() in each.payload for each in stream.messages.values())
        assert MARK.encode() not in sydney.log_lines, "Sydney is outside of the axis of logs"
        said = [json.loads(line) for line in frankfurt.log_lines.splitlines()]
        assert {line["client_request"] for line in said} == {MARK}, "an admitted site may have it"
        assert MARK not in {line["model"] for line in said}

    run(main)


def test_another_replica_of_a_site_is_not_tried_once_its_policy_is_gone() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=2)
        await cloud.key("bound", residency=("AU",))
        await cloud.ready()
        for engine in sydney.engines:
            engine.hold.clear()
        asking = asyncio.create_task(ask(sydney, post(chat_body(), key="bound")))
        await until(lambda: any(engine.asked for engine in sydney.engines))
        elsewhere = Policy(
            id=PolicyId("p-bound"), org_id=OrgId("org"), residency=("DE",), transit=("any",)
        )
        await cloud.publish(subjects.policy_key(elsewhere.id), elsewhere)
        view = sydney.running.context.view
        await until(lambda: view.table.view.policies[elsewhere.id].residency == ("DE",))
        first = next(engine for engine in sydney.engines if engine.asked)
        first.kill()
        answer = await asking
        assert answer.status in (403, 503)
        assert sum(len(engine.asked) for engine in sydney.engines) == 1

    run(main)
