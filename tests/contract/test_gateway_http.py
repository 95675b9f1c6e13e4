"""One gateway over real sockets: what clients see, what engines get, what is accounted."""

import asyncio
import json
from copy import deepcopy

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
    get,
    post,
    run,
    until,
)


async def one_site(cloud: GatewayCloud, **options: object) -> RunningSite:
    site = await cloud.add_site("frankfurt", "DE", **options)  # type: ignore[arg-type]
    await cloud.key("secret")
    await cloud.ready()
    await until(lambda: site.running.context.view.replicas._by_entry)
    return site


def test_an_answer_says_where_it_ran_and_is_accounted() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        body = chat_body(unknown_field={"deep": [1.50, None]}, temperature=0.25)
        answer = await ask(site, post(body, headers={"x-request-id": "mine"}))
        assert answer.status == 200
        assert answer.json["choices"][0]["message"]["content"] == "word word "
        assert answer.headers["x-isochrone-site"] == "frankfurt"
        assert answer.headers["x-isochrone-country"] == "DE"
        assert answer.headers["x-request-id"] == "mine"
        assert "total;dur=" in answer.headers["server-timing"]
        asked = site.engines[0].asked[0]
        assert asked.headers["authorization"] == "Bearer engine-secret"
        assert asked.json["model"] == "engine-name"
        assert b'"unknown_field":{"deep": [1.5, null]}' in asked.body
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.status, event.client_request_id) == ("finished", 200, "mine")
        assert event.tokens.input_cached == 4
        assert event.tokens.input_uncached == 6
        assert event.tokens.output == 2
        assert event.tokens.source == "engine"
        assert (event.serving_site, event.replica) == ("frankfurt", "frankfurt-tiny-fable-0")
        assert event.decision is not None
        assert cloud.ground_of(event).plaintext_ingress == "DE"

    run(main)


@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_stream_passes_unchanged_but_for_usage(wants_usage: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        options = {"include_usage": True} if wants_usage else None
        answer = await ask(site, post(chat_body(stream=True, stream_options=options)))
        assert answer.status == 200
        assert answer.whole
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.events[-1] == "[DONE]"
        assert ("prompt_tokens" in answer.body.decode()) == wants_usage
        assert [json.loads(e)["choices"][0]["delta"] for e in answer.events[:3]] == [
            {"content": "xxxx"}
        ] * 3
        assert site.engines[0].asked[0].json["stream_options"]["include_usage"] is True
        event = (await cloud.events(answer.request_id))[0]
        assert event.stream
        assert (event.tokens.output, event.tokens.source) == (3, "engine")
        assert event.first_byte_ms is not None

    run(main)


def test_requests_share_a_connection_and_are_answered_in_order() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        client = await Client.open(site)
        client.send(post(chat_body()) + get("/health") + post(chat_body(stream=True)))
        client.send(post(chat_body(), key="wrong", headers={"x-request-id": "4"}))
        first = await client.answer()
        assert first.json["object"] == "chat.completion"
        assert (await client.answer()).json == {"status": "ok"}
        assert (await client.answer()).events[-1] == "[DONE]"
        assert (await client.answer()).status == 401
        client.send(post(chat_body()))
        assert (await client.answer()).status == 200
        assert len(site.engines[0].asked) == 3
        client.close()

    run(main)


def test_a_request_may_come_in_single_bytes() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        client = await Client.open(site)
        for byte in post(chat_body()):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        client.close()

    run(main)


def test_chunked_bodies_and_expect_continue() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        client = await Client.open(site)
        client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer secret\r\n"
            b"transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
        )
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        body = chat_body()
        for piece in (body[:10], body[10:]):
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert site.engines[0].asked[0].json["messages"][0]["content"] == "hello"
        client.close()

    run(main)


def test_old_http_gets_its_stream_without_chunks() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        client = await Client.open(site)
        client.send(post(chat_body(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
        raw = await client.reader.read()
        assert b"transfer-encoding" not in raw
        assert raw.endswith(b"data: [DONE]\n\n")
        client.close()

    run(main)


REFUSED_BODIES = {
    "no json": (b"{", 400, "bad_request"),
    "no model": (b'{"messages":[]}', 400, "bad_request"),
    "n of 0": (chat_body(n=0), 400, "bad_request"),
    "deep": (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "bad_request"),
    "no such model": (chat_body(model="gpt-9"), 404, "model_not_found"),
}


def test_refusals_of_bodies_are_openai_errors_and_accounted() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        for body, status, reason in REFUSED_BODIES.values():
            answer = await ask(site, post(body))
            assert answer.status == status
            assert answer.headers["x-isochrone-reason"] == reason
            assert answer.headers["x-isochrone-site"] == "frankfurt"
            assert "server-timing" in answer.headers
            assert answer.json["error"]["message"]
            assert answer.json["error"]["type"] == "invalid_request_error"
            event = (await cloud.events(answer.request_id))[0]
            assert (event.outcome, event.status, event.tokens.total) == ("refused", status, 0)
        assert site.engines[0].asked == []

    run(main)


HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer secret\r\n"
BAD_REQUESTS = {
    "both framings": (HEAD + "content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}", 400),
    "two lengths": (HEAD + "content-length: 2\r\ncontent-length: 2\r\n\r\n{}", 400),
    "two hosts": (HEAD + "host: u\r\ncontent-length: 2\r\n\r\n{}", 400),
    "two keys": (HEAD + "authorization: Bearer x\r\ncontent-length: 2\r\n\r\n{}", 400),
    "signed length": (HEAD + "content-length: +2\r\n\r\n{}", 400),
    "space before colon": (HEAD + "transfer-encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "unknown coding": (HEAD + "transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "bare line feeds": ("POST /v1/chat/completions HTTP/1.1\nhost: t\n\n", 400),
    "bad chunk": (HEAD + "transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    "no http": ("hello\r\n\r\n", 400),
    "head too large": (HEAD + "x: " + "y" * 40_000 + "\r\n\r\n", 431),
    "endless head": (HEAD + "x: " + "y" * 400_000, 431),
    "too many headers": (HEAD + "".join(f"h{i}: 1\r\n" for i in range(200)) + "\r\n", 431),
    "body too large": (HEAD + "content-length: 2000000\r\n\r\n", 413),
    "chunks too large": (
        HEAD + "transfer-encoding: chunked\r\n\r\n" + ("10000\r\n" + "z" * 65536 + "\r\n") * 20,
        413,
    ),
    "no key": ("POST /v1/embeddings HTTP/1.1\r\nhost: t\r\ncontent-length: 9\r\n\r\n", 401),
    "no post": ("GET /v1/chat/completions HTTP/1.1\r\nhost: t\r\n\r\n", 405),
    "no path": ("GET /etc/passwd HTTP/1.1\r\nhost: t\r\n\r\n", 404),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_what_cannot_be_read_safely_is_refused(case: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud, max_body_bytes=1_000_000)
        raw, status = BAD_REQUESTS[case]
        client = await Client.open(site)
        client.send(raw.encode())
        answer = await client.answer()
        assert answer.status == status
        assert answer.json["error"]["code"]
        assert answer.headers["x-isochrone-request"]
        if status not in (404, 405):
            assert answer.headers["connection"] == "close"
            assert await client.closed()
        assert site.engines[0].asked == []
        client.close()

    run(main)


def test_models_are_those_that_an_allowed_site_serves() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        await cloud.key("french", residency=("FR",))
        await cloud.ready()
        answer = await ask(site, get("/v1/models"))
        assert [model["id"] for model in answer.json["data"]] == [MODEL]
        assert answer.json["data"][0]["created"] == 1_700_000_000
        assert "x-isochrone-request" in answer.headers
        assert (await ask(site, get(f"/v1/models/{MODEL}"))).json["object"] == "model"
        assert (await ask(site, get("/v1/models/other"))).status == 404
        assert (await ask(site, get("/v1/models", key="french"))).json["data"] == []
        assert (await ask(site, get("/v1/models", key="wrong"))).status == 401
        assert (await ask(site, get("/ready", key=None))).status == 200

    run(main)


def test_several_choices_are_counted_by_the_engines_tokenizer() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud, replica={"usage_counts_one_choice": True})
        site.engines[0].one_choice = True
        answer = await ask(site, post(chat_body(n=3)))
        assert len(answer.json["choices"]) == 3
        event = (await cloud.events(answer.request_id))[0]
        assert (event.tokens.output, event.tokens.source) == (2 + 3 + 4, "counted")
        assert event.tokens.input_cached == 4

    run(main)


def test_embeddings_have_input_only() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        model = Model(name=MODEL, kind="embedding", revision="r", context_tokens=9, created_at=0)
        await cloud.publish(subjects.model_key(MODEL), model)
        view = site.running.context.view
        await until(lambda: view.table.view.models[MODEL].kind == "embedding")
        body = json.dumps({"model": MODEL, "input": "hello"}).encode()
        answer = await ask(site, post(body, path="/v1/embeddings"))
        assert answer.json["data"][0]["embedding"] == [0.5, 0.25]
        event = (await cloud.events(answer.request_id))[0]
        assert (event.endpoint, event.tokens.input_uncached, event.tokens.output) == (
            "embeddings", 6, 0
        )

    run(main)


def test_an_engines_error_is_passed_on() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        site.engines[0].status = 400
        answer = await ask(site, post(chat_body()))
        assert (answer.status, answer.json["error"]["message"]) == (400, "no")
        assert answer.headers["x-isochrone-reason"] == "engine_error"
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.tokens.total) == ("engine_error", 0)

    run(main)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_cancels_the_engine(stream: bool) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        engine = site.engines[0]
        engine.hold.clear()
        client = await Client.open(site)
        client.send(post(chat_body(stream=stream)))
        await until(lambda: engine.asked)
        if stream:
            await client.reader.readuntil(b"xxxx")
        client.close()
        await until(lambda: engine.cancelled == 1)
        await until(cloud.all_events)
        event = cloud.all_events()[-1]
        assert (event.outcome, event.tokens.output) == ("client_gone", int(stream))
        assert not site.running.context.exchanges

    run(main)


@pytest.mark.parametrize("how", ["reset", "clean end"])
def test_an_engine_that_dies_in_a_stream_leaves_an_error_event_and_no_end(how: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        if how == "reset":
            site.engines[0].die_after = 2
        else:
            site.engines[0].end_after = 2
        answer = await ask(site, post(chat_body(stream=True)))
        assert answer.status == 200
        assert not answer.whole
        assert "[DONE]" not in answer.events
        assert json.loads(answer.events[-1])["error"]["code"] == "engine_lost"
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.tokens.output) == ("engine_lost", 2)

    run(main)


def test_a_dead_replica_is_replaced_before_the_first_byte() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud, engines=2)
        site.engines[0].kill()
        for _ in range(4):
            answer = await ask(site, post(chat_body()))
            assert answer.status == 200
            event = (await cloud.events(answer.request_id))[0]
            assert event.replica == "frankfurt-tiny-fable-1"

    run(main)


def test_a_dead_site_is_503_in_time_and_heals() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        site.engines[0].kill()
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        answer = await ask(site, post(chat_body()))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["x-isochrone-reason"] == "no_healthy_site"
        assert loop.time() - began_s < 2
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.status, event.serving_site) == ("refused", 503, None)

    run(main)


def test_a_slow_client_pauses_the_engine() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        engine = site.engines[0]
        engine.chunks, engine.chunk_bytes = 400, 100_000
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=2**12)
        writer.write(post(chat_body(stream=True)))
        await reader.readuntil(b"\r\n\r\n")
        sent = -1
        while sent != engine.sent_bytes:  # until the engine stands still
            sent = engine.sent_bytes
            await asyncio.sleep(0.2)
        assert sent < 30_000_000
        got = 0
        while piece := await reader.read(2**20):
            got += len(piece)
            if piece.endswith(b"0\r\n\r\n"):
                break
        assert got > 40_000_000
        writer.transport.abort()

    run(main)


def test_deadlines_end_a_request() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud, first_byte_timeout_s=0.3, total_timeout_s=0.6)
        site.engines[0].hold.clear()
        answer = await ask(site, post(chat_body()))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (504, "first_byte_timeout")
        assert (await cloud.events(answer.request_id))[0].outcome == "timed_out"
        # It did not wait for its turn, so its engine has no more time than others have.
        answer = await ask(site, post(chat_body(service_tier="flex")))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (504, "first_byte_timeout")
        assert (await cloud.events(answer.request_id))[0].class_ == "batch"
        answer = await ask(site, post(chat_body(stream=True)))
        assert json.loads(answer.events[-1])["error"]["code"] == "total_timeout"
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.tokens.output) == ("timed_out", 1)

    run(main)


def test_a_stopping_gateway_finishes_what_it_has() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        site.engines[0].hold.clear()
        idle, busy = await Client.open(site), await Client.open(site)
        busy.send(post(chat_body(stream=True)))
        await busy.reader.readuntil(b"\r\n\r\n")
        site.stop.set()
        assert await idle.closed()
        site.engines[0].hold.set()
        body, whole = await busy._chunks()
        assert whole
        assert body.endswith(b"[DONE]\n\n")
        assert site.task is not None
        await asyncio.wait([site.task])
        site.task.result()

    run(main)


def test_a_request_is_recorded_before_it_is_served() -> None:
    """The gateway dies in a stream: its next run books what the journal knew."""

    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        site.engines[0].hold.clear()
        client = await Client.open(site)
        client.send(post(chat_body(stream=True)))
        await client.reader.readuntil(b"xxxx")
        exchange = next(iter(site.running.context.exchanges))
        await until(lambda: exchange._last_progress)
        site.running.context.journal.flush()  # as the end of the loop's round does
        left = deepcopy(site.disk)  # what a kill would leave behind
        site.bus.down()
        site.stop.set()
        client.close()
        assert site.task is not None
        await asyncio.wait([site.task])
        left.process_died()
        site.disk, site.bus = left, cloud.hub.bus()
        await cloud.start_gateway("frankfurt")
        event = (await cloud.events(exchange.request_id))[0]
        assert (event.outcome, event.reporter) == ("ingress_lost", "recovered")
        assert (event.tokens.output, event.serving_site) == (1, "frankfurt")
        assert event.replica == "frankfurt-tiny-fable-0"

    run(main)


def test_a_full_disk_refuses_work_before_serving_it() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        site.disk.capacity_bytes = 0
        journal = site.running.context.journal
        journal._reserved_bytes = 2**30
        journal._recount()
        answer = await ask(site, post(chat_body()))
        assert (answer.status, answer.headers["x-isochrone-reason"]) == (503, "journal")
        assert site.engines[0].asked == []
        assert (await ask(site, get("/ready"))).status == 503

    run(main)


def test_a_client_that_does_not_read_one_answer_holds_back_the_next() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        engine = site.engines[0]
        engine.chunks, engine.chunk_bytes = 300, 100_000
        reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=2**12)
        writer.write(post(chat_body(stream=True)) * 3)
        sent = -1
        while sent != engine.sent_bytes or not sent:  # until the engine stands still
            sent = engine.sent_bytes
            await asyncio.sleep(0.2)
        assert sent < 40_000_000
        ends = 0
        while ends < 3:
            piece = await reader.read(2**20)
            assert piece
            ends += piece.count(b"[DONE]")
        writer.transport.abort()

    run(main)


def test_another_method_is_named() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await one_site(cloud)
        answer = await ask(site, get("/v1/chat/completions"))
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        answer = await ask(site, post(chat_body(), path="/v1/models"))
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")

    run(main)
