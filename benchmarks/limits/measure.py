"""What `run.py` measures, imported once it has decided for the compiled or the other form."""

import gc
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.packaged import load_blocs, load_hardware
from isochrone.core.billing.charge import PerUnit
from isochrone.core.billing.sheet import Price, PriceSheet, When
from isochrone.core.ids import (
    KeyId,
    LimitId,
    OrgId,
    ProjectId,
    SiteName,
)
from isochrone.core.limits.messages import LimitLetter
from isochrone.core.limits.rate_card import card_of
from isochrone.core.metering.event import Tokens
from isochrone.core.money import PICO
from isochrone.core.world.limit import LIMIT_KINDS, Limit, LimitKind, OrgLimits
from isochrone.gateway.forward import Exchange
from isochrone.gateway.shared_limits import SharedLimits
from isochrone.gateway.view_cache import Data, ViewCache
from isochrone.wiring.gateway_start import GC_THRESHOLDS
from tests.fixtures.gateways import Client, GatewayCloud, chat_body, post, until

ORG, PROJECT, KEY = OrgId("org"), ProjectId("project"), KeyId("key")
SITE = SiteName("sydney")
LEVELS = ("key", "project", "organisation")
CASES: Mapping[str, Sequence[tuple[LimitKind, str]]] = {
    "none of this key": (),
    "tokens, of the key": (("tokens_per_min", "key"),),
    "tokens, at key, project and org": tuple(("tokens_per_min", each) for each in LEVELS),
    "budgets at key, project and org": tuple(("budget", each) for each in LEVELS),
    "one of each kind": (
        ("requests_per_min", "key"), ("tokens_per_min", "key"), ("concurrent", "project"),
        ("budget", "organisation"),
    ),
    "all four kinds at all three": tuple(
        (kind, each) for each in LEVELS for kind in LIMIT_KINDS
    ),
}
WALL_NS = 1_795_000_000_000_000_000
OPEN = 50               # requests that run at a time
SPACING_NS = 1_000_000  # a thousand requests a second
SWEEP_NS = 250_000_000


class Clock:
    """Moved by hand."""

    now_ns = 1_000_000_000_000

    def wall_ns(self) -> int:
        return WALL_NS + self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


def measure(
    wanted: Sequence[tuple[LimitKind, str]], exchanges: Sequence[Exchange], count: int
) -> Mapping[str, float]:
    """CPU time in us a request, by what is done, and of a sweep."""
    clock = Clock()
    limits = _limits(clock, wanted)
    for _ in range(400):  # who keeps the limits has nothing left that it could have forgotten
        clock.now_ns += SWEEP_NS
        limits.sweep(clock.now_ns)
    spent = dict.fromkeys(("admit", "headers", "settle", "sweep"), 0)
    request = exchanges[0].request
    _begin(exchanges, clock)
    tokens = Tokens(input_uncached=300, input_cached=100, output=150, source="engine")
    done, swept_ns, sweeps, warm = 0, clock.now_ns, 0, min(count // 10, 10_000)
    read = time.thread_time_ns
    nothing_ns = _reading_ns()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    while done < count:
        if done == warm:
            spent = dict.fromkeys(spent, 0)
            sweeps = 0
        at_ns = read()
        for exchange in exchanges:
            assert limits.admit(exchange, request) is None
        admitted_ns = read()
        assert bool(wanted) == (exchanges[0].limited is not None)
        for exchange in exchanges:
            if exchange.limited is not None:
                assert not exchange.limited.waits
                limits.headers(exchange.limited, clock.now_ns)
        told_ns = read()
        for exchange in exchanges:
            if exchange.limited is not None:
                limits.settle(exchange, tokens, tokens.total, clock.now_ns)
        settled_ns = read()
        spent["admit"] += admitted_ns - at_ns - nothing_ns
        spent["headers"] += told_ns - admitted_ns - nothing_ns
        spent["settle"] += settled_ns - told_ns - nothing_ns
        done += OPEN
        clock.now_ns += OPEN * SPACING_NS
        _begin(exchanges, clock)
        if clock.now_ns - swept_ns >= SWEEP_NS:
            swept_ns, sweeps, at_ns = clock.now_ns, sweeps + 1, read()
            limits.sweep(clock.now_ns)
            spent["sweep"] += read() - at_ns - nothing_ns
    gc.unfreeze()
    found = {
        name: spent[name] / 1000 / (count - warm) for name in ("admit", "headers", "settle")
    }
    return {
        **found, "admit + settle": found["admit"] + found["settle"],
        "a sweep": spent["sweep"] / 1000 / max(sweeps, 1),
    }


def _begin(exchanges: Sequence[Exchange], clock: Clock) -> None:
    """As if they had just been read."""
    for exchange in exchanges:
        exchange.limited = None
        exchange.started_ns = clock.now_ns
        exchange.received_at = clock.wall_ns()


def _reading_ns() -> int:
    """What reading the clock adds to what is measured."""
    read, most = time.thread_time_ns, 2_000
    began_ns = read()
    for _ in range(most):
        read()
    return (read() - began_ns) // most


def _limits(clock: Clock, wanted: Sequence[tuple[LimitKind, str]]) -> SharedLimits:
    signer = Ed25519PrivateKey.generate()
    view = ViewCache(
        SITE, signer.public_key().public_bytes_raw().hex(),
        Data(blocs=load_blocs(), hardware=load_hardware()),
    )
    made = [_limit(kind, level) for kind, level in wanted]
    # Of somebody else, too: where nobody has limits nothing is looked up.
    other = Limit(
        id=LimitId("other"), org_id=OrgId("other"), kind="concurrent", amount=9, created_at=1
    )
    sheet = PriceSheet(
        id="standard", version=1, currency="EUR", valid_from=0,
        prices=tuple(
            Price(
                name=meter, when=When(meters=frozenset((meter,))),
                charge=PerUnit(price_pico=PICO // 3, per=1_000_000),
            )
            for meter in ("input_uncached_tokens", "input_cached_tokens", "output_tokens")
        ),
    )
    view.limits = {
        "one": OrgLimits(org_id=ORG, limits=tuple(made), cards=(card_of(sheet),)),
        "other": OrgLimits(org_id=OrgId("other"), limits=(other,)),
    }
    view.limits_version = 1
    limits = SharedLimits(SITE, clock, Random(1), view)

    def deliver(letters: Sequence[LimitLetter]) -> None:
        for letter in letters:  # all are to itself
            deliver(limits.hear(SITE, letter.message))

    limits.send = deliver
    return limits


def _limit(kind: LimitKind, level: str) -> Limit:
    is_budget = kind == "budget"
    return Limit(
        id=LimitId(f"{kind} {level}"), org_id=ORG, kind=kind,
        amount=10**9 * PICO // 1000 if is_budget else 10**9, created_at=1,
        project_id=None if level == "organisation" else PROJECT,
        key_id=KEY if level == "key" else None,
        period="month" if is_budget else None, currency="EUR" if is_budget else None,
    )


async def measure_all(
    cloud: GatewayCloud, count: int
) -> AsyncIterator[tuple[str, Mapping[str, float]]]:
    """Each of `CASES`, over requests that a gateway has sent to its engine, which keeps them."""
    site = await cloud.add_site(SITE, "AU")
    await cloud.key("secret")
    await cloud.ready()
    engine, exchanges = site.engines[0], site.running.context.exchanges
    engine.hold.clear()
    clients = [await Client.open(site) for _ in range(OPEN)]
    for client in clients:
        client.send(post(chat_body(max_tokens=200)))
    await until(lambda: len(exchanges) == OPEN and all(each.attempt for each in exchanges))
    kept = list(exchanges)
    for each in kept:
        each.key = replace(each.key, id=KEY, org_id=ORG, project_id=PROJECT)
    for name, limits in CASES.items():
        yield name, measure(limits, kept, count)
    for each in kept:
        each.limited = None
    engine.hold.set()
    await until(lambda: not exchanges)
