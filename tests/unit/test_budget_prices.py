"""What a gateway takes a request to cost: by its own organisation's prices, as they are now."""

from dataclasses import replace
from random import Random

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.packaged import load_blocs, load_hardware
from isochrone.core.ids import KeyId, LimitId, ModelName, OrgId, PolicyId, ProjectId
from isochrone.core.metering.event import Tokens
from isochrone.core.money import PICO
from isochrone.core.world.limit import CardPrice, CardRule, Limit, OrgLimits, RateCard
from isochrone.core.world.tenant import ApiKey
from isochrone.gateway.forward import Exchange
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.shared_limits import SharedLimits
from isochrone.gateway.view_cache import Data, ViewCache
from tests.unit.test_limit_gauges import SITE, Clock

OUTPUT = 10


def limits_of(org: str, price_pico: int) -> OrgLimits:
    """A budget, and one card that is valid from the same instant whoever it is for."""
    card = RateCard(
        currency="EUR", valid_from=0,
        prices=(CardPrice(rule=CardRule(meters=("output_tokens",)), price_pico=price_pico, per=1),),
    )
    limit = Limit(
        id=LimitId(f"budget of {org}"), org_id=OrgId(org), kind="budget", amount=10**6 * PICO,
        created_at=1, period="month", currency="EUR",
    )
    return OrgLimits(org_id=OrgId(org), limits=(limit,), cards=(card,))


class Gateway:
    """The only one of a cloud."""

    def __init__(self) -> None:
        self.clock = Clock()
        self._view = ViewCache(
            SITE, Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
            Data(blocs=load_blocs(), hardware=load_hardware()),
        )
        self.limits = SharedLimits(SITE, self.clock, Random(1), self._view)

    def told(self, *limits: OrgLimits) -> None:
        self._view.limits |= {each.org_id: each for each in limits}
        self._view.limits_version += 1
        self._view.version += 1
        self.limits.sweep(self.clock.now_ns)

    def ask(self, org: str) -> Exchange:
        exchange = Exchange.__new__(Exchange)
        exchange.key = ApiKey(
            id=KeyId(f"key of {org}"), secret_sha256="", org_id=OrgId(org),
            project_id=ProjectId("project"), policy_id=PolicyId("p"),
        )
        exchange.class_, exchange.limited, exchange.attempt = "on_demand", None, None
        exchange.started_ns, exchange.received_at = self.clock.now_ns, self.clock.wall_ns()
        request = exchange.parsed = InferenceRequest(
            "chat.completions", ModelName("model"), True, True, 1, 1, 4, OUTPUT, None,
            msgspec.Raw(b"[]"), (), True,
        )
        assert self.limits.admit(exchange, request) is None
        return exchange

    def cost(self, exchange: Exchange) -> tuple[int, int]:
        """What a request holds, and what it has used in the end."""
        assert exchange.limited is not None
        claim = exchange.limited.claim
        (held,), (part,) = claim.amounts, claim.parts
        before = part.used(self.clock.now_ns)
        used = Tokens(output=OUTPUT, source="engine")
        self.limits.settle(exchange, used, OUTPUT, self.clock.now_ns)
        return held, part.used(self.clock.now_ns) - before


def test_organisations_whose_prices_begin_at_one_instant_have_each_their_own() -> None:
    gateway = Gateway()
    gateway.told(limits_of("cheap", 1), limits_of("dear", PICO))
    for org, price_pico in (("cheap", 1), ("dear", PICO), ("cheap", 1)):
        assert gateway.cost(gateway.ask(org)) == (OUTPUT * price_pico, OUTPUT * price_pico)


def test_new_prices_count_at_once_though_no_limit_has_changed() -> None:
    gateway = Gateway()
    gateway.told(limits_of("org", 5))
    under_way, after = gateway.ask("org"), limits_of("org", 7)
    gateway.told(replace(after, limits=limits_of("org", 5).limits))
    assert gateway.cost(under_way) == (5 * OUTPUT, 5 * OUTPUT), "as it was admitted"
    assert gateway.cost(gateway.ask("org")) == (7 * OUTPUT, 7 * OUTPUT)
