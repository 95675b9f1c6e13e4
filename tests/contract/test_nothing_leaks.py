"""Prompts, answers and secrets occur in nothing that a gateway writes down or tells of itself.

Marked requests go through every route and every failure; then everything that was written is
searched: the request log, the events of the process, spans, metrics, the journal, usage.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from isochrone.adapters.telemetry.otlp import OtlpSpans
from isochrone.core.world.model import ALL_ENDPOINTS, Model
from isochrone.core.world.tenant import Limits
from isochrone.gateway.surface import PATHS
from isochrone.gateway.view_store import NAME as VIEW_FILE
from isochrone.ports.telemetry import Span, SpanCounts
from isochrone.wire import subjects
from tests.fixtures.collector import Collector
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
from tests.fixtures.scripted_engine import Asked, ScriptedEngine

PROMPT = "marked-prompt"
ANSWER = "marked-answer"
KEY = "marked-key"
ENGINE_KEY = "marked-engine-key"
OTHERS = "marked-credential"  # what clients send besides, in places where secrets are found
MARKS = (PROMPT, ANSWER, KEY, ENGINE_KEY, OTHERS)
IDS = (f"k-{KEY}", f"p-{KEY}")  # of the key and its policy, which are no secrets

SAID = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
BODIES: dict[str, dict[str, Any]] = {
    "chat.completions": {**SAID, "tools": [{"name": PROMPT}], "user": PROMPT},
    "completions": {"model": MODEL, "prompt": PROMPT, "suffix": PROMPT},
    "embeddings": {"model": MODEL, "input": [PROMPT]},
    "responses": {"model": MODEL, "input": PROMPT, "instructions": PROMPT},
    "messages": {**SAID, "system": PROMPT, "max_tokens": 5},
}
HEADERS = {
    "cookie": OTHERS, "x-custom": OTHERS, "proxy-authorization": OTHERS, "user-agent": OTHERS,
    "openai-organization": OTHERS, "traceparent": OTHERS, "tracestate": OTHERS,
}
HOW = ("echo", "error", "garbage", "large", "error_event", "dies", "hangs_up", "not_json")


@dataclass(slots=True, kw_only=True)
class Echo(ScriptedEngine):
    """An engine that says the prompt, and an answer, wherever an engine can say something."""

    how: str = "echo"

    async def _answer(
        self, asked: Asked, writer: asyncio.StreamWriter, reader: asyncio.StreamReader
    ) -> None:
        self.asked.append(asked)
        text = f"{PROMPT} {ANSWER} {ENGINE_KEY}"
        status, body = 200, json.dumps({"choices": [{"text": text}], "error": text}).encode()
        if self.how == "garbage":
            writer.write(f"HTTP/1.1 {text}\r\n{text}\r\n\r\n".encode())
            return
        if self.how == "hangs_up":
            writer.transport.abort()
            raise ConnectionResetError
        if self.how == "error":
            status, body = 500, json.dumps({"error": {"message": text, "code": 500}}).encode()
        elif self.how == "not_json":
            body = text.encode()
        elif self.how == "large":
            body = text.encode() * 10_000
        if json.loads(asked.body).get("stream") and self.how in ("error_event", "dies", "echo"):
            self._tell(writer, text)
            return
        head = (
            f"HTTP/1.1 {status} {text}\r\ncontent-type: application/json\r\nx-said: {text}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)

    def _tell(self, writer: asyncio.StreamWriter, text: str) -> None:
        events = [{"choices": [{"index": 0, "delta": {"content": text}}]}]
        if self.how == "error_event":
            events.append({"error": {"message": text}})  # type: ignore[dict-item]
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        if self.how == "echo":
            data += "data: [DONE]\n\n"
        end = "" if self.how == "dies" else "0\r\n\r\n"
        writer.write(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            f"transfer-encoding: chunked\r\n\r\n{len(data):x}\r\n{data}\r\n{end}".encode()
        )
        if self.how == "dies":
            writer.close()


class Everything:
    """A sink of spans that also sends them to a collector."""

    def __init__(self, collector: Collector) -> None:
        self.spans: list[Span] = []
        self._otlp = OtlpSpans(
            collector.url, service="gateway", version="1", instance="1", every_s=600.0
        )

    def take(self, span: Span) -> None:
        self.spans.append(span)
        self._otlp.take(span)

    def counts(self) -> SpanCounts:
        return self._otlp.counts()

    def close(self) -> None:
        self._otlp.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


async def restart(cloud: GatewayCloud, name: str, sink: Everything) -> RunningSite:
    """The site's gateway anew, with this sink for its spans."""
    site = cloud.sites[name]
    site.spans = sink  # type: ignore[assignment]
    site.stop.set()
    assert site.task is not None
    await site.task
    await cloud.start_gateway(name)
    return site


async def engine_at(cloud: GatewayCloud, site: RunningSite) -> Echo:
    engine = Echo()
    await engine.start()
    site.engines.append(engine)
    await cloud.deploy(
        site.site.name, MODEL, {"engine_key": ENGINE_KEY, "endpoints": ALL_ENDPOINTS}
    )
    return engine


def refused() -> Iterator[bytes]:
    """Requests that no engine sees."""
    body = json.dumps(SAID).encode()
    url = f"?api_key={OTHERS}&prompt={PROMPT}"
    yield post(body, key=f"{OTHERS}-unknown")
    yield post(body, key=None, headers={"x-api-key": OTHERS})
    yield post(body, key=None, headers={"authorization": f"Basic {OTHERS}"})
    yield post(body, key="bound")
    yield post(body, key=KEY, path=f"/v1/unknown{url}")
    yield get(f"/v1/chat/completions{url}", key=KEY)
    yield get(f"/v1/models{url}", key=KEY)
    yield get(f"/health{url}", key=KEY)
    yield post(body[:-1], key=KEY)
    yield post(json.dumps({**SAID, "model": [PROMPT]}).encode(), key=KEY)
    yield post(json.dumps({**SAID, "n": PROMPT}).encode(), key=KEY)
    yield post(json.dumps({**SAID, "stream": PROMPT}).encode(), key=KEY)
    yield post(json.dumps({**BODIES["responses"], "previous_response_id": PROMPT}).encode(),
               key=KEY, path=PATHS["responses"])
    yield post(PROMPT.encode(), key=KEY)
    yield post(PROMPT.encode() * 100_000, key=KEY)
    yield post(body, key=KEY, headers={"x-request-id": f"{OTHERS} \x7f"})
    yield post(body, key=KEY, headers={"host": OTHERS, "content-length": "12x"})
    yield post(body, key=KEY, headers={"x-isochrone-code": OTHERS, "x-isochrone-peer": "berlin"})
    yield post(body, key=None, headers={"x-isochrone-code": OTHERS, "x-isochrone-peer": OTHERS})
    yield f"{PROMPT} {OTHERS}\r\n\r\n".encode()
    yield f"POST /v1/chat/completions HTTP/1.1\r\n{OTHERS}\r\n\r\n".encode()


async def become_embedding(cloud: GatewayCloud, *sites: RunningSite) -> None:
    """The model is one for embeddings from now on."""
    def models() -> Iterator[Model]:
        return (site.running.context.view.table.view.models[MODEL] for site in sites)

    await cloud.publish(subjects.model_key(MODEL), replace(next(models()), kind="embedding"))
    await until(lambda: all(model.kind == "embedding" for model in models()))


async def ask_everything(near: RunningSite, engine: Echo, streams: bool) -> None:
    for path, body in ((PATHS[endpoint], BODIES[endpoint]) for endpoint in ALL_ENDPOINTS):
        raw = post(
            json.dumps({**body, "stream": streams}).encode(), key=KEY, path=path, headers=HEADERS
        )
        for engine.how in HOW:
            client = await Client.open(near)
            client.send(raw)
            await client.answer()
            client.close()


async def leave_early(near: RunningSite, engine: Echo) -> None:
    """A client that is gone before its answer."""
    before = len(near.log_lines)
    engine.how = "echo"
    client = await Client.open(near)
    client.send(post(chat_body(messages=SAID["messages"]), key=KEY))
    client.close()
    client = await Client.open(near)
    client.send(post(json.dumps(SAID).encode(), key=KEY)[:-5])
    client.close()
    await until(lambda: len(near.log_lines) > before)


async def metrics_text(site: RunningSite) -> bytes:
    server = site.running.metrics
    assert server is not None
    client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
    client.send(get("/metrics"))
    answer = await client.answer()
    client.close()
    return answer.body


def assert_unmarked(name: str, content: bytes) -> None:
    for known in IDS:
        content = content.replace(known.encode(), b"")
    for mark in MARKS:
        at = content.find(mark.encode())
        assert at < 0, f"{mark!r} in {name}: ...{content[max(at - 300, 0) : at + 100]!r}..."


def test_no_prompt_answer_or_secret_is_ever_written(
    collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    written: dict[str, bytes] = {}

    async def main(cloud: GatewayCloud) -> None:
        sink = Everything(collector)
        settings: dict[str, Any] = {
            "metrics_port": 0, "max_answer_bytes": 100_000, "max_body_bytes": 200_000,
            # The engine fails all the time, and is to be asked again all the same.
            "breaker_first_hold_s": 1e-6, "breaker_longest_hold_s": 1e-6, "retry_min_per_s": 1e4,
        }
        for name, country in (("sydney", "AU"), ("berlin", "DE")):
            await cloud.add_site(name, country, engines=0, log_level="debug", **settings)
            await restart(cloud, name, sink)
        near, far = cloud.sites["sydney"], cloud.sites["berlin"]
        far.endpoints = ALL_ENDPOINTS
        engine = await engine_at(cloud, far)
        await cloud.key(KEY, limits=Limits(tokens_per_min=10**9))
        await cloud.key("bound", residency=("JP",))
        await cloud.ready()
        served = near.running.context.endpoints
        await until(lambda: any("messages" in each for each in served.of(MODEL)))
        for raw in refused():
            await ask(near, raw)
        for streams in (False, True):
            await ask_everything(near, engine, streams)
            await ask_everything(far, engine, streams)
        await leave_early(near, engine)
        await become_embedding(cloud, near, far)
        await ask_everything(near, engine, streams=False)
        await until(lambda: not near.running.context.exchanges)
        for name, site in cloud.sites.items():
            written[f"metrics of {name}"] = await metrics_text(site)
            written[f"journal of {name}"] = b"".join(
                site.disk.read(file) for file in site.disk.names() if file != VIEW_FILE
            )
        messages = cloud.hub.streams[subjects.USAGE_STREAM].messages
        await until(lambda: len(messages) > 5)
        for site in cloud.sites.values():
            site.stop.set()
            assert site.task is not None
            await site.task
        await asyncio.to_thread(sink.close)
        written["usage"] = b"".join(message.payload for message in messages.values())
        written["spans"] = repr(sink.spans).encode()
        written["spans at the collector"] = collector.raw
        for name, site in cloud.sites.items():
            written[f"log of {name}"] = site.log_lines
        assert {asked.path for asked in engine.asked} == set(PATHS.values())
        assert len(engine.asked) >= 2 * 2 * len(HOW) * (len(PATHS) - 1) + len(HOW)

    run(main)
    output = capfd.readouterr()
    written["events of the processes"] = (output.out + output.err).encode()
    for name, content in written.items():
        assert len(content) > 200, f"{name}: nothing was written, so nothing was shown"
        assert_unmarked(name, content)
