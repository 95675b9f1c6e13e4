"""What is exposed of limits over sites: sums by kind and level, and never a series of anybody's."""

from collections.abc import Sequence
from random import Random

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from isochrone.adapters.packaged import load_blocs, load_hardware
from isochrone.core.ids import KeyId, LimitId, ModelName, OrgId, PolicyId, ProjectId, SiteName
from isochrone.core.limits.messages import LimitLetter
from isochrone.core.metering.event import Tokens
from isochrone.core.money import PICO
from isochrone.core.world.limit import CardPrice, CardRule, Limit, LimitKind, OrgLimits, RateCard
from isochrone.core.world.tenant import ApiKey
from isochrone.gateway import metrics
from isochrone.gateway.forward import Exchange
from isochrone.gateway.limit_gauges import limit_families
from isochrone.gateway.replies import Refusal
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.shared_limits import SharedLimits
from isochrone.gateway.view_cache import Data, ViewCache
from isochrone.ports.telemetry import Metric, Sample

SITE = SiteName("sydney")
WALL_NS = 1_795_000_000_000_000_000
OUTPUT, PROMPT = 40, 15


class Clock:
    now_ns = 1_000_000_000_000

    def wall_ns(self) -> int:
        return WALL_NS + self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns


def a_limit(kind: LimitKind, amount: int, key: str | None = None) -> Limit:
    is_budget = kind == "budget"
    return Limit(
        id=LimitId(f"{kind} of {key}"), org_id=OrgId("org"), kind=kind, amount=amount, created_at=1,
        project_id=None if key is None else ProjectId("project"),
        key_id=None if key is None else KeyId(key),
        period="month" if is_budget else None, currency="EUR" if is_budget else None,
    )


class Home:
    """The only gateway of a cloud, and so the home of its limits."""

    def __init__(self, *limits: Limit) -> None:
        self.clock = Clock()
        self._view = ViewCache(
            SITE, Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex(),
            Data(blocs=load_blocs(), hardware=load_hardware()),
        )
        card = RateCard(
            currency="EUR", valid_from=0,
            prices=(CardPrice(
                rule=CardRule(meters=("output_tokens",)), price_pico=PICO // 100, per=1
            ),),
        )
        self._view.limits = {"l": OrgLimits(org_id=OrgId("org"), limits=limits, cards=(card,))}
        self._view.limits_version = 1
        self.limits = SharedLimits(SITE, self.clock, Random(1), self._view)
        self.limits.send = self._deliver
        self.pass_s(80)  # it has forgotten nothing

    def pass_s(self, seconds: int) -> None:
        for _ in range(4 * seconds):
            self.clock.now_ns += 250_000_000
            self.limits.sweep(self.clock.now_ns)

    def _deliver(self, letters: Sequence[LimitLetter]) -> None:
        for letter in letters:
            assert letter.to == SITE
            self._deliver(self.limits.hear(SITE, letter.message))

    def ask(self, key: str, project: str = "project") -> tuple[Exchange, Refusal | None]:
        exchange = Exchange.__new__(Exchange)
        exchange.key = ApiKey(
            id=KeyId(key), secret_sha256="", org_id=OrgId("org"), project_id=ProjectId(project),
            policy_id=PolicyId("p"),
        )
        exchange.class_, exchange.limited, exchange.attempt = "on_demand", None, None
        exchange.started_ns, exchange.received_at = self.clock.now_ns, self.clock.wall_ns()
        request = exchange.parsed = InferenceRequest(
            "chat.completions", ModelName("model"), True, True, 1, 1, 4 * PROMPT, OUTPUT, None,
            msgspec.Raw(b"[]"), (), True,
        )
        return exchange, self.limits.admit(exchange, request)

    def read(self, metric: Metric) -> dict[tuple[str, ...], float]:
        families = list(limit_families(self.limits, self.clock.now_ns))
        (family,) = [each for each in families if each.metric is metric]
        return {each.labels: each.value for each in family.samples if isinstance(each, Sample)}


def test_what_is_used_held_and_granted_is_summed_by_kind_and_level() -> None:
    home = Home(
        a_limit("requests_per_min", 100, "one"), a_limit("requests_per_min", 50, "two"),
        a_limit("tokens_per_min", 1000), a_limit("concurrent", 9), a_limit("budget", 5 * PICO),
    )
    first, _ = home.ask("one")
    home.ask("two")
    assert home.read(metrics.LIMITS) == {
        ("requests_per_min", "key"): 2, ("tokens_per_min", "organisation"): 1,
        ("concurrent", "organisation"): 1, ("budget", "organisation"): 1,
    }
    requests = home.read(metrics.LIMITED_REQUESTS)
    assert (requests["key", "used"], requests["key", "waiting"]) == (2, 0)
    assert 2 <= requests["key", "usable"] <= 150
    tokens = home.read(metrics.LIMITED_TOKENS)
    whole = PROMPT + OUTPUT
    assert (tokens["organisation", "used"], tokens["organisation", "held"]) == (0, 2 * whole)
    assert home.read(metrics.LIMITED_STREAMS)["organisation", "held"] == 2
    money = home.read(metrics.LIMITED_MONEY)
    assert (money["EUR", "organisation", "held"], money["EUR", "organisation", "used"]) == (0.8, 0)

    used = Tokens(input_uncached=5, output=10, source="engine")
    home.limits.settle(first, used, 20, first.started_ns)  # limits may count more than is charged
    tokens, money = home.read(metrics.LIMITED_TOKENS), home.read(metrics.LIMITED_MONEY)
    assert (tokens["organisation", "used"], tokens["organisation", "held"]) == (20, whole)
    assert money["EUR", "organisation", "used"] == 0.1
    assert money["EUR", "organisation", "held"] == 0.4
    assert home.read(metrics.LIMITED_STREAMS)["organisation", "held"] == 1
    assert home.read(metrics.KEPT_LIMITS) == {
        ("requests_per_min", "decides"): 2, ("tokens_per_min", "decides"): 1,
        ("concurrent", "decides"): 1, ("budget", "decides"): 1,
    }
    assert home.read(metrics.LIMIT_GRANTS)["requests_per_min", "taken"] >= 2


def test_refusals_say_of_which_kind_and_why() -> None:
    home = Home(
        a_limit("requests_per_min", 2, "one"), a_limit("tokens_per_min", PROMPT, "two"),
    )
    refusals = [home.ask("one")[1] for _ in range(3)] + [home.ask("two")[1]]
    assert [each is None for each in refusals] == [True, True, False, False]
    assert home.read(metrics.LIMIT_REFUSALS) == {
        ("requests_per_min", "key", "used_up"): 1, ("tokens_per_min", "key", "too_large"): 1,
    }


def test_there_are_as_many_series_for_a_thousand_keys_as_for_one() -> None:
    def series(keys: int) -> set[tuple[str, tuple[str, ...]]]:
        home = Home(*(
            a_limit(kind, 10**6, f"key {number}")
            for number in range(keys) for kind in ("requests_per_min", "tokens_per_min")
        ))
        for number in range(keys):
            assert home.ask(f"key {number}")[1] is None
        families = limit_families(home.limits, home.clock.now_ns)
        return {(family.metric.name, each.labels) for family in families for each in family.samples}

    assert series(200) == series(1)
