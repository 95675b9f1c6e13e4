"""Plays one run of the whole system under faults, from one seed, and has it judged.

The run: a cloud is made and gets ready; clients ask while everything happens that the plan says;
then the faults end, and within stated times service is back and everything is at rest. What is left
- answers, the work of engines, the book, the ledger - goes before the judges of `twin/checks`.
"""

import asyncio
import json
import re
import traceback
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isochrone.adapters.packaged import default_world
from isochrone.control.charging import charge_now
from isochrone.core.billing.charge import PerUnit
from isochrone.core.billing.sheet import HOUR_NS, Price, PriceSheet, When
from isochrone.core.errors import StoreUnavailable
from isochrone.core.ids import EntitlementId, KeyId, OrgId, SiteName
from isochrone.core.metering.event import UsageEvent
from isochrone.core.rng import Random
from isochrone.core.world.tenant import EVERY_TENANT, Class
from isochrone.core.world.world import World
from isochrone.ports.book import UsageFilter
from isochrone.ports.prices import StoredSheet
from isochrone.twin import loop as virtual
from isochrone.twin.chaos.plan import SPAN_S, Plan, draw
from isochrone.twin.checks.judge import judge
from isochrone.twin.checks.record import Asked, Money, Record, Worked
from isochrone.wire.subjects import USAGE_STREAM
from isochrone.wiring.chaos_faults import REVOCABLE, Faults
from isochrone.wiring.faulty_pool import FaultyPool
from isochrone.wiring.whole_system import EVIDENCE_WAIT_S, LEFT, Answer, WholeSystem, model_of
from isochrone.wiring.world_file import parse_world

FIRST_S = 2.5       # no use in asking a new cloud sooner
READY_S = 40.0      # a new cloud answers within
ENDS_S = 150.0      # every request has ended so long after the faults: first byte 120 s
RECOVERY_S = 45.0   # service is back at every site within: an engine is started every 30 s
REST_S = 60.0       # everything is at rest within
LOOK_S = 0.5
SOLD = EntitlementId("sold")
PRICE_PICO = 3      # for every token
MOST_BOOKED = 10_000

_TOKEN = re.compile(rb'"content": ?"')
_REFERENCE = re.compile(r"user: (\S+) ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key that clients of a run have; `countries` as its policy's residency, None: anywhere."""

    id: KeyId
    org_id: OrgId
    countries: frozenset[str] | None
    secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What came of a seed: a hash of all that happened, and what the judges found wrong."""

    seed: int
    digest: str
    found: tuple[str, ...]
    requests: int
    trace: tuple[str, ...]
    record: Record


KEYS = (
    Key(id=KeyId("free"), org_id=OrgId("default"), countries=None),
    Key(id=KeyId("german"), org_id=OrgId("default"), countries=frozenset(("DE",))),
    Key(id=KeyId("other"), org_id=OrgId("acme"), countries=frozenset(("AU", "US"))),
    Key(id=REVOCABLE, org_id=OrgId("default"), countries=None),
)


def play(pool: FaultyPool, plan: Plan) -> Played:
    """Play a plan on an empty, migrated database."""
    return virtual.run(_Run.play(pool, plan))


def play_seed(pool: FaultyPool, seed: int) -> Played:
    return play(pool, draw(seed))


class _Run:
    """One run; made inside the virtual loop."""

    def __init__(self, pool: FaultyPool, plan: Plan) -> None:
        self.pool = pool
        self.plan = plan
        self.system = WholeSystem(pool, _world(plan), seed=plan.seed)
        self.system.hub.redeliver_after_s = plan.redeliver_s
        self.faults = Faults(self.system, pool, plan)
        self.asked: dict[str, Asked] = {}
        self.broken: list[str] = []
        self.keys: list[Key] = []
        self.rng: Random = self.system.chance("clients")
        self.sold = 0
        self.system.loop.set_exception_handler(self._crashed)

    def _crashed(self, _: object, context: dict[str, Any]) -> None:
        """A callback or a task raised what nobody caught."""
        error = context.get("exception")
        where = traceback.extract_tb(error.__traceback__)[-1] if error is not None else None
        self.broken.append(
            f"{context['message'].split('<')[0].strip()}: {error!r}"
            + (f" in {where.name}, {Path(where.filename).name}:{where.lineno}" if where else "")
        )

    @staticmethod
    async def play(pool: FaultyPool, plan: Plan) -> Played:
        run = _Run(pool, plan)
        await run._prepare()
        watching = run.system.loop.create_task(run._watch(), name="watch")
        await run._busy()
        await run._recover()
        stuck = await run._rest()
        watching.cancel()
        record = run._record(stuck)
        await run.system.stop()
        found = judge(record)
        for line in found:
            run.system.note(line)
        return Played(
            seed=plan.seed, digest=run.system.digest(), found=tuple(found),
            requests=len(run.asked), trace=tuple(run.system.trace), record=record,
        )

    # -- the four parts of a run -----------------------------------------------------------------

    async def _prepare(self) -> None:
        system = self.system
        system.prepare()
        system.add_organisation("acme")
        _set_price(system)
        for key in KEYS:
            countries = ("any",) if key.countries is None else tuple(sorted(key.countries))
            firm: tuple[Class, ...] = ("reserved", "on_demand")
            loose: tuple[Class, ...] = ("on_demand", "batch")
            secret = system.add_key(
                key.id, residency=countries, transit=("any",), org=key.org_id,
                classes=firm if key.id == "free" else loose,
            )
            self.keys.append(replace(key, secret=secret))
        await system.start()
        if self.plan.sold_tok_s:
            sold = dict.fromkeys(self._sites(), self.plan.sold_tok_s)
            self.sold = system.sell(SOLD, sold).tok_s
        await asyncio.sleep(FIRST_S)
        await self._all_answer(READY_S, "when it was new")

    async def _busy(self) -> None:
        """Clients ask while faults happen; returns when the faults have ended, and all requests."""
        clients = [
            self.system.loop.create_task(self._client(number), name=f"client {number}")
            for number in range(self.plan.requests)
        ]
        await self.faults.run()
        await self.faults.calm()
        await asyncio.wait(clients, timeout=ENDS_S)
        for task in clients:
            if task.done():
                task.result()
            else:
                task.cancel()

    async def _recover(self) -> None:
        await self._all_answer(RECOVERY_S, "after the faults")

    async def _rest(self) -> tuple[str, ...]:
        """Let everything come to rest; what has not within the time is stuck."""
        left = list(self._left())
        for _ in range(int(REST_S / LOOK_S)):
            if not left:
                break
            await asyncio.sleep(LOOK_S)
            left = list(self._left())
        # Evidence of requests that no ingress reports waits for it.
        await asyncio.sleep(EVIDENCE_WAIT_S + 3)
        return tuple(left or self._left())

    # -- clients ---------------------------------------------------------------------------------

    def _sites(self) -> list[SiteName]:
        return [site.name for site in self.system.world.sites]

    async def _client(self, number: int) -> None:
        rng = self.rng
        after_s, site, key = rng.uniform(0, SPAN_S), rng.choice(self._sites()), rng.choice(
            self.keys
        )
        leaves = rng.random() < self.plan.leaving
        words, tokens = rng.randint(1, 150), rng.randint(1, 40)
        stream, tier = rng.random() < 0.75, rng.choice((None, None, "priority", "flex"))
        patience_s = rng.uniform(0.01, 1.0) if leaves else None
        slow = rng.random() < self.plan.reading_slowly
        pause_s = rng.uniform(0.05, 6.0) if slow else None
        await asyncio.sleep(after_s)
        await self._ask(
            str(number), site, key, words=words, tokens=tokens, stream=stream, tier=tier,
            patience_s=patience_s, pause_s=pause_s,
        )

    async def _ask(
        self, reference: str, site: SiteName, key: Key, *, words: int = 1, tokens: int = 1,
        stream: bool = True, tier: str | None = None, patience_s: float | None = None,
        pause_s: float | None = None,
    ) -> Asked:
        system = self.system
        body: dict[str, object] = {
            "model": model_of(system.world), "max_tokens": tokens, "stream": stream,
            "messages": [{"role": "user", "content": f"{reference} {'word ' * words}"}],
        }
        if tier is not None:
            body["service_tier"] = tier
        one = self.asked[reference] = Asked(
            reference=reference, ingress=site, key_id=key.id, org_id=key.org_id,
            countries=key.countries, began_s=system.loop.time(), ended_s=None,
        )
        answer = await system.ask(
            site, key.secret, body, reference=reference, patience_s=patience_s, pause_s=pause_s
        )
        one = self.asked[reference] = _seen(one, answer, system.loop.time(), stream=stream)
        system.note(
            f"client {reference} {site} {key.id} {one.status} {one.reason} {one.tokens}"
            f" {one.whole} {answer.broken}"
        )
        return one

    async def _all_answer(self, within_s: float, when: str) -> None:
        """Ask with every key at every site until each was answered, or refused for ever."""
        until_s = self.system.loop.time() + within_s
        countries = {site.country for site in self.system.world.sites}
        async with asyncio.TaskGroup() as group:
            for site in self._sites():
                for key in self.keys:
                    allowed = key.countries is None or bool(key.countries & countries)
                    group.create_task(self._until_right(site, key, allowed, until_s, when))

    async def _until_right(
        self, site: SiteName, key: Key, allowed: bool, until_s: float, when: str
    ) -> None:
        """Ask again and again until the answer is what it has to be."""
        gone = key.id == REVOCABLE and self.faults.revoked
        for number in range(1000):
            reference = f"{when.replace(' ', '-')}-{site}-{key.id}-{number}"
            one = await self._ask(reference, site, key)
            right = one.whole
            if gone:
                right = one.status == 401
            elif not allowed:
                right = one.status == 403 and one.reason == "residency"
            if right:
                return
            if self.system.loop.time() >= until_s:
                if allowed and not gone:
                    self.asked[reference] = replace(one, must_succeed=True)
                else:
                    self.broken.append(
                        f"{when}, key {key.id} at {site} got {one.status} {one.reason}"
                    )
                return
            await asyncio.sleep(LOOK_S)

    # -- what is looked at -----------------------------------------------------------------------

    async def _watch(self) -> None:
        """What must hold at every instant."""
        while True:
            if self.sold:
                usable = sum(
                    gateway.letters.standing(SOLD).usable_tok_s
                    for gateway in self.system.gateways.values()
                )
                if usable > self.sold:
                    self.broken.append(
                        f"at {self.system.loop.time():.1f} s {usable} tokens/s may be used of"
                        f" {self.sold} that were sold"
                    )
            await asyncio.sleep(LOOK_S)

    def _left(self) -> Iterator[str]:
        """What is still open, reserved or waiting anywhere."""
        system = self.system
        for site, gateway in system.gateways.items():
            context, figures = gateway.context, gateway.context.journal.figures()
            waiters = sum(len(place.waiters) for place in context.queues.places.values())
            for count, what in (
                (len(context.exchanges), "open requests"),
                (waiters, "requests in its queues"),
                (figures.reserved_bytes, "bytes reserved in its journal"),
                (figures.waiting_batches, "batches not shipped"),
                (figures.held_records, "records held for want of room"),
            ):
                if count:
                    yield f"the gateway of {site} has {count} {what}"
        stream = system.hub.streams.get(USAGE_STREAM)
        if stream is not None and stream.messages:
            yield f"{len(stream.messages)} messages of usage are not booked"
        for site, driver in system.engines.items():
            for replica, engine in driver.engines.items():
                if engine.running and engine.server.running + engine.server.waiting:
                    yield f"replica {replica} at {site} still works for somebody"

    def _record(self, stuck: tuple[str, ...]) -> Record:
        system, book = self.system, self.system.book
        rows = book.requests(EVERY_TENANT, UsageFilter(), most=MOST_BOOKED)
        booked = tuple(row.event for row in rows)
        for event in booked:
            system.note(
                f"booked {event.request_id} {event.client_request_id} {event.outcome}"
                f" {event.reporter} {event.tokens.total}"
            )
        parked = [f"parked: {each.reason}" for each in book.parked(most=100)]
        return Record(
            asked=tuple(self.asked.values()), booked=booked, worked=tuple(self._worked()),
            downs=tuple(self.faults.downs), money=self._money(booked),
            stuck=stuck,
            broken=(*self.broken, *system.failed, *self.pool.lock_timeouts, *parked),
            is_exact=not self.plan.has_faults and not self.plan.leaving,
        )

    def _worked(self) -> Iterator[Worked]:
        countries = {site.name: site.country for site in self.system.world.sites}
        for site, driver in self.system.every_engine():
            for work in driver.server.works:
                found = _REFERENCE.match(work.prompt)
                yield Worked(
                    reference=found.group(1) if found else work.prompt[:40], site=site,
                    country=countries[site], prompt_tokens=work.prompt_tokens,
                    output_tokens=work.output_tokens,
                )

    def _money(self, booked: tuple[UsageEvent, ...]) -> Money:
        system = self.system
        ledger, last = system.registry.ledger, system.clock.wall_ns()
        last = max([last, *(event.received_at for event in booked)]) + 2 * HOUR_NS
        try:
            charge_now(ledger, now=last)
        except StoreUnavailable as error:
            self.broken.append(f"charging: {error.message}")
        balances = ledger.balances(EVERY_TENANT, org_id=None, project_id=None)
        charged: dict[OrgId, int] = {}
        for (account, _), amount in balances.items():
            if account.kind == "owed":
                charged[account.org_id] = charged.get(account.org_id, 0) - amount
        used: defaultdict[OrgId, int] = defaultdict(int)
        for event in booked:
            used[event.org_id] += event.tokens.total * PRICE_PICO
        return Money(
            charged=charged, used={org: sum_ for org, sum_ in used.items() if sum_},
            sum_pico=sum(balances.values()),
            wrong_hours=system.book.wrong_hours(since=0, until=2**62),
        )


def _seen(one: Asked, answer: Answer, now_s: float, *, stream: bool) -> Asked:
    """An answer as the judges take it."""
    body, headers = answer.body, answer.headers
    is_whole = answer.status == 200 and answer.broken is None
    tokens, code = 0, None
    if answer.status >= 400:
        code = _code_of(body)
    elif stream:
        tokens, is_whole = len(_TOKEN.findall(body)), is_whole and b"data: [DONE]" in body
    elif is_whole:
        tokens = int(json.loads(body)["usage"]["completion_tokens"])
    return replace(
        one, ended_s=now_s, status=answer.status, reason=headers.get("x-isochrone-reason"),
        code=code, request_id=answer.request_id,
        serving_country=headers.get("x-isochrone-country"), tokens=tokens, whole=is_whole,
        told_error=b'data: {"error"' in body, left=answer.broken == LEFT,
    )


def _code_of(body: bytes) -> str | None:
    """The code of OpenAI's error body; None where it is none."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]) if error["code"] is not None else None
    except (ValueError, KeyError, TypeError):
        return None


def _world(plan: Plan) -> World:
    """The packaged world with as many sites, replicas and slots as the plan says."""
    world = parse_world(default_world(), source="default")
    sites = tuple(
        replace(site, deployments=tuple(
            replace(each, replicas=plan.replicas, engine=replace(each.engine, slots=plan.slots))
            for each in site.deployments
        ))
        for site in world.sites[: plan.sites]
    )
    return replace(world, sites=sites)


def _set_price(system: WholeSystem) -> None:
    """Every token costs the same, so that what was charged can be told from the book."""
    tokens = When(meters=frozenset((
        "input_uncached_tokens", "input_cached_tokens", "output_tokens"
    )))
    sheet = PriceSheet(
        id="standard", version=1, currency="EUR", valid_from=0,
        prices=(Price(name="tokens", when=tokens, charge=PerUnit(price_pico=PRICE_PICO)),),
    )
    system.registry.prices.add_sheet(
        EVERY_TENANT,
        StoredSheet(sheet=sheet, only_for=None, created_at=system.clock.wall_ns()), once=None,
    )
