"""One gateway over real sockets: limits of keys, retries within their budget, time-outs."""

import contextlib
import socket
from collections.abc import Mapping

import pytest

from isochrone.core.world.tenant import Limits
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


async def a_site(cloud: GatewayCloud, limits: Limits, **options: object) -> RunningSite:
    site = await cloud.add_site("frankfurt", "DE", **options)  # type: ignore[arg-type]
    await cloud.key("secret", limits=limits)
    await cloud.ready()
    replicas = site.running.context.view.replicas
    await until(lambda: len(replicas._by_entry) == len(site.engines))
    return site


def rates(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in headers.items()
        if name.startswith("x-ratelimit-") and "-reset-" not in name
    }


def test_answers_say_what_is_left_and_the_last_refusal_says_when() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud, Limits(requests_per_min=2, tokens_per_min=100_000))
        first = await ask(site, post(chat_body(max_tokens=50)))
        assert first.status == 200
        assert rates(first.headers)["remaining-requests"] == "1"
        held = 100_000 - int(rates(first.headers)["remaining-tokens"])
        assert held > 50  # the prompt and the most that was asked for
        second = await ask(site, post(chat_body(max_tokens=50, stream=True)))
        assert second.status == 200
        assert rates(second.headers)["remaining-requests"] == "0"
        used = 100_000 - int(rates(second.headers)["remaining-tokens"]) - held
        assert used == 12  # what the first one used in truth: 10 and 2
        third = await ask(site, post(chat_body(max_tokens=50)))
        assert third.status == 429
        assert third.headers["x-isochrone-reason"] == "rate_limit_requests"
        assert third.json["error"]["code"] == "rate_limit_exceeded"
        assert 0 < int(third.headers["retry-after"]) <= 60
        assert len(site.engines[0].asked) == 2
        assert (await cloud.events(third.request_id))[0].outcome == "refused"

    run(main)


def test_a_client_that_leaves_frees_its_place() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud, Limits(concurrent=1))
        site.engines[0].hold.clear()
        client = await Client.open(site)
        client.send(post(chat_body(stream=True)))
        await until(lambda: site.engines[0].asked)
        refused = await ask(site, post(chat_body()))
        assert (refused.status, refused.headers["x-isochrone-reason"]) == (429, "concurrency")
        assert rates(refused.headers) == {}
        client.writer.transport.abort()
        await until(lambda: not site.running.context.exchanges)
        site.engines[0].hold.set()
        assert (await ask(site, post(chat_body()))).status == 200

    run(main)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_always_leaves_early_is_limited_all_the_same(stream: bool) -> None:
    """Nothing is charged where no engine has told anything, but its work is not for nothing."""

    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud, Limits(tokens_per_min=100_000))
        engine = site.engines[0]
        engine.silent = True
        engine.hold.clear()
        messages = [{"role": "user", "content": "y" * 4_000}]
        raw = post(chat_body(stream=stream, max_tokens=5_000, messages=messages))
        for number in range(3):
            client = await Client.open(site)
            client.send(raw)
            await until(lambda: len(engine.asked) > number)  # noqa: B023
            client.writer.transport.abort()
            await until(lambda: engine.cancelled > number)  # noqa: B023
        await until(lambda: not site.running.context.exchanges)
        engine.hold.set()
        last = await ask(site, post(chat_body(max_tokens=1)))
        used = 100_000 - int(rates(last.headers)["remaining-tokens"])
        prompts = used - 3 * (0 if stream else 5_000)
        assert 3_000 <= prompts < 3_100
        for event in cloud.all_events():
            if event.outcome == "client_gone":
                assert (event.tokens.total, event.tokens.source) == (0, "none")

    run(main)


def test_a_failing_engine_is_left_out_and_its_failures_are_tried_elsewhere() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(
            cloud, Limits(), engines=2, breaker_failures=3, breaker_first_hold_s=600.0,
            breaker_longest_hold_s=600.0,
        )
        bad, good = site.engines
        bad.status = 503
        for _ in range(12):
            assert (await ask(site, post(chat_body()))).status == 200
        assert 0 < len(bad.asked) <= 3
        assert len(good.asked) == 12

    run(main)


def test_retries_end_with_their_budget() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(
            cloud, Limits(), engines=3, retry_ratio=0.0, retry_min_per_s=0.1,
            breaker_failures=20, breaker_failure_rate=1.0,
        )
        for engine in site.engines:
            engine.status = 502
        reasons = []
        for _ in range(3):
            answer = await ask(site, post(chat_body()))
            assert answer.status == 503
            reasons.append(answer.headers["x-isochrone-reason"])
        # One retry in ten seconds: the first request has it, the others have none.
        assert reasons.count("retry_budget") >= 2
        assert sum(len(engine.asked) for engine in site.engines) <= 3 + 2

    run(main)


def test_an_engine_that_falls_silent_is_a_time_out_of_its_own() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await a_site(cloud, Limits(), between_events_timeout_s=0.5)
        site.engines[0].hold.clear()
        answer = await ask(site, post(chat_body(stream=True, model=MODEL)))
        assert answer.status == 200
        assert not answer.whole
        assert "between_events_timeout" in answer.events[-1]
        event = (await cloud.events(answer.request_id))[0]
        assert (event.outcome, event.reason) == ("timed_out", "between_events_timeout")
        assert event.tokens.output == 1

    run(main)


def test_an_engine_that_takes_no_connection_is_a_time_out_of_its_own() -> None:
    async def main(cloud: GatewayCloud) -> None:
        with contextlib.ExitStack() as stack:
            deaf = stack.enter_context(socket.socket())
            deaf.bind(("127.0.0.1", 0))
            deaf.listen(0)
            for _ in range(8):  # nobody accepts: the queue is full, and further calls are not heard
                caller = stack.enter_context(socket.socket())
                caller.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    caller.connect(deaf.getsockname())
            site = await a_site(
                cloud, Limits(), connect_timeout_s=0.5,
                replica={"base_url": f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"},
            )
            answer = await ask(site, post(chat_body()))
            assert answer.status == 504
            assert answer.headers["x-isochrone-reason"] == "connect_timeout"

    run(main)
