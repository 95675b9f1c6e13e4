"""Metrics of real gateways: all that is declared is exposed, and moves when its event happens."""

import asyncio
import gc
from collections.abc import Callable
from typing import TypeVar

import pytest

from isochrone.adapters.network.sockets import SocketNetwork
from isochrone.core.ids import SiteName
from isochrone.core.world.tenant import Limits
from isochrone.gateway import metrics
from isochrone.gateway.gauges import Gauges
from isochrone.gateway.metrics import METRICS
from isochrone.ports.network import Address, Certificate, Listener, Party
from tests.fixtures.gateways import (
    Client,
    GatewayCloud,
    ask,
    chat_body,
    get,
    post,
    run,
    until,
)
from tests.fixtures.scrapes import scrape, scraped
from tests.fixtures.signed_hops import signed_by
from tests.fixtures.stepped_clock import SteppedClock
from tests.fixtures.tellers import AT, Fate
from tests.fixtures.tellers import body as tale
from tests.fixtures.tellers import site as tellers_site

P = TypeVar("P", bound=Party)


# -- scraping --------------------------------------------------------------------------------------


def test_everything_declared_is_exposed_with_help_type_and_unit() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        found = (await scrape(site)).families
        assert len(found) == len(METRICS)
        for metric in METRICS:
            name = metric.name.removesuffix("_total") if metric.kind == "counter" else metric.name
            said = found[name]
            assert (said.type, said.unit, said.documentation) == (
                metric.kind, metric.unit, metric.help
            )
            for sample in said.samples:
                assert set(sample.labels) - {"le"} == set(metric.labels)
        plain = (await scraped(site, "text/plain")).decode()
        for metric in METRICS:
            assert f"# HELP {metric.name} {metric.help}\n" in plain
            assert f"# TYPE {metric.name} {metric.kind}\n" in plain

    run(main)


def test_customers_cannot_read_metrics_and_scrapers_reach_nothing_else() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        server = site.running.metrics
        assert server is not None
        assert server.port != site.port
        key = await cloud.key("secret")
        await cloud.ready()
        assert (await ask(site, get("/metrics", key=key))).status == 404
        await scraped(site, "text/plain", path="/v1/models")
        client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
        client.send(post(b"", path="/metrics"))
        assert (await client.answer()).status == 405
        client.send(b"nonsense\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed()
        off = await cloud.add_site("berlin", "DE")
        assert off.running.metrics is None

    run(main)


class PortsOnly:
    """A network that notes where somebody wants to listen, and listens anywhere."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self._network = SocketNetwork()

    async def listen(
        self, factory: Callable[[], Party], host: str, port: int, *,
        tls: Certificate | None = None,
    ) -> Listener:
        self.asked.append((host, port))
        return await self._network.listen(factory, "127.0.0.1", 0, tls=tls)

    async def connect(
        self, factory: Callable[[], P], address: Address, *, timeout_s: float
    ) -> P:
        return await self._network.connect(factory, address, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("wanted", "worker", "asked"), [(9400, 0, 9400), (9400, 3, 9403), (0, 3, 0)]
)
def test_each_worker_has_a_port_of_its_own(wanted: int, worker: int, asked: int) -> None:
    async def main(cloud: GatewayCloud) -> None:
        network = PortsOnly()
        cloud.network = network  # type: ignore[assignment]
        site = await cloud.add_site(
            "sydney", "AU", metrics_port=wanted, metrics_host="::1", worker=worker
        )
        assert ("::1", asked) in network.asked
        await cloud.key("secret")
        await cloud.ready()
        assert (await ask(site, post(chat_body()))).status == 200
        assert (await scrape(site)).sum(metrics.INFO, worker=str(worker)) == 1
        await until(lambda: f'"worker":{worker},'.encode() in site.log_lines)

    run(main)


def test_a_scrape_that_fails_does_not_end_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        server = site.running.metrics
        assert server is not None
        monkeypatch.setattr(Gauges, "_knowledge", None)
        await until(lambda: site.running.context.loads.of(SiteName("sydney")))
        client = Client(*await asyncio.open_connection("127.0.0.1", server.port))
        client.send(get("/metrics"))
        assert (await client.answer()).status == 500
        client.close()
        assert (await ask(site, get("/health"))).status == 200

    run(main)


# -- metrics move ----------------------------------------------------------------------------------


def test_what_requests_move() -> None:
    async def main(cloud: GatewayCloud) -> None:
        near = await cloud.add_site("sydney", "AU", engines=0, metrics_port=0)
        far = await cloud.add_site("berlin", "DE", metrics_port=0)
        await cloud.key("secret")
        await cloud.link("sydney", "berlin", 4.0)
        await cloud.ready()
        for stream in (True, False):
            answer = await ask(near, post(chat_body(stream=stream)))
            await cloud.events(answer.request_id, 2)
        client, peer = await scrape(near), await scrape(far)
        done = {"endpoint": "chat.completions", "model": "tiny-fable", "class": "on_demand",
                "outcome": "finished", "status": "200", "site": "berlin"}
        assert client.sum(metrics.REQUESTS, source="client", **done) == 2
        assert peer.sum(metrics.REQUESTS, source="peer", **done) == 2
        assert client.sum(metrics.REQUESTS) == peer.sum(metrics.REQUESTS) == 2
        for scraped_, source in ((client, "client"), (peer, "peer")):
            shape = {"model": "tiny-fable", "source": source}
            assert scraped_.sum(metrics.TOKENS, kind="input_uncached", **shape) == 12
            assert scraped_.sum(metrics.TOKENS, kind="input_cached", **shape) == 8
            assert scraped_.sum(metrics.TOKENS, kind="output", **shape) == 5
            assert scraped_.sum(metrics.TOKEN_REPORTS, counted="engine", source=source) == 2
            assert scraped_.sum(metrics.PREFIX_HITS, **shape) == 2
            assert scraped_.sum(metrics.DURATION, **shape) == 2
            assert scraped_.sum(metrics.FIRST_BYTE, **shape) == 1
            assert scraped_.sum(metrics.ADDED, source=source) == 2
            assert scraped_.sum(metrics.RECEIVING, source=source) == 2
            assert scraped_.sum(metrics.ATTEMPTS, source=source) == 2
        assert client.sum(metrics.PREDICTION_RATIO, model="tiny-fable") == 1
        assert peer.sum(metrics.PREDICTION_RATIO) == 0

    run(main)


def test_what_refusals_move() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        await cloud.key("secret")
        await cloud.key("limited", limits=Limits(requests_per_min=1))
        await cloud.key("bound", residency=("DE",))
        await cloud.ready()
        asked = {
            "model_not_found": post(chat_body(model="made-up")),
            "bad_request": post(b"{}"),
            "residency": post(chat_body(), key="bound"),
        }
        for raw in asked.values():
            assert (await ask(site, raw)).status in (400, 403, 404)
        assert (await ask(site, post(chat_body(), key="limited"))).status == 200
        assert (await ask(site, post(chat_body(), key="limited"))).status == 429
        assert (await ask(site, post(chat_body(), key="unknown"))).status == 401
        said = await scrape(site)
        for reason in (*asked, "rate_limit_requests"):
            assert said.sum(metrics.REFUSALS, source="client", reason=reason) == 1, reason
        assert said.sum(metrics.REFUSALS) == 4
        assert said.sum(metrics.REQUESTS, outcome="refused") == 4
        assert said.sum(metrics.REQUESTS, model="other", status="404") == 1
        assert said.sum(metrics.ANSWERS, status="401", reason="invalid_api_key") == 1
        assert said.sum(metrics.ATTEMPTS) == 1

    run(main)


def test_what_refused_hops_move() -> None:
    """The ingress logs and books them; here they are counted, whatever refuses them."""
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU")
        frankfurt = await cloud.add_site("frankfurt", "DE", metrics_port=0)
        await cloud.key("secret")
        await cloud.key("australian", residency=("AU",))
        await cloud.ready()
        for key in ("australian", "nobody", "nobody"):
            assert (await ask(frankfurt, signed_by(sydney, frankfurt, key=key))).status == 403
        said = await scrape(frankfurt)
        assert said.sum(metrics.ANSWERS, status="403", reason="residency") == 1
        assert said.sum(metrics.ANSWERS, status="403", reason="key_unknown") == 2

    run(main)


def test_what_failing_engines_move() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", engines=2, metrics_port=0)
        await cloud.key("secret")
        await cloud.ready()
        one, other = site.engines
        budget = (await scrape(site)).sum(metrics.RETRY_BUDGET)
        one.kill()
        for _ in range(20):  # chance decides which of the two is asked first
            assert (await ask(site, post(chat_body()))).status == 200
        said = await scrape(site)
        assert said.sum(metrics.RETRIES, granted="yes") >= 1
        assert said.sum(metrics.ATTEMPTS) == 20 + said.sum(metrics.RETRIES, granted="yes")
        assert said.sum(metrics.RETRY_BUDGET) != budget
        assert said.sum(metrics.REPLICA_STATES, state="healthy") == 1
        assert said.sum(metrics.REPLICA_STATES, state="ejected") == 1
        assert said.sum(metrics.REPLICA_STATES) == 2
        other.kill()
        assert (await ask(site, post(chat_body()))).status == 503
        said = await scrape(site)
        assert said.sum(metrics.REFUSALS, reason="no_healthy_site") == 1
        assert said.sum(metrics.FAILED_ATTEMPTS, rule="no_ready_replica") >= 1

    run(main)


def test_what_lost_streams_move() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        await cloud.key("secret")
        await cloud.ready()
        site.engines[0].die_after = 2
        answer = await ask(site, post(chat_body(stream=True)))
        assert not answer.whole
        said = await scrape(site)
        assert said.sum(metrics.FAILURES, outcome="engine_lost", reason="engine_lost") == 1
        assert said.sum(metrics.ABANDONED, source="client") == 1
        site.engines[0].die_after = None
        site.engines[0].status = 500
        assert (await ask(site, post(chat_body()))).status == 500
        assert (await scrape(site)).sum(metrics.FAILURES, outcome="engine_error") == 1

    run(main)


def test_what_open_requests_move() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        await cloud.key("secret")
        await cloud.ready()
        engine, client = site.engines[0], await Client.open(site)
        engine.hold.clear()
        client.send(post(chat_body(stream=True)))
        await client.reader.readuntil(b"\r\n\r\n")
        said = await scrape(site)
        for metric in (metrics.OPEN_REQUESTS, metrics.OPEN_STREAMS):
            assert said.sum(metric, source="client") == said.sum(metric) == 1
        assert said.sum(metrics.CLIENT_CONNECTIONS) == 1
        assert said.sum(metrics.UPSTREAM_CONNECTIONS, state="busy") == 1
        assert said.sum(metrics.UPSTREAM_CONNECTIONS, state="idle") == 0
        assert said.sum(metrics.JOURNAL_RESERVED) > 0
        engine.hold.set()
        while b"[DONE]" not in await client.reader.read(65536):
            pass
        await until(lambda: not site.running.context.exchanges)
        assert (await ask(site, post(chat_body()))).status == 200
        said = await scrape(site)
        assert said.sum(metrics.OPEN_REQUESTS) == said.sum(metrics.OPEN_STREAMS) == 0
        assert said.sum(metrics.UPSTREAM_CONNECTIONS, state="busy") == 0
        assert said.sum(metrics.UPSTREAM_CONNECTIONS, state="idle") == 1
        assert said.sum(metrics.JOURNAL_RESERVED) == 0
        client.close()
        await until(lambda: not site.running.server.connections)
        assert (await scrape(site)).sum(metrics.CLIENT_CONNECTIONS) == 0

    run(main)


def test_what_is_known_and_what_the_process_uses() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        await cloud.add_site("berlin", "DE", engines=0)
        await cloud.key("secret")
        await cloud.ready()
        body = chat_body(messages=[{"role": "user", "content": "word " * 1000}])
        assert (await ask(site, post(body))).status == 200
        said = await scrape(site)
        for kind, count in (("sites", 2), ("models", 1), ("policies", 1), ("keys", 1)):
            assert said.sum(metrics.VIEW_ENTRIES, kind=kind) == count
        assert said.sum(metrics.DIGESTS, state="fresh") == said.sum(metrics.DIGESTS) == 2
        assert 0 <= said.sum(metrics.DIGEST_AGE) < 25
        assert 0 <= said.sum(metrics.VIEW_AGE) < 25
        assert said.sum(metrics.PREFIXES) > 0
        assert said.sum(metrics.READY) == 1
        assert said.sum(metrics.INFO, site="sydney", country="AU", worker="0") == 1
        for zero in (metrics.DRAINING, metrics.JOURNAL_HELD, metrics.SHIPPING):
            assert said.sum(zero) == 0
        for some in (metrics.CPU, metrics.MEMORY, metrics.OPEN_FDS, metrics.MOST_FDS,
                     metrics.STARTED, metrics.JOURNAL_FREE):
            assert said.sum(some) > 0
        context = site.running.context
        cloud.silent.add("berlin")
        context.loads.lost(SiteName("berlin"), context.clock.monotonic_ns())
        said = await scrape(site)
        assert said.sum(metrics.DIGESTS, state="unreachable") == 1

    run(main)


def test_what_a_bus_that_is_away_moves() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        await cloud.key("secret")
        await cloud.ready()
        site.bus.down()
        assert (await ask(site, post(chat_body()))).status == 200

        async def behind() -> bool:
            said = await scrape(site)
            late = said.sum(metrics.SHIPPING) > 0 and said.sum(metrics.VIEW_AGE) > 1
            return late and said.sum(metrics.JOURNAL_BATCHES) > 0

        async with asyncio.timeout(25):
            while not await behind():
                await asyncio.sleep(0.02)

    run(main)


def test_a_clock_that_is_off_is_seen() -> None:
    async def main(cloud: GatewayCloud) -> None:
        clock = SteppedClock()
        site = await cloud.add_site("sydney", "AU", metrics_port=0, clock=clock)
        await cloud.key("secret")
        await cloud.ready()
        assert not (await scrape(site)).families[metrics.CLOCK_OFFSET.name].samples
        skew = site.running.context.skew
        for _ in range(3):
            clock.ahead_ns += 2_000_000_000
            skew.heard(SiteName("berlin"), clock.wall_ns() - 3_000_000_000)
        skew.sweep()
        said = await scrape(site)
        assert said.sum(metrics.CLOCK_OFFSET) == pytest.approx(3.0, abs=0.5)

    run(main)


def test_a_disk_that_is_slow_full_or_broken_is_seen() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        await cloud.key("secret")
        await cloud.ready()
        engine = site.engines[0]
        engine.hold.clear()
        asking = asyncio.create_task(ask(site, post(chat_body())))
        await until(lambda: engine.asked)
        site.disk.sync_s = 30.0
        site.disk.capacity_bytes = 0
        site.disk.failing_appends = 1000
        engine.hold.set()
        assert (await asking).status == 200
        assert (await ask(site, post(chat_body()))).status == 503
        said = await scrape(site)
        assert said.sum(metrics.JOURNAL_HELD) >= 1
        assert said.sum(metrics.READY) == 0
        site.disk.sync_s, site.disk.failing_appends = 0.0, 0
        site.disk.capacity_bytes = None

        async def well() -> bool:
            said = await scrape(site)
            return bool(said.sum(metrics.READY)) and said.sum(metrics.JOURNAL_HELD) == 0

        async with asyncio.timeout(25):
            while not await well():
                await asyncio.sleep(0.02)

    run(main)


def test_a_slow_sync_is_seen() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        await cloud.key("secret")
        await cloud.ready()
        site.disk.sync_s = 1.0
        assert (await ask(site, post(chat_body()))).status == 200
        async with asyncio.timeout(25):
            while (await scrape(site)).sum(metrics.JOURNAL_SYNC) == 0:
                await asyncio.sleep(0.02)
        site.disk.sync_s = 0.0

    run(main)


def test_draining_is_seen() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0, drain_timeout_s=25.0)
        await cloud.key("secret")
        await cloud.ready()
        engine = site.engines[0]
        engine.hold.clear()
        asking = asyncio.create_task(ask(site, post(chat_body())))
        await until(lambda: engine.asked)
        site.stop.set()
        await until(lambda: site.running.server.draining)
        assert (await scrape(site)).sum(metrics.DRAINING) == 1
        engine.hold.set()
        assert (await asking).status == 200

    run(main)


def test_streams_that_go_on_elsewhere_are_counted() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT), ("reset", 3), ("reset", 2)])
        paris = await tellers_site(cloud, fate, "paris", "FR", engines=4, metrics_port=0)
        await cloud.key("secret")
        await cloud.ready()
        assert not (await ask(paris, post(tale()))).whole
        said = await scrape(paris)
        assert said.sum(metrics.CONTINUATIONS, method="continue_text", outcome="lost") == 2
        assert said.sum(metrics.CONTINUATION_GAP, method="continue_text") == 2
        assert said.sum(metrics.ABANDONED, source="client", why="attempts") == 1
        assert (await ask(paris, post(tale()))).whole
        fate.places.append(("reset", AT))
        assert (await ask(paris, post(tale()))).whole
        said = await scrape(paris)
        assert said.sum(metrics.CONTINUATIONS, outcome="finished") == 1
        assert said.sum(metrics.ABANDONED) == 1
        await until(lambda: b'"continued":1' in paris.log_lines)

    run(main)


def test_loop_and_collector_are_watched() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", metrics_port=0)
        before = (await scrape(site)).sum(metrics.COLLECTION, generation="2")
        gc.collect()
        assert (await scrape(site)).sum(metrics.COLLECTION, generation="2") > before
        async with asyncio.timeout(25):
            while (await scrape(site)).sum(metrics.LOOP_LAG) == 0:
                await asyncio.sleep(0.02)
        callbacks = len(gc.callbacks)
        site.stop.set()
        assert site.task is not None
        await site.task
        assert len(gc.callbacks) == callbacks - 1

    run(main)
