"""Holds requests to the limits of their key, its project and its organisation, over all sites.

What may be used here is decided in `core/limits`: a request that fits in what was granted costs a
few comparisons, one that does not waits for an answer of the limit's home, a few seconds at most.
See docs/limits.md.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from isochrone.core.admission.limits import bucket_of, forgotten_in_s
from isochrone.core.ids import KeyId, OrgId, SiteName
from isochrone.core.limits.admit import Claim, Verdict
from isochrone.core.limits.fleet_limits import FleetLimits
from isochrone.core.limits.messages import LimitLetter, Message
from isochrone.core.limits.part import Part
from isochrone.core.limits.rate_card import PricedCard, card_in_force
from isochrone.core.metering.event import Tokens
from isochrone.core.money import written
from isochrone.core.rng import Random
from isochrone.core.world.limit import Limit, RateCard
from isochrone.core.world.tenant import ApiKey
from isochrone.gateway.limits import duration_text
from isochrone.gateway.replies import Refusal
from isochrone.gateway.request import InferenceRequest
from isochrone.gateway.view_cache import ViewCache
from isochrone.ports.clock import Clock

if TYPE_CHECKING:
    from isochrone.gateway.forward import Exchange

_REASONS: Final[dict[str, str]] = {
    "requests_per_min": "rate_limit_requests", "tokens_per_min": "rate_limit_tokens",
    "concurrent": "concurrency", "budget": "budget",
}
_WHAT: Final[dict[str, str]] = {
    "requests_per_min": "requests per minute", "tokens_per_min": "tokens per minute",
    "concurrent": "requests at a time",
}
_SECOND_NS: Final = 1_000_000_000
_MOST_LIMITS: Final = 12  # of one request: four kinds at three levels


class LimitedKey:
    """What the requests of one key count in. `cards` are empty without a budget; `priced` has them
    by when they become valid, with what the keys of the organisation made of them."""

    __slots__ = ("cards", "parts", "priced")

    def __init__(
        self, parts: tuple[Part, ...], cards: tuple[RateCard, ...], priced: dict[int, PricedCard]
    ) -> None:
        self.parts = parts
        self.cards = cards
        self.priced = priced


class SharedClaim:
    """What one request takes of its limits. `waits`: for a grant, and goes on by itself then."""

    __slots__ = ("_card", "claim", "key", "waits")

    def __init__(self, claim: Claim, key: ApiKey, card: PricedCard | None) -> None:
        self.claim = claim
        self.key = key
        self.waits = False
        self._card = card

    @property
    def card(self) -> PricedCard | None:
        """What its cost is known by; None where no limit asks for it."""
        return self._card


class SharedLimits:
    """Mutable, owned by the event loop. `send` takes letters to other gateways; `is_on`: there are
    limits at all; `refusals` counts by kind, whose limit it was, and why."""

    def __init__(self, site: SiteName, clock: Clock, rng: Random, view: ViewCache) -> None:
        wall_ns = clock.wall_ns()
        self.is_on = False
        self.send: Callable[[Sequence[LimitLetter]], None] = _send_nowhere
        self.fleet = FleetLimits(site, wall_ns ^ rng.getrandbits(60), wall_ns)
        self._site = site
        self._clock = clock
        self._view = view
        self._version = -1
        self._limits_version = 0
        self._sites: tuple[SiteName, ...] = ()
        self._keys: dict[KeyId, LimitedKey | None] = {}
        self._priced: dict[OrgId, dict[int, PricedCard]] = {}
        self._waiting: dict[Exchange, SharedClaim] = {}
        self._is_deciding = False
        self._is_answered = False  # while it decided
        self._reset_second = -1
        self._reset = ""
        self.refusals: dict[tuple[str, str, str], int] = {}

    # -- requests --------------------------------------------------------------------------------

    def admit(self, exchange: "Exchange", request: InferenceRequest) -> Refusal | None:
        """Take what the request needs, or say why not. It may wait (`exchange.limited.waits`): then
        `exchange.limits_decided` is called later."""
        key = exchange.key
        if key.id in self._keys:
            limited = self._keys[key.id]
        else:
            limited = self._keys[key.id] = self._limited(key)
        if limited is None:
            return None
        now_ns = exchange.started_ns
        card: PricedCard | None = None
        cost = 0
        if limited.cards:
            found = card_in_force(limited.cards, exchange.received_at)
            if found is not None:
                card = limited.priced[found.valid_from]
                rates = card.dearest(request.model, key.classes)
                cost = rates.at_most(request.prompt_tokens, request.output_tokens)
        estimate = request.prompt_tokens + request.output_tokens
        parts = limited.parts
        amounts: list[int] = []
        for part in parts:
            kind = part.limit.kind
            if kind == "tokens_per_min":
                amounts.append(estimate)
            elif kind == "budget":
                amounts.append(cost)
            else:
                amounts.append(1)
        claim = Claim(parts, amounts, exchange.received_at, now_ns)
        mine = exchange.limited = SharedClaim(claim, key, card)
        verdict = claim.decide(now_ns)
        if verdict == "admitted":
            return None
        if verdict == "waits":
            verdict = self._ask_in_turn(claim, now_ns)
        if verdict == "refused":
            return self._refusal(claim, now_ns)
        if verdict == "waits":
            mine.waits = True
            self._waiting[exchange] = mine
        return None

    def settle(
        self, exchange: "Exchange", tokens: Tokens, counted_tokens: int, now_ns: int
    ) -> None:
        """The request has ended, in whatever way. `counted_tokens` are those that count against
        limits of tokens."""
        mine = exchange.limited
        assert mine is not None, "it has limits"
        if mine.waits:
            mine.waits = False
            self._waiting.pop(exchange, None)
        total, cost = counted_tokens, 0
        if mine.card is not None and tokens.source != "none":
            cost = self._cost(mine.card, exchange, tokens)
        used: list[int] = []
        for part in mine.claim.parts:
            kind = part.limit.kind
            used.append(cost if kind == "budget" else total if kind == "tokens_per_min" else 1)
        mine.claim.settle(used, now_ns)

    def headers(self, claim: SharedClaim, now_ns: int) -> str:
        """Lines for the head of an answer, each with its CRLF: of the tightest limits."""
        return self._lines(claim, "requests_per_min", "requests", now_ns) + self._lines(
            claim, "tokens_per_min", "tokens", now_ns
        )

    # -- events ----------------------------------------------------------------------------------

    def sweep(self, now_ns: int) -> None:
        """A few times a second: follow the view and the time."""
        view = self._view
        if view.version != self._version:
            self._version = view.version
            self._take_view(now_ns)
        if self.is_on:
            self.send(self.fleet.tick(now_ns, self._clock.wall_ns()))
        if self._waiting:
            self._decide_waiting(now_ns)

    def hear(self, sender: SiteName, message: Message) -> list[LimitLetter]:
        """What another gateway wrote, whose name is proven; the answers."""
        now_ns = self._clock.monotonic_ns()
        answers = self.fleet.hear(sender, message, now_ns, self._clock.wall_ns())
        if self._waiting:
            self._decide_waiting(now_ns)
        return answers

    def _take_view(self, now_ns: int) -> None:
        sites, version = self._view.gateways() or (self._site,), self._view.limits_version
        if sites == self._sites and version == self._limits_version:
            return
        self._sites, self._limits_version = sites, version
        limits: list[Limit] = []
        for each in self._view.limits.values():
            limits.extend(each.limits)
        if not limits and not self.is_on:
            return
        self.fleet.take(limits, sites, now_ns, self._clock.wall_ns())
        self.is_on = bool(limits)
        # Prices may have changed, though no limit has.
        self._keys.clear()
        self._priced.clear()

    def _decide_waiting(self, now_ns: int) -> None:
        """Decide about all that wait, and ask for what they lack next. Where this gateway is the
        home it answers while it is asked: then once more, for each limit in a row at most."""
        if self._is_deciding:
            self._is_answered = True
            return
        self._is_deciding = True
        try:
            for _ in range(_MOST_LIMITS):
                self._is_answered = False
                for part in self._decide_each(now_ns):
                    self.send(self.fleet.ask_now(part, now_ns))
                if not self._is_answered:
                    break
        finally:
            self._is_deciding = False

    def _decide_each(self, now_ns: int) -> dict[Part, None]:
        """The limits to ask for, where requests wait for another one from now on."""
        to_ask: dict[Part, None] = {}
        for exchange, mine in list(self._waiting.items()):
            if not mine.waits:
                continue
            claim = mine.claim
            before, verdict = claim.lacking, claim.decide(now_ns)
            if verdict == "waits":
                if claim.lacking is not before:
                    to_ask.update(dict.fromkeys(claim.to_ask(now_ns)))
                continue
            mine.waits = False
            self._waiting.pop(exchange, None)
            refusal = None if verdict == "admitted" else self._refusal(claim, now_ns)
            exchange.limits_decided(refusal, now_ns)
        return to_ask

    # -- inside ----------------------------------------------------------------------------------

    def _ask_in_turn(self, claim: Claim, now_ns: int) -> Verdict:
        """Ask for the limit that a request waits for. Where this gateway is the home it has
        answered then, and the next limit may be the one that lacks."""
        verdict: Verdict = "waits"
        for _ in claim.parts:
            lacking = claim.lacking
            for part in claim.to_ask(now_ns):
                self.send(self.fleet.ask_now(part, now_ns))
            verdict = claim.decide(now_ns)
            if verdict != "waits" or claim.lacking is lacking:
                break
        return verdict

    def _limited(self, key: ApiKey) -> LimitedKey | None:
        wall_ns = self._clock.wall_ns()
        parts = self.fleet.parts_of(key.org_id, key.project_id, key.id, wall_ns)
        if not parts:
            return None
        if not any(part.limit.kind == "budget" for part in parts):
            return LimitedKey(parts, (), {})
        cards: tuple[RateCard, ...] = ()
        for each in self._view.limits.values():
            if each.org_id == key.org_id:
                cards = each.cards
        priced = self._priced.get(key.org_id)
        if priced is None:
            priced = {card.valid_from: PricedCard(card) for card in cards}
            self._priced[key.org_id] = priced
        return LimitedKey(parts, cards, priced)

    def _cost(self, card: PricedCard, exchange: "Exchange", tokens: Tokens) -> int:
        """What the request costs by where and how it was served."""
        request, attempt = exchange.parsed, exchange.attempt
        model = "" if request is None else request.model
        site, bound = "", False
        if attempt is not None:
            site = attempt.target.site
            policy = self._view.policy(exchange.key.policy_id)
            bound = policy is not None and attempt.target.country in policy.residency
        return card.rates(model, exchange.class_, site, bound).of(tokens)

    def _lines(self, claim: SharedClaim, kind: str, what: str, now_ns: int) -> str:
        most, left, is_used = -1, 0, False
        for part in claim.claim.parts:
            if part.limit.kind == kind:
                used = part.used(now_ns) + part.held
                here = max(part.ceiling(now_ns) - used, 0) + part.free
                here = min(here, max(part.limit.amount - used, 0))
                if most < 0 or here < left:
                    most, left, is_used = part.limit.amount, here, used > 0
        if most < 0:
            return ""
        reset = self._reset_text(now_ns) if is_used else "0s"
        return (
            f"x-ratelimit-limit-{what}: {most}\r\nx-ratelimit-remaining-{what}: {left}\r\n"
            f"x-ratelimit-reset-{what}: {reset}\r\n"
        )

    def _reset_text(self, now_ns: int) -> str:
        """When all that was used until now is forgotten; the same text for a second."""
        second = now_ns // _SECOND_NS
        if second != self._reset_second:
            self._reset_second = second
            self._reset = duration_text(forgotten_in_s(bucket_of(now_ns), second * _SECOND_NS))
        return self._reset

    def _refusal(self, claim: Claim, now_ns: int) -> Refusal:
        part = claim.lacking
        assert part is not None, "it was refused for one"
        index = 0
        while claim.parts[index] is not part:
            index += 1
        amount, limit = claim.amounts[index], part.limit
        of = whose(limit)
        if amount <= limit.amount and now_ns >= part.until_ns:
            self._count_refusal(limit, of, "unreachable")
            return Refusal(
                status=503, reason="limit_unreachable", retry_after_s=2,
                message=f"The gateways that keep a limit of this {of} do not answer, and what "
                "may be used without them is used.",
            )
        self._count_refusal(limit, of, "too_large" if amount > limit.amount else "used_up")
        wait_s = part.wait_s(amount, now_ns)
        if limit.kind == "budget":
            if wait_s is None:
                wait_s = self.fleet.ends_in_s(limit, self._clock.wall_ns())
            what = f"spend {written(limit.amount)} {limit.currency} a {limit.period}"
        else:
            what = f"use {limit.amount} {_WHAT[limit.kind]}"
        if amount > limit.amount:
            advice, wait_s = "This request alone may take more: ask for less at once.", None
        else:
            some = limit.kind == "budget" and part.unused > 0
            advice = "Ask for less at once, or try" if some else "Try"
            advice += f" again in {duration_text(wait_s or 1.0)}."
        return Refusal(
            status=429, reason=_REASONS[limit.kind],
            code="insufficient_quota" if limit.kind == "budget" else "rate_limit_exceeded",
            message=f"This {of} may {what}, over all sites. {advice}",
            retry_after_s=None if wait_s is None else max(math.ceil(wait_s), 1),
        )

    def _count_refusal(self, limit: Limit, of: str, why: str) -> None:
        place = (limit.kind, of, why)
        self.refusals[place] = self.refusals.get(place, 0) + 1


def whose(limit: Limit) -> str:
    """What the limit is of: a key, a project or an organisation."""
    return "key" if limit.key_id else "project" if limit.project_id else "organisation"


def _send_nowhere(letters: Sequence[LimitLetter]) -> None:
    return
