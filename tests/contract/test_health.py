"""Live gateways: sites and replicas that fail are left out and come back, whoever they fail."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from isochrone.core.admission.retry_budget import RetryBudget
from isochrone.core.ids import SiteName
from isochrone.core.lifecycle.health import HealthRules
from isochrone.core.metering.event import UsageEvent
from isochrone.core.world.health import HealthReport
from isochrone.core.world.site import Link, SiteLinks
from isochrone.gateway.context import Context
from isochrone.wire import fleet, subjects
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
from tests.fixtures.scripted_engine import Asked, ScriptedEngine

QUICK: dict[str, Any] = {
    "breaker_first_hold_s": 0.3, "breaker_longest_hold_s": 1.0, "recovery_s": 1.0,
    "retry_min_per_s": 1000.0,
}


@dataclass(slots=True, kw_only=True)
class TouchyEngine(ScriptedEngine):
    """Fails whatever has the word poison in it."""

    async def _answer(
        self, asked: Asked, writer: asyncio.StreamWriter, reader: asyncio.StreamReader
    ) -> None:
        self.status = 500 if b"poison" in asked.body else 200
        await ScriptedEngine._answer(self, asked, writer, reader)


def state_at(context: Context, site: str) -> str:
    health = context.loads.health.of(SiteName(site), MODEL)
    return "unknown" if health is None else health.state


async def three_sites(cloud: GatewayCloud) -> tuple[RunningSite, RunningSite, RunningSite]:
    """An ingress without engines, and two others; paris is nearer."""
    ingress = await cloud.add_site("frankfurt", "DE", engines=0, ttft_target_ms=0.0, **QUICK)
    # Their own gateways trust everything, so that the ingress has to find out.
    trusting: dict[str, Any] = {"breaker_failures": 20, "breaker_failure_rate": 1.0}
    paris = await cloud.add_site("paris", "FR", **trusting)
    oslo = await cloud.add_site("oslo", "NO", **trusting)
    links = tuple(
        Link(peer=SiteName(peer), rtt_ms=rtt_ms, source="emulated")
        for peer, rtt_ms in (("paris", 1.0), ("oslo", 40.0))
    )
    await cloud.publish(
        subjects.links_key("frankfurt"), SiteLinks(site=SiteName("frankfurt"), links=links)
    )
    await cloud.key("secret")
    await cloud.key("other", org="other-org")
    await cloud.ready()
    return ingress, paris, oslo


async def chat(site: RunningSite, text: str = "hello", *, key: str = "secret") -> Answer:
    messages = [{"role": "user", "content": text}]
    return await ask(site, post(chat_body(messages=messages), key=key))


async def at_ingress(cloud: GatewayCloud, answer: Answer) -> UsageEvent:
    """What the ingress says of a request that another site served."""
    events = await cloud.events(answer.request_id, 2)
    return next(event for event in events if event.reporter == "ingress")


def test_a_site_that_fails_is_ejected_explained_and_comes_back() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, paris, _ = await three_sites(cloud)
        context = ingress.running.context
        reports: list[HealthReport] = []
        await cloud.control.subscribe(
            subjects.HEALTH, lambda _, payload: reports.append(fleet.decode(payload, HealthReport))
        )
        assert (await chat(ingress)).headers["x-isochrone-site"] == "paris"
        paris.engines[0].status = 500
        statuses = [(await chat(ingress)).status for _ in range(5)]
        assert statuses == [500] * 5
        assert state_at(context, "paris") == "ejected"
        answer = await chat(ingress)
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "oslo")
        event = await at_ingress(cloud, answer)
        assert event.decision is not None
        refused = {each.site: each for each in event.decision.refused}
        assert refused[SiteName("paris")].rule == "ejected"
        assert "status 500" in refused[SiteName("paris")].detail
        await until(lambda: any(
            (each.site, each.state) == ("paris", "ejected")
            for report in reports if report.site == "frankfurt" for each in report.sites
        ))

        paris.engines[0].status = 200
        while state_at(context, "paris") != "healthy":
            assert (await chat(ingress)).status == 200
            await asyncio.sleep(0.02)
        assert (await chat(ingress)).headers["x-isochrone-site"] == "paris"
        await until(lambda: reports[-1].sites == ())

    run(main)


def test_a_site_whose_gateway_asks_none_of_its_replicas_is_left_before_retries_run_out() -> None:
    """Its digest says that they are ready, as its agent knows nothing of what fails there."""
    async def main(cloud: GatewayCloud) -> None:
        ingress, paris, _ = await three_sites(cloud)
        assert (await chat(ingress)).headers["x-isochrone-site"] == "paris"
        there, context = paris.running.context, ingress.running.context
        ((replica, _, _),) = there.view.replicas.states()
        there.view.replicas.rules = HealthRules(first_hold_s=60.0)
        there.view.replicas.lost(replica, there.clock.monotonic_ns(), there.rng)
        context.retries = RetryBudget(0.1, 1.0)
        answers = [await chat(ingress) for _ in range(60)]
        assert {each.status for each in answers} == {200}
        assert {each.headers["x-isochrone-site"] for each in answers} == {"oslo"}
        health = context.loads.health.of(SiteName("paris"), MODEL)
        assert health is not None
        assert health.why == "it refuses: no_ready_replica"

    run(main)


def test_a_site_of_one_replica_takes_no_retry_for_what_it_sends_back() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, paris, _ = await three_sites(cloud)
        paris.engines[0].status = 503
        answers = [await chat(ingress) for _ in range(3)]
        assert {each.headers["x-isochrone-site"] for each in answers} == {"oslo"}
        assert len(paris.engines[0].asked) == 3
        assert ingress.running.context.retries.spent == 3
        assert paris.running.context.retries.spent == 0

    run(main)


def test_a_site_that_is_not_asked_for_an_organisation_is_no_try_of_its_requests() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, paris, _ = await three_sites(cloud)
        context = ingress.running.context
        assert (await chat(ingress, key="other")).status == 200

        def may(org: str) -> bool:
            now_ns = context.clock.monotonic_ns()
            return context.loads.health.may_ask(SiteName("paris"), MODEL, org, now_ns)

        paris.engines[0].status = 500
        for _ in range(20):
            for key in ("secret", "other"):
                if may("org"):
                    await chat(ingress, key=key)
        assert state_at(context, "paris") == "ejected"
        await until(lambda: may("org"))
        assert (await chat(ingress)).status == 500, "the probe, of which others may make another"
        await until(lambda: may("other-org"))
        assert not may("org")
        answer = await chat(ingress)
        assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "oslo")
        event = await at_ingress(cloud, answer)
        assert (event.attempts, state_at(context, "paris")) == (1, "ejected")
        assert event.decision is not None
        assert event.decision.tried == ()
        (refused,) = [each for each in event.decision.refused if each.site == "paris"]
        assert (refused.rule, refused.detail) == (
            "ejected", "requests of this organisation failed there while others were served"
        )
        assert cloud.explained(event).is_full

    run(main)


def test_the_last_site_that_takes_requests_stays_though_it_fails() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, paris, _ = await three_sites(cloud)
        context = ingress.running.context
        oslo = replace(context.view.table.view.sites[SiteName("oslo")], draining=True)
        await cloud.publish(subjects.site_key("oslo"), oslo)
        await asyncio.sleep(1.3)  # it is looked at once a second who is drained
        paris.engines[0].status = 500
        assert [(await chat(ingress)).status for _ in range(6)] == [500] * 6
        assert state_at(context, "paris") == "suspect"
        paris.engines[0].status = 200
        assert (await chat(ingress)).status == 200

    run(main)


def test_one_organisation_cannot_eject_a_replica_for_others() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site(
            "paris", "FR", engines=2, make_engine=TouchyEngine, **QUICK
        )
        await cloud.key("secret")
        await cloud.key("other", org="other-org")
        await cloud.ready()
        replicas = site.running.context.view.replicas
        for _ in range(6):  # both replicas have served others
            assert (await chat(site, key="other")).status == 200
        for _ in range(40):
            assert (await chat(site, "poison")).status == 500
        assert {state for _, state, _ in replicas.states()} == {"suspect"}
        assert (await chat(site, key="other")).status == 200

    run(main)


def test_requests_that_are_wrong_or_given_up_say_nothing() -> None:
    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site("paris", "FR", **QUICK)
        await cloud.key("secret")
        await cloud.ready()
        site.engines[0].status = 413
        for _ in range(12):
            assert (await chat(site)).status == 413
        assert [state for _, state, _ in site.running.context.view.replicas.states()] == ["healthy"]

    run(main)


def test_the_only_replica_is_asked_though_it_fails() -> None:
    """Nobody else could serve: every request finds out whether it works again."""

    async def main(cloud: GatewayCloud) -> None:
        site = await cloud.add_site(
            "paris", "FR", **{**QUICK, "breaker_first_hold_s": 600.0, "breaker_longest_hold_s": 600}
        )
        await cloud.key("secret")
        await cloud.ready()
        site.engines[0].status = 500
        for _ in range(8):
            assert (await chat(site)).status == 500
        states = [state for _, state, _ in site.running.context.view.replicas.states()]
        assert states == ["ejected"]
        site.engines[0].status = 200
        assert (await chat(site)).status == 200

    run(main)


def test_a_site_that_is_lost_is_probed_and_no_request_has_to_find_out() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, paris, _ = await three_sites(cloud)
        context = ingress.running.context
        assert (await chat(ingress)).headers["x-isochrone-site"] == "paris"
        paris.running.server.close()
        paris.stop.set()  # its digests go on: they are the agent's
        await until(lambda: paris.task is not None and paris.task.done())
        attempts = []
        for _ in range(60):  # a hold is 2 s
            answer = await chat(ingress)
            assert (answer.status, answer.headers["x-isochrone-site"]) == (200, "oslo")
            attempts.append((await at_ingress(cloud, answer)).attempts)
            await asyncio.sleep(0.08)
        assert attempts.count(2) == 1
        assert context.site_probes["failed"] >= 1
        assert context.site_probes["answered"] == 0

        await cloud.start_gateway("paris")
        await until(lambda: not _is_lost(context))
        while (await chat(ingress)).headers["x-isochrone-site"] != "paris":
            await asyncio.sleep(0.05)

    run(main)


def _is_lost(context: Context) -> bool:
    load = context.loads.of(SiteName("paris"))
    return load is None or load.unreachable


def test_nobody_is_probed_while_all_is_well() -> None:
    async def main(cloud: GatewayCloud) -> None:
        ingress, _, _ = await three_sites(cloud)
        for _ in range(5):
            assert (await chat(ingress)).status == 200
        await asyncio.sleep(1.2)  # longer than every sweep
        assert ingress.running.context.site_probes == {"answered": 0, "failed": 0}

    run(main)
