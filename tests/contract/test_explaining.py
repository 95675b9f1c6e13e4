"""Gateways over real sockets: of which requests the whole choice is kept, and what was left why."""

from typing import Any

from isochrone.adapters.credentials import read_credential
from isochrone.core.metering.event import UsageEvent
from isochrone.core.world.model import ALL_ENDPOINTS
from isochrone.gateway.detail import Detail
from isochrone.gateway.target import Targets
from tests.fixtures.gateways import (
    MODEL,
    Answer,
    GatewayCloud,
    RunningSite,
    ask,
    chat_body,
    post,
    run,
    until,
)


async def two_sites(cloud: GatewayCloud, *, sample: float = 0.0) -> RunningSite:
    sydney = await cloud.add_site("sydney", "AU", explain_sample=sample)
    await cloud.add_site("frankfurt", "DE")
    await cloud.link("sydney", "frankfurt", 20.0)
    await cloud.key("secret")
    await cloud.key("german", residency=("DE",))
    await cloud.ready()
    await until(lambda: sydney.running.context.view.table.view.links)
    return sydney


async def told(cloud: GatewayCloud, answer: Answer) -> UsageEvent:
    """What the ingress says of it."""
    def by_ingress() -> list[UsageEvent]:
        return [
            each for each in cloud.all_events()
            if (each.request_id, each.reporter) == (answer.request_id, "ingress")
        ]

    await until(lambda: bool(by_ingress()))
    return by_ingress()[0]


def test_of_an_ordinary_request_the_outcome_is_kept_in_brief() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        event = await told(cloud, await ask(sydney, post(chat_body())))
        assert event.decision is not None
        assert (event.decision.costs_ms, event.decision.queues_ms) == (b"", b"")
        found = cloud.explained(event)
        assert (found.is_full, found.eligible) == (False, 2)
        assert [each.site for each in found.candidates] == ["sydney"]
        assert found.candidates[0].digest_age_ms is not None
        assert found.runner_up is not None
        assert found.runner_up.site == "frankfurt"
        assert found.runner_up.cost_ms > 20.0
        assert event.decision.predicted_ttft_ms is not None
        assert event.decision.actual_ttft_ms is None, "a whole answer shows its last token only"
        event = await told(cloud, await ask(sydney, post(chat_body(stream=True))))
        assert event.decision is not None
        assert event.decision.actual_ttft_ms is not None

    run(main)


def test_who_asks_for_it_has_the_whole_choice_on_record() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        for value, is_full in (("full", True), ("Full ", True), ("brief", False), ("", False)):
            raw = post(chat_body(), headers={"x-isochrone-explain": value})
            event = await told(cloud, await ask(sydney, raw))
            assert cloud.explained(event).is_full == is_full
            assert "x-isochrone-explain" not in sydney.engines[0].asked[-1].headers

    run(main)


def test_a_sample_of_the_ordinary_ones_is_kept_whole() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud, sample=0.5)
        kept = set()
        for _ in range(20):
            event = await told(cloud, await ask(sydney, post(chat_body())))
            assert cloud.explained(event).is_full == Detail(0.5).is_sampled(event.request_id)
            kept.add(cloud.explained(event).is_full)
        assert kept == {False, True}

    run(main)


def test_whatever_is_unusual_is_kept_whole() -> None:
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        narrowed = post(chat_body(), headers={"x-isochrone-residency": "DE"})
        event = await told(cloud, await ask(sydney, narrowed))
        assert cloud.explained(event).is_full
        event = await told(cloud, await ask(sydney, post(chat_body(), key="german")))
        assert not cloud.explained(event).is_full, "a key's own policy is nothing unusual"
        # An engine's error.
        sydney.engines[0].status = 400
        event = await told(cloud, await ask(sydney, post(chat_body())))
        assert (event.outcome, cloud.explained(event).is_full) == ("engine_error", True)
        # A spill: the own site is dearer by what waits there.
        sydney.engines[0].status = 200
        context = sydney.running.context
        for _ in range(50):  # with the next digest, nothing waits there any more
            for _ in range(40):
                context.loads.dispatched(
                    sydney.site.name, MODEL, 4000, 4000, context.clock.monotonic_ns(), rtt_ms=0.0
                )
            event = await told(cloud, await ask(sydney, post(chat_body())))
            if event.serving_site == "frankfurt":
                break
        found = cloud.explained(event)
        assert [each.site for each in found.candidates] == ["frankfurt", "sydney"]
        # A refusal of all sites.
        cloud.silent.update(("sydney", "frankfurt"))
        await until(lambda: _forget(context))
        answer = await ask(sydney, post(chat_body()))
        event = await told(cloud, answer)
        assert (answer.status, event.outcome) == (503, "refused")
        assert {each.rule for each in cloud.explained(event).refused} == {"digest_stale"}

    run(main)


def _forget(context: Any) -> bool:
    """Wait for the digests of both sites to be stale."""
    return all(
        context.clock.monotonic_ns() - context.loads.of(name).heard_ns > 5.1e9
        for name in ("sydney", "frankfurt")
    )


def test_each_replica_that_was_left_is_named_with_its_reason() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("sydney", "AU", engines=2, explain_sample=0.0)
        await cloud.key("secret")
        await cloud.ready()
        replicas = site.running.context.view.replicas
        await until(lambda: len(replicas._by_entry) == 2)
        first = await told(cloud, await ask(site, post(chat_body())))
        assert first.replica is not None
        bad = int(first.replica[-1])
        site.engines[bad].status = 503
        for _ in range(20):
            answer = await ask(site, post(chat_body()))
            assert answer.status == 200
            event = await told(cloud, answer)
            if event.attempts == 2:
                break
        assert event.decision is not None
        (left,) = event.decision.tried
        assert (left.site, left.rule) == ("sydney", "no_ready_replica")
        assert left.detail.startswith(f"replica {first.replica}: ")
        assert event.replica == f"sydney-tiny-fable-{1 - bad}"
        found = cloud.explained(event)
        assert found.is_full
        assert [each.site for each in found.candidates] == ["sydney"]

    run(main)


def test_a_site_that_is_not_asked_is_no_try_and_refused_by_its_own_rule() -> None:
    """A key that may be served anywhere: the record must not say that a site had the request."""
    async def main(cloud: GatewayCloud) -> None:
        sydney = await two_sites(cloud)
        paris = await cloud.add_site("paris", "FR", replica={"endpoints": ALL_ENDPOINTS})
        await cloud.ready()
        paris.endpoints = ALL_ENDPOINTS
        context = sydney.running.context
        await until(lambda: sorted(map(len, context.endpoints.of(MODEL))) == [3, 3, 5])
        body = chat_body(max_tokens=8)
        answer = await ask(sydney, post(body, path="/v1/messages"))
        assert answer.headers["x-isochrone-site"] == "paris"
        event = await told(cloud, answer)
        assert event.decision is not None
        assert event.decision.tried == ()
        found = cloud.explained(event)
        assert found.is_full
        assert [each.site for each in found.candidates] == ["paris"]
        assert {(each.site, each.rule, each.detail) for each in found.refused} == {
            (site, "no_ready_replica", "no engine there has /v1/messages")
            for site in ("sydney", "frankfurt")
        }

    run(main)


def test_customers_are_told_no_address_and_no_file_of_the_operator() -> None:
    """Explanations are read by whoever asked; what is wrong with a replica is in the site's log."""
    async def main(cloud: GatewayCloud) -> None:
        sydney = await cloud.add_site("sydney", "AU", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        context = sydney.running.context
        context.targets = Targets(read_credential)
        told_of: set[str] = set()

        async def told_in_tries() -> set[str]:
            said: set[str] = set()
            while not said:
                event = await told(cloud, await ask(sydney, post(chat_body())))
                assert event.decision is not None
                said = {each.detail for each in event.decision.tried}
            told_of.update(said)
            return said

        changes = {"engine_key": None, "credential": "file:/etc/keys/partner"}
        await cloud.deploy("sydney", MODEL, changes)
        await until(lambda: all(
            each.credential for each, _, _ in context.view.replicas.states()
        ))
        unreadable = await told_in_tries()
        await cloud.deploy("sydney", MODEL, {"base_url": "ftp://user:word@10.0.0.7/v1"})
        await until(lambda: all(
            each.base_url.startswith("ftp") for each, _, _ in context.view.replicas.states()
        ))
        assert await told_in_tries() == unreadable
        sydney.engines[0].kill()
        sydney.engines[1].kill()
        await cloud.deploy("sydney", MODEL, {})
        await until(lambda: all(
            each.base_url.startswith("http:") for each, _, _ in context.view.replicas.states()
        ))
        await told_in_tries()
        told_of |= {health.why for _, _, health in context.view.replicas.states()}
        for said in told_of:
            for private in ("127.0.0.1", "10.0.0.7", "word", "/etc/keys", "ftp:"):
                assert private not in said
        assert "no connection: Connect call failed" in told_of

    run(main)
