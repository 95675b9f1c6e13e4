"""Gear 2: limits hold over real gateways on virtual time, with control killed and homes dying, and
what waits for a grant is served."""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest

from isochrone.adapters.packaged import default_world
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.billing.charge import PerUnit
from isochrone.core.billing.sheet import Price, PriceSheet, When
from isochrone.core.ids import LimitId, OrgId, ProjectId, SiteName
from isochrone.core.limits.terms import custodians_of, most_overspent
from isochrone.core.money import PICO
from isochrone.core.world.limit import Limit, LimitKind
from isochrone.core.world.tenant import EVERY_TENANT
from isochrone.gateway import metrics
from isochrone.gateway.limit_gauges import limit_families
from isochrone.ports.prices import StoredSheet
from isochrone.ports.telemetry import Metric, Sample
from isochrone.twin import loop as virtual
from isochrone.wiring.whole_system import Answer, WholeSystem, model_of
from isochrone.wiring.world_file import parse_world

SYDNEY, FRANKFURT, ASHBURN = map(SiteName, ("sydney", "frankfurt", "ashburn"))
SITES = (SYDNEY, FRANKFURT, ASHBURN)
OUTPUT = 20
KIND = "requests_per_min"


async def a_cloud(
    pool: Pool, seed: int, sites: tuple[SiteName, ...] = SITES
) -> tuple[WholeSystem, str]:
    """The first of the three sites, whose gateways have views and have run for a while."""
    parts = default_world().split("[[site]]")
    world = parse_world("[[site]]".join(parts[: len(sites) + 1]), source="default")
    system = WholeSystem(pool, world, seed=seed)
    system.prepare()
    secret = system.add_key("client", residency=("any",), transit=("any",))
    await system.start()
    await system.until(
        lambda: all(system.gateways[site].context.view.synced for site in sites), "views"
    )
    await asyncio.sleep(12)
    return system, secret


async def a_limit(system: WholeSystem, kind: LimitKind, amount: int) -> Limit:
    """Of the only project, known to all gateways."""
    is_budget = kind == "budget"
    limit = Limit(
        id=LimitId(f"of-{kind}"), org_id=OrgId("default"), project_id=ProjectId("default"),
        kind=kind, amount=amount, created_at=system.clock.wall_ns(),
        period="month" if is_budget else None, currency="EUR" if is_budget else None,
    )
    system.registry.limits.set_limit(EVERY_TENANT, limit)
    await system.until(
        lambda: all(each.context.shared_limits.is_on for each in system.gateways.values()), "told"
    )
    return limit


async def ask(system: WholeSystem, site: str, secret: str, number: int = 0) -> Answer:
    return await system.ask(site, secret, {
        "model": model_of(system.world), "max_tokens": OUTPUT,
        "messages": [{"role": "user", "content": f"number {number}"}],
    })


def exposed(system: WholeSystem, metric: Metric, *labels: str) -> float:
    """What all gateways together say of a metric at these labels."""
    return sum(
        sample.value
        for gateway in system.gateways.values()
        for family in limit_families(
            gateway.context.shared_limits, gateway.context.clock.monotonic_ns()
        )
        if family.metric is metric
        for sample in family.samples
        if isinstance(sample, Sample) and sample.labels == labels
    )


def run(seed: int, work: Coroutine[Any, Any, None]) -> None:
    virtual.run(work)


def test_a_small_limit_holds_over_all_sites(pool: Pool) -> None:
    async def play() -> None:
        system, secret = await a_cloud(pool, 1)
        await a_limit(system, "requests_per_min", 6)
        answers = [
            await ask(system, SITES[number % 3], secret, number) for number in range(9)
        ]
        assert [each.status for each in answers].count(200) == 6
        refused = [each for each in answers if each.status != 200]
        assert {each.status for each in refused} == {429}
        for each in refused:
            assert each.headers["x-isochrone-reason"] == "rate_limit_requests"
            assert 30 < int(each.headers["retry-after"]) <= 60
            assert each.headers["x-ratelimit-remaining-requests"] == "0"
        assert exposed(system, metrics.LIMITED_REQUESTS, "project", "used") == 6
        assert exposed(system, metrics.LIMITED_REQUESTS, "project", "usable") >= 6
        assert exposed(system, metrics.LIMIT_REFUSALS, KIND, "project", "used_up") == 3
        assert exposed(system, metrics.LIMIT_GRANTS, KIND, "taken") >= 3
        assert exposed(system, metrics.KEPT_LIMITS, KIND, "decides") == 1
        await asyncio.sleep(int(refused[0].headers["retry-after"]) + 1)
        assert (await ask(system, FRANKFURT, secret)).status == 200
        await system.stop()

    run(1, play())


def test_a_budget_is_spent_to_the_end_and_no_further_without_control(pool: Pool) -> None:
    async def play() -> None:
        system, secret = await a_cloud(pool, 2)
        sheet = PriceSheet(
            id="s", version=1, currency="EUR", valid_from=0,
            prices=(Price(
                name="all", when=When(meters=frozenset(("output_tokens", "input_uncached_tokens"))),
                charge=PerUnit(price_pico=PICO // 1000),
            ),),
        )
        system.registry.prices.add_sheet(
            EVERY_TENANT, StoredSheet(sheet=sheet, only_for=None, created_at=0), once=None
        )
        budget = await a_limit(system, "budget", PICO)
        await system.kill("control")
        count: Counter[int] = Counter()
        last: list[Answer] = []
        for number in range(60):
            answers = await asyncio.gather(*(ask(system, site, secret, number) for site in SITES))
            count.update(each.status for each in answers)
            last = [*last, *(each for each in answers if each.status == 429)]
        spent = sum(
            part.used(0) for each in system.gateways.values()
            for part in each.context.shared_limits.fleet.parts().values()
        )
        worst = 40 * PICO // 1000
        assert PICO - worst < spent <= PICO + most_overspent(budget.amount, 3)
        assert set(count) == {200, 429}
        assert last[-1].headers["x-isochrone-reason"] == "budget"
        assert b"insufficient_quota" in last[-1].body
        assert int(last[-1].headers["retry-after"]) > 3600
        await system.stop()

    run(2, play())


def test_the_successors_go_on_where_the_home_dies(pool: Pool) -> None:
    async def play() -> None:
        system, secret = await a_cloud(pool, 3)
        limit = await a_limit(system, "requests_per_min", 8)
        home = custodians_of(limit.id, SITES)[0]
        others = [site for site in SITES if site != home]
        for number in range(4):
            assert (await ask(system, others[number % 2], secret, number)).status == 200
        await system.kill("control")
        await system.kill(f"gateway {home}")
        statuses = [
            (await ask(system, others[number % 2], secret, number)).status for number in range(8)
        ]
        assert statuses.count(200) == 4
        assert statuses[:4] == [200] * 4, "what is left is granted by a successor"
        assert set(statuses[4:]) == {429}
        await system.stop()

    run(3, play())


def test_one_site_keeps_its_limits_alone(pool: Pool) -> None:
    async def play() -> None:
        system, secret = await a_cloud(pool, 6, (SYDNEY,))
        await a_limit(system, "requests_per_min", 3)
        statuses = [(await ask(system, SYDNEY, secret, number)).status for number in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        await system.stop()

    run(6, play())


def test_streams_at_a_time_are_counted_over_sites(pool: Pool) -> None:
    async def play() -> None:
        system, secret = await a_cloud(pool, 4)
        await a_limit(system, "concurrent", 4)
        work = asyncio.gather(
            *(ask(system, SITES[number % 3], secret, number) for number in range(12))
        )
        most = 0
        while not work.done():
            running = [
                part.held for each in system.gateways.values()
                for part in each.context.shared_limits.fleet.parts().values()
            ]
            most = max(most, sum(running))
            await asyncio.sleep(0.002)
        answers = await work
        assert most == 4
        assert [each.status for each in answers].count(200) >= 4
        assert {each.headers["x-isochrone-reason"] for each in answers if each.status != 200} <= {
            "concurrency"
        }
        await asyncio.sleep(10)
        assert (await ask(system, SYDNEY, secret)).status == 200
        await system.stop()

    run(4, play())


@pytest.mark.parametrize("kind", ["tokens_per_min"])
def test_tokens_are_settled_as_used(pool: Pool, kind: LimitKind) -> None:
    async def play() -> None:
        system, secret = await a_cloud(pool, 5)
        await a_limit(system, kind, 100_000)
        answer = await ask(system, SYDNEY, secret)
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-tokens"] == "100000"
        (part,) = system.gateways[SYDNEY].context.shared_limits.fleet.parts().values()
        assert part.held == 0
        assert part.used(system.clock.monotonic_ns()) >= OUTPUT
        await system.stop()

    run(5, play())
