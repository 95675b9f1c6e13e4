"""Gateways over real sockets: each prediction is held to the first token of the site that it is of,
also where a stream went on at another one."""

import asyncio

import pytest

from isochrone.gateway import metrics
from isochrone.ports.telemetry import Distribution
from tests.fixtures.gateways import MODEL, GatewayCloud, RunningSite, ask, post, run, until
from tests.fixtures.tellers import AT, Fate, asked, body, europe, is_whole, site


def judged(ingress: RunningSite) -> int:
    """How many predictions the metric has seen the outcome of."""
    return sum(
        sum(sample.counts)
        for family in ingress.running.context.metrics.families()
        if family.metric is metrics.PREDICTION_RATIO
        for sample in family.samples
        if isinstance(sample, Distribution)
    )


@pytest.mark.parametrize("what", ["site", "engine"])
def test_each_site_of_a_stream_is_held_to_its_own_prediction(what: str) -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", AT)])
        ingress = await europe(cloud, fate, "paris", "berlin")
        asking = asyncio.create_task(ask(ingress, post(body())))
        await until(lambda: fate.reached)
        exchange = next(iter(ingress.running.context.exchanges))
        await until(lambda: getattr(exchange, "first_ns", None))
        first_choice = exchange.choice
        first = next(name for name, count in asked(cloud).items() if count)
        if what == "site":
            cloud.kill_site(first)
        else:
            cloud.sites[first].engines[0].kill()
        answer = await asking
        is_whole(answer)
        await until(lambda: any(e.reporter == "ingress" for e in cloud.all_events()))
        (event,) = (e for e in cloud.all_events() if e.reporter == "ingress")
        decision = event.decision
        assert decision is not None
        assert first_choice is not None
        assert event.serving_site != first
        (began,) = decision.foretold
        assert (began.site, began.since_ms) == (first, 0.0)
        assert began.predicted_ttft_ms == pytest.approx(first_choice.predicted_ttft_ms)
        assert began.actual_ttft_ms == event.first_byte_ms
        # The second was chosen after the first had answered, and is held to what it took then.
        (gap,) = exchange.continued
        assert event.first_byte_ms is not None
        assert decision.actual_ttft_ms is not None
        assert decision.since_ms > event.first_byte_ms
        assert 0 < decision.actual_ttft_ms <= gap.gap_ms
        assert decision.since_ms + decision.actual_ttft_ms <= event.total_ms
        assert event.attempts == 2
        assert judged(ingress) == 2
        calibrations = ingress.running.context.outcomes.calibrations
        await until(lambda: MODEL in calibrations)
        assert calibrations[MODEL].count == 2

    run(main)


def test_a_stream_that_went_on_at_its_own_site_has_one_first_token() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)])
        paris = await site(cloud, fate, "paris", "FR", engines=2)
        await cloud.key("secret")
        await cloud.ready()
        is_whole(await ask(paris, post(body())))
        await until(lambda: any(e.reporter == "ingress" for e in cloud.all_events()))
        (event,) = (e for e in cloud.all_events() if e.reporter == "ingress")
        assert event.decision is not None
        assert (event.attempts, event.decision.foretold, event.decision.since_ms) == (2, (), 0.0)
        assert event.decision.actual_ttft_ms == event.first_byte_ms
        assert judged(paris) == 0, "it had two tries"

    run(main)


def test_a_stream_that_nobody_goes_on_with_has_kept_what_was_foretold_of_it() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("reset", AT)])
        ingress = await europe(cloud, fate, "paris")
        answer = await ask(ingress, post(body()))
        assert not answer.whole
        await until(lambda: any(e.reporter == "ingress" for e in cloud.all_events()))
        (event,) = (e for e in cloud.all_events() if e.reporter == "ingress")
        decision = event.decision
        assert decision is not None
        assert (decision.chosen, decision.predicted_ttft_ms, decision.actual_ttft_ms) == (
            -1, None, None
        )
        (began,) = decision.foretold
        assert (began.site, began.actual_ttft_ms) == ("paris", event.first_byte_ms)
        assert judged(ingress) == 1

    run(main)


def test_a_site_that_is_tried_after_another_failed_is_held_to_its_own_time() -> None:
    async def main(cloud: GatewayCloud) -> None:
        fate = Fate(places=[("wait", 0)])  # nothing comes from the first
        ingress = await europe(cloud, fate, "paris", "berlin")
        asking = asyncio.create_task(ask(ingress, post(body())))
        await until(lambda: fate.reached)
        cloud.kill_site(next(name for name, count in asked(cloud).items() if count))
        is_whole(await asking)
        await until(lambda: any(e.reporter == "ingress" for e in cloud.all_events()))
        (event,) = (e for e in cloud.all_events() if e.reporter == "ingress")
        decision = event.decision
        assert decision is not None
        assert (event.attempts, decision.foretold) == (2, ())
        assert event.first_byte_ms is not None
        assert decision.actual_ttft_ms is not None
        assert decision.since_ms > 0
        assert decision.since_ms + decision.actual_ttft_ms == pytest.approx(event.first_byte_ms)

    run(main)
