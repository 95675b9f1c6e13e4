"""Several gateways over real sockets: the peer hop, residency under failures, forged peers."""

import asyncio
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.core.ids import SiteName
from isochrone.ports.clock import Clock
from isochrone.wire import peer, subjects
from isochrone.wire.peer_codes import answer_code, started
from tests.fixtures.gateways import (
    MODEL,
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
from tests.fixtures.signed_hops import signed_by
from tests.fixtures.stepped_clock import SteppedClock


async def two_sites(cloud: GatewayCloud) -> tuple[RunningSite, RunningSite]:
    """Sydney, and Frankfurt, to which the key `german` is bound."""
    sydney = await cloud.add_site("sydney", "AU")
    frankfurt = await cloud.add_site("frankfurt", "DE")
    await cloud.key("secret")
    await cloud.key("german", residency=("DE",))
    await cloud.ready()
    return sydney, frankfurt


@pytest.mark.parametrize("stream", [False, True])
def test_a_bound_request_is_served_where_its_policy_allows(stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        client = await Client.open(sydney)
        for _ in range(3):  # on one connection, and on one between the gateways
            client.send(post(chat_body(stream=stream), key="german"))
            answer = await client.answer()
            assert (answer.status, answer.whole) == (200, True)
            assert answer.headers["x-isochrone-site"] == "frankfurt"
            assert answer.headers["x-isochrone-country"] == "DE"
            assert peer.HOP not in answer.headers
            assert "prompt_tokens" not in answer.body.decode() or not stream
            events = await cloud.events(answer.request_id, 2)
            by = {event.reporter: event for event in events}
            assert by["ingress"].tokens == by["evidence"].tokens
            assert by["ingress"].tokens.output == (3 if stream else 2)
            for event in events:
                assert (event.ingress_site, event.serving_site) == ("sydney", "frankfurt")
                assert (event.ingress_country, event.outcome) == ("AU", "finished")
                assert event.replica == "frankfurt-tiny-fable-0"
        assert sydney.engines[0].asked == []
        assert len(frankfurt.running.server.connections) == 1
        client.close()

    run(main)


def test_choices_are_counted_by_the_serving_site() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        await cloud.deploy("frankfurt", MODEL, {"usage_counts_one_choice": True})
        frankfurt.engines[0].one_choice = True
        answer = await ask(sydney, post(chat_body(n=3), key="german"))
        for event in await cloud.events(answer.request_id, 2):
            assert (event.tokens.output, event.tokens.source) == (9, "counted")

    run(main)


def test_the_emulated_distance_is_felt() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_sites(cloud)
        await cloud.link("sydney", "frankfurt", 120.0)
        context = sydney.running.context
        await until(lambda: context.view.table.view.links)
        for _ in range(2):
            answer = await ask(sydney, post(chat_body(stream=True), key="german"))
            event = next(
                e for e in await cloud.events(answer.request_id, 2) if e.reporter == "ingress"
            )
            assert event.first_byte_ms is not None
            assert event.first_byte_ms >= 120
            assert cloud.explained(event).candidates[0].rtt_source == "emulated"

    run(main)


def test_transit_is_refused_from_the_head_alone() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        await cloud.key("closed", residency=("DE",), transit=("DE",))
        await cloud.ready()
        client = await Client.open(sydney)
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer closed\r\n"
            b"content-length: 1000\r\n\r\n"
        )
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (403, "close")
        assert answer.headers["x-isochrone-reason"] == "transit"
        assert f"{frankfurt.url}/v1" in answer.json["error"]["message"]
        assert sydney.url not in answer.json["error"]["message"]
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.reason) == ("refused", "transit")
        assert (await ask(frankfurt, post(chat_body(), key="closed"))).status == 200
        client.close()

    run(main)


def test_no_allowed_site_is_403() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_sites(cloud)
        await cloud.key("french", residency=("FR",))
        await cloud.ready()
        answer = await ask(sydney, post(chat_body(), key="french"))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (403, "residency")
        event = (await cloud.events(answer.request_id))[0]
        assert {r.rule for r in cloud.explained(event).refused} == {"residency"}

    run(main)


def test_a_bound_key_waits_for_its_site_and_is_never_served_elsewhere() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        frankfurt.stop.set()
        assert frankfurt.task is not None
        await asyncio.wait([frankfurt.task])
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        bound, unbound = await asyncio.gather(
            ask(sydney, post(chat_body(), key="german")), ask(sydney, post(chat_body()))
        )
        assert (bound.status, bound.headers["retry-after"]) == (503, "1")
        assert loop.time() - began_s < 2
        assert (unbound.status, unbound.headers["x-isochrone-site"]) == (200, "sydney")
        await cloud.start_gateway("frankfurt")
        await cloud.ready()

        async def healed() -> bool:
            return (await ask(sydney, post(chat_body(), key="german"))).status == 200

        while not await healed():
            await asyncio.sleep(0.1)
        asked = [asked.json for asked in sydney.engines[0].asked]
        assert len(asked) == 1

    run(main)


def test_a_dead_site_is_replaced_by_another_allowed_one() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress = await cloud.add_site("lisbon", "PT", engines=0)
        for name, country in (("paris", "FR"), ("berlin", "DE"), ("boston", "US")):
            await cloud.add_site(name, country)
        await cloud.key("secret", residency=("EU",))
        await cloud.ready()
        paris = cloud.sites["paris"]
        paris.stop.set()
        assert paris.task is not None
        await asyncio.wait([paris.task])
        tried = 0
        for _ in range(6):
            answer = await ask(ingress, post(chat_body()))
            assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "berlin")
            events = await cloud.events(answer.request_id, 2)
            decision = next(e for e in events if e.reporter == "ingress").decision
            assert decision is not None
            tried += len(decision.tried)
        assert tried <= 2  # after the first failure it is known to be unreachable

    run(main)


def test_a_site_without_replica_refuses_with_a_reason_and_the_next_one_serves() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress = await cloud.add_site("lisbon", "PT", engines=0)
        berlin = await cloud.add_site("berlin", "DE")
        await cloud.add_site("paris", "FR")
        await cloud.key("secret")
        await cloud.ready()
        berlin.engines[0].kill()
        served = set()
        for _ in range(6):
            answer = await ask(ingress, post(chat_body()))
            assert answer.status == 200
            served.add(answer.headers["x-isochrone-site"])
        assert served == {"paris"}

    run(main)


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_dies_behind_a_hop(stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        engine = frankfurt.engines[0]
        if stream:
            engine.die_after = 2
        else:
            engine.hold.clear()
        asking = asyncio.create_task(ask(sydney, post(chat_body(stream=stream), key="german")))
        if not stream:
            await until(lambda: engine.asked)
            engine.kill()
        answer = await asking
        if not stream:
            assert answer.status == 503
            return
        assert not answer.whole
        assert json.loads(answer.events[-1])["error"]["code"] == "engine_lost"
        assert sum("error" in event for event in answer.events) == 1
        for event in await cloud.events(answer.request_id, 2):
            assert (event.outcome, event.tokens.output) == ("engine_lost", 2)

    run(main)


def test_a_client_that_goes_cancels_the_engine_behind_the_hop() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        engine = frankfurt.engines[0]
        engine.hold.clear()
        client = await Client.open(sydney)
        client.send(post(chat_body(stream=True), key="german"))
        await client.reader.readuntil(b"xxxx")
        client.close()
        await until(lambda: engine.cancelled == 1)
        await until(lambda: len(cloud.all_events()) == 2)
        assert {event.outcome for event in cloud.all_events()} == {"client_gone"}

    run(main)


def test_a_site_counts_what_was_pushed_to_it_and_nobody_can_say_so_unsigned() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)

        def pushed() -> list[int]:
            return [each.pushed for each in frankfurt.running.context.queues.places.values()]

        assert (await ask(frankfurt, signed_by(sydney, frankfurt))).status == 200
        assert pushed() == [0]
        raw = signed_by(sydney, frankfurt, pushed=True)
        answer = await ask(frankfurt, raw.replace(b"p ", b" ", 1) if b"p " in raw else raw)
        assert answer.status == 401
        assert (await ask(frankfurt, signed_by(sydney, frankfurt, pushed=True))).status == 200
        assert pushed() == [1]

    run(main)


def test_the_destination_checks_everything_again() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        await cloud.key("australian", residency=("AU",))
        await cloud.ready()
        good = signed_by(sydney, frankfurt)
        answer = await ask(frankfurt, good)
        assert answer.status == 200
        shared = sydney.running.context.peers.key_for(frankfurt.site)
        assert shared is not None
        request_id = good.partition(b"x-isochrone-hop: ")[2].partition(b" ")[0].decode()
        said, _, code = answer.headers[peer.HOP].rpartition(" ")
        counts, _, replica = said.partition(" ")
        assert counts == "6,4,2,engine"
        assert replica.startswith("frankfurt")
        assert code == answer_code(started(shared), request_id, "frankfurt", 200, said)

        other_body = good.replace(b'"hello"', b'"HELLO"')
        other_class = signed_by(sydney, frankfurt).replace(b"on_demand", b"reserved!")
        untrusted = {
            "replayed": good,
            "body": other_body,
            "class": other_class,
            "old": signed_by(sydney, frankfurt, age_s=31),
            "future": signed_by(sydney, frankfurt, age_s=-31),
            "for another site": signed_by(sydney, frankfurt, serving="paris"),
            "unknown sender": signed_by(sydney, frankfurt).replace(b": sydney", b": oslo42"),
        }
        for raw in untrusted.values():
            answer = await ask(frankfurt, raw)
            assert (answer.status, answer.headers["x-isochrone-reason"]) == (401, "peer_untrusted")
            assert "x-isochrone-code" not in answer.headers
        assert len(frankfurt.engines[0].asked) == 1

        answer = await ask(frankfurt, signed_by(sydney, frankfurt, key="australian"))
        assert (answer.status, answer.headers["x-isochrone-refused"]) == (403, "residency")
        answer = await ask(frankfurt, signed_by(sydney, frankfurt, key="nobody"))
        assert (answer.status, answer.headers["x-isochrone-refused"]) == (403, "key_unknown")
        assert len(frankfurt.engines[0].asked) == 1

    run(main)


def test_a_site_that_refused_a_request_is_not_asked_again() -> None:
    """The ingress says on the hop where the request was; for the engine that is nothing."""
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        hop = signed_by(sydney, frankfurt)
        answer = await ask(frankfurt, hop.replace(b"\r\n\r\n", b"\r\nx-isochrone-tried: paris, "
                                                  b"frankfurt\r\n\r\n", 1))
        assert (answer.status, answer.headers["x-isochrone-refused"]) == (503, "tried_before")
        assert frankfurt.engines[0].asked == []
        hop = signed_by(sydney, frankfurt)
        answer = await ask(frankfurt, hop.replace(b"\r\n\r\n", b"\r\nx-isochrone-tried: paris"
                                                  b"\r\n\r\n", 1))
        assert answer.status == 200
        assert not any("tried" in name for name in frankfurt.engines[0].asked[0].headers)

    run(main)


def test_a_request_that_was_refused_says_where_on_the_next_hop() -> None:
    """Paris is near and has no replica; what stands in Berlin's place only listens."""
    async def main(cloud: GatewayCloud) -> None:
        ingress = await cloud.add_site("lisbon", "PT", engines=0)
        paris, berlin = await cloud.add_site("paris", "FR"), await cloud.add_site("berlin", "DE")
        await cloud.key("secret")
        await cloud.link("lisbon", "berlin", 600.0)  # whatever the engines measure
        await cloud.ready()
        heads: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.close()

        server = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await cloud.publish(subjects.site_key("berlin"), replace(berlin.site, port=port))
        view = ingress.running.context.view
        await until(lambda: (site := view.site(berlin.site.name)) and site.port == port)
        await until(lambda: (far := view.table.open_site(berlin.site.name)) and far.rtt_ms == 600)
        paris.engines[0].kill()
        answer = await ask(ingress, post(chat_body()))
        assert answer.status == 503
        assert [b"\r\nx-isochrone-tried: paris\r\n" in head for head in heads] == [True]
        server.close()

    run(main)


def test_headers_of_a_hop_from_a_client_are_ignored() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        await cloud.key("australian", residency=("AU",))
        await cloud.ready()
        forged = {
            "x-isochrone-request": "00000000-0000-7000-8000-000000000000",
            "x-isochrone-peer": "frankfurt", "x-isochrone-key": "k-german",
            "x-isochrone-class": "reserved", "x-isochrone-sent-at": "1",
            "x-isochrone-code": "00", "x-isochrone-refused": "residency",
        }
        answer = await ask(sydney, post(chat_body(), key="australian", headers=forged))
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "sydney")
        assert answer.request_id != forged["x-isochrone-request"]
        assert not any("isochrone" in name for name in sydney.engines[0].asked[0].headers)
        event = (await cloud.events(answer.request_id))[0]
        assert (event.key_id, event.class_, event.reporter) == (
            "k-australian", "on_demand", "ingress"
        )
        for site in (sydney, frankfurt):
            answer = await ask(site, post(chat_body(), key=None, headers=forged))
            assert answer.status == 401
        assert (await ask(sydney, get("/v1/models", key=None))).status == 401

    run(main)


def test_an_answer_without_the_peers_code_is_not_believed() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, frankfurt = await two_sites(cloud)
        impostor = ScriptedEngine()
        await impostor.start()
        moved = replace(frankfurt.site, port=impostor.port)
        await cloud.publish(subjects.site_key("frankfurt"), moved)
        context = sydney.running.context
        name = SiteName("frankfurt")
        await until(lambda: (site := context.view.site(name)) and site.port == impostor.port)
        answer = await ask(sydney, post(chat_body(), key="german"))
        assert answer.status == 503
        assert len(impostor.asked) == 1
        assert b"german" not in json.dumps(impostor.asked[0].headers).encode().replace(
            b"k-german", b""
        )
        impostor.kill()

    run(main)


class SkewedClock:
    """A wall clock that is wrong by a minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def wall_ns(self) -> int:
        return self._clock.wall_ns() + 60_000_000_000

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()


def test_a_gateway_with_a_wrong_clock_is_not_trusted() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", clock=SkewedClock(cloud.clock))
        frankfurt = await cloud.add_site("frankfurt", "DE")
        await cloud.key("german", residency=("DE",))
        await cloud.ready()
        answer = await ask(sydney, post(chat_body(), key="german"))
        assert answer.status == 503
        assert frankfurt.engines[0].asked == []

    run(main)


def test_a_body_that_takes_its_time_says_nothing_of_the_clock() -> None:
    async def main(cloud: GatewayCloud) -> None:
        clock = SteppedClock()
        sydney = await cloud.add_site("sydney", "AU", clock=clock)
        frankfurt = await cloud.add_site("frankfurt", "DE", clock=clock)
        await cloud.key("german", residency=("DE",))
        await cloud.ready()
        skew = frankfurt.running.context.skew
        for _ in range(4):
            raw, client = signed_by(sydney, frankfurt), await Client.open(frankfurt)
            client.send(raw[:-5])
            await until(lambda: frankfurt.running.server.is_waited_for)
            clock.ahead_ns += 5_000_000_000  # on a link that is slow
            client.send(raw[-5:])
            assert (await client.answer()).status == 200
            client.close()
        skew.sweep()
        offset_ms = skew.offset_ms()
        assert offset_ms is not None
        assert abs(offset_ms) < 500
        assert not skew.alarmed

    run(main)


def test_entries_of_the_view_that_control_did_not_sign_are_refused() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_sites(cloud)
        context = sydney.running.context
        impostor = replace(sydney.site, country="DE")
        key = subjects.site_key("sydney")
        old = cloud.hub.buckets[subjects.VIEW_BUCKET].values[key][0]
        await cloud.publish(key, impostor, signer=Ed25519PrivateKey.generate())
        await cloud.publish(subjects.model_key("other"), impostor)  # another noun
        await cloud.publish(key, replace(sydney.site, operator="new"))
        await until(lambda: (own := context.view.own) and own.operator == "new")
        await cloud.control.put(subjects.VIEW_BUCKET, key, old)  # older serial
        await cloud.publish(subjects.site_key("sydney"), replace(sydney.site, operator="newer"))
        await until(lambda: (own := context.view.own) and own.operator == "newer")
        assert context.country == "AU"

    run(main)


def test_a_revoked_key_ends_at_once_and_nats_may_be_away() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney, _ = await two_sites(cloud)
        key = cloud.keys.pop("german")
        await cloud.control.delete(
            subjects.VIEW_BUCKET, subjects.keys_key(key.secret_sha256[:2])
        )
        await until(lambda: sydney.running.context.view.keys.by_id(key.id) is None)
        assert (await ask(sydney, post(chat_body(), key="german"))).status == 401
        sydney.bus.down()
        assert (await ask(sydney, post(chat_body()))).status == 200
        assert (await ask(sydney, post(chat_body(), key="wrong"))).status == 401
        sydney.bus.up()
        await until(lambda: any(e.reporter == "ingress" for e in cloud.all_events()))

    run(main)
