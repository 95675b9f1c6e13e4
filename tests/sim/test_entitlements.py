"""Gear 2: what was sold is honoured without control, never more of it, wherever sites die.

The real gateways write one another letters on virtual time; judged by the booked usage of the class
`reserved`, and by when a site that asks for everything has it.
"""

import asyncio
from collections.abc import Iterable

import pytest

from isochrone.adapters.packaged import default_world
from isochrone.adapters.postgres.pool import Pool
from isochrone.core.admission.allowance import BURST_S
from isochrone.core.admission.entitlement import OUTPUT_WEIGHT
from isochrone.core.ids import EntitlementId, SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.world.tenant import Scope
from isochrone.ports.book import UsageFilter
from isochrone.twin import loop as virtual
from isochrone.wiring.whole_system import WholeSystem, model_of
from isochrone.wiring.world_file import parse_world

SYDNEY, FRANKFURT, ASHBURN = map(SiteName, ("sydney", "frankfurt", "ashburn"))
SOLD = {SYDNEY: 100, FRANKFURT: 100, ASHBURN: 100}
TOK_S = sum(SOLD.values())
OUTPUT = 20
REQUEST = 45  # what one of these requests uses, weighted
TERM_S, TAKEN_OVER_S = 15.0, 50.0
ID = EntitlementId("gold")
CLASS = "x-isochrone-class"


class Customers:
    """Ask for `tok_s` in all, at each of `sites`, for as long as they are there; `got` is the class
    of each answer, with its site and virtual time."""

    def __init__(self, system: WholeSystem, secret: str) -> None:
        self.sites: dict[str, int] = {}
        self.got: list[tuple[float, str, str]] = []
        self._system = system
        self._secret = secret
        self._numbers = 0

    async def run(self) -> None:
        """Until cancelled."""
        due: dict[str, float] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                for site, tok_s in self.sites.items():
                    due[site] = due.get(site, 0.0) + tok_s * 0.1
                    while due[site] >= REQUEST:
                        due[site] -= REQUEST
                        group.create_task(self._ask(site))
                usable = [
                    gateway.letters.standing(ID).usable_tok_s
                    for gateway in self._system.gateways.values()
                ]
                assert sum(usable) <= TOK_S, "more is honoured than was sold"
                await asyncio.sleep(0.1)

    async def _ask(self, site: str) -> None:
        self._numbers += 1
        body = {
            "model": model_of(self._system.world), "max_tokens": OUTPUT, "service_tier": "priority",
            "messages": [{"role": "user", "content": f"number {self._numbers}"}],
        }
        answer = await self._system.ask(site, self._secret, body)
        if answer.status == 200:
            now = self._system.loop.time()
            self.got.append((now, site, answer.headers[CLASS]))

    def shares(self, site: str, since: float) -> float:
        """The share of answers at a site since then that were reserved."""
        found = [class_ for at, where, class_ in self.got if where == site and at >= since]
        return found.count("reserved") / len(found) if found else 0.0


async def a_cloud(pool: Pool, seed: int) -> tuple[WholeSystem, Customers]:
    """Started, with three slices of 100 tokens/s sold, and a term since."""
    system = WholeSystem(pool, parse_world(default_world(), source="default"), seed=seed)
    system.prepare()
    secret = system.add_key(
        "gold", residency=("any",), transit=("any",), classes=("reserved", "on_demand")
    )
    await system.start()
    system.sell(ID, SOLD)
    await asyncio.sleep(TERM_S + 5)
    return system, Customers(system, secret)


def judge(system: WholeSystem) -> list[UsageEvent]:
    """In no span of time more was used of what was sold than it gives, what all sites may have
    saved up, and what had begun by then. Returns what was reserved."""
    booked = system.book.requests(Scope(org_id=None), UsageFilter(), most=100_000)
    reserved = [row.event for row in booked if row.event.class_ == "reserved"]
    spent = sorted((event.received_at, weight(event)) for event in reserved)
    for first in range(len(spent)):
        used = 0
        for at, tokens in spent[first:]:
            used += tokens
            span_s = (at - spent[first][0]) / 1e9
            assert used <= TOK_S * (span_s + BURST_S) * 1.002 + REQUEST
    return reserved


def weight(event: UsageEvent) -> int:
    tokens = event.tokens
    return tokens.input_uncached + tokens.input_cached + OUTPUT_WEIGHT * tokens.output


def reserved_tok_s(events: Iterable[UsageEvent], since_s: float, until_s: float) -> float:
    """By wall time, which begins with the virtual one."""
    inside = [
        weight(event) for event in events
        if since_s <= event.received_at / 1e9 < until_s
    ]
    return sum(inside) / (until_s - since_s)


def run(pool: Pool, seed: int, story: str) -> None:
    virtual.run(STORIES[story](pool, seed))


async def without_control(pool: Pool, seed: int) -> None:
    system, customers = await a_cloud(pool, seed)
    await system.kill("control")
    work = asyncio.create_task(customers.run())
    customers.sites = {SYDNEY: 600}  # twice of all that was sold
    await asyncio.sleep(30)
    since, since_at = system.loop.time(), system.clock.wall_ns()
    await asyncio.sleep(30)
    assert 0.4 < customers.shares(SYDNEY, since) < 0.65, "borrowed, and no more than was sold"
    until_at = system.clock.wall_ns()
    customers.sites = {SYDNEY: 300, FRANKFURT: 300}
    await asyncio.sleep(30)
    later = system.loop.time()
    await asyncio.sleep(30)
    for site in (SYDNEY, FRANKFURT):
        assert 0.25 < customers.shares(site, later) < 0.75, "each has its own slice at least"
    await over(work)
    system.start_control()
    await asyncio.sleep(60)
    reserved = judge(system)
    assert reserved_tok_s(reserved, since_at / 1e9, until_at / 1e9) > 0.85 * TOK_S
    await system.stop()


async def sites_die(pool: Pool, seed: int) -> None:
    system, customers = await a_cloud(pool, seed)
    work = asyncio.create_task(customers.run())
    customers.sites = {SYDNEY: 330, FRANKFURT: 100}
    await asyncio.sleep(20)
    await system.kill("control")
    await system.kill(f"gateway {FRANKFURT}")
    customers.sites = {SYDNEY: 330}
    await asyncio.sleep(TAKEN_OVER_S)
    since = system.loop.time()
    await asyncio.sleep(20)
    assert customers.shares(SYDNEY, since) > 0.85, "the dead home's slice is looked after"
    system.start_gateway(FRANKFURT)
    customers.sites = {SYDNEY: 330, FRANKFURT: 90}
    await asyncio.sleep(3 * TERM_S + 5)
    since = system.loop.time()
    await asyncio.sleep(20)
    assert customers.shares(FRANKFURT, since) > 0.85, "a home that came back has its slice"
    await over(work)
    system.start_control()
    await asyncio.sleep(60)
    assert judge(system)
    await system.stop()


async def restarts(pool: Pool, seed: int) -> None:
    """Gateways die and come back at once, in turn, while everybody asks for everything."""
    system, customers = await a_cloud(pool, seed)
    work = asyncio.create_task(customers.run())
    customers.sites = {SYDNEY: 300, FRANKFURT: 300, ASHBURN: 300}
    rng = system.chance("killer")
    for site in (FRANKFURT, SYDNEY, FRANKFURT, ASHBURN):
        await asyncio.sleep(rng.uniform(3, 12))
        await system.kill(f"gateway {site}")
        await asyncio.sleep(rng.uniform(0.1, 1))
        system.start_gateway(site)
    await asyncio.sleep(30)
    since = system.loop.time()
    await asyncio.sleep(20)
    shares = [customers.shares(site, since) for site in SOLD]
    assert 0.7 < sum(shares) <= 1.2, "again as much as was sold"
    await over(work)
    await asyncio.sleep(60)
    judge(system)
    await system.stop()


async def over(work: asyncio.Task[None]) -> None:
    """Customers go; what they found wrong is raised."""
    work.cancel()
    await asyncio.wait([work])
    if not work.cancelled():
        work.result()


STORIES = {"without control": without_control, "sites die": sites_die, "restarts": restarts}


@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_more_than_was_sold_and_all_of_it(pool: Pool, story: str, seed: int) -> None:
    run(pool, seed, story)
