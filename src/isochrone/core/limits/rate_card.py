"""What one request costs, as a gateway can say it: rate cards from price sheets, rates from cards.

A card leaves out what depends on the quantity of a period. Of tiers it has the dearest: a budget is
rather a little short than passed. Packages are taken as filled. Minima, maxima, recurring amounts
and fees on totals other than of usage are no request's. What was really charged comes back with the
book's sum, hour by hour. Rates are exact: whole numbers over one denominator.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import lcm

from isochrone.core.billing.charge import Graduated, Package, Volume
from isochrone.core.billing.rate import WHOLE_BP
from isochrone.core.billing.sheet import Fee, Price, PriceSheet, When, in_force
from isochrone.core.metering.event import Tokens
from isochrone.core.world.limit import CardChange, CardPrice, CardRule, RateCard

_METERS = ("input_uncached_tokens", "input_cached_tokens", "output_tokens", "requests")
OTHER_SITE = ""
MOST_RATES = 10_000  # that are kept of a card
MOST_TOLD = 1 << 62  # above `limits.terms.MOST_AMOUNT`, below what messages hold


def cards_of(sheets: Sequence[PriceSheet], *, since: int) -> tuple[RateCard, ...]:
    """Of the sheets of one payer that price anything from `since` (wall ns) on: all that ever were
    would outgrow a message. Those that another replaced at their own instant have none, as a card
    has no version to tell them apart."""
    first = in_force(sheets, since)
    return tuple(
        card_of(sheet) for sheet in sheets
        if in_force(sheets, sheet.valid_from) is sheet
        and (sheet.valid_from > since or sheet is first)
    )


def card_of(sheet: PriceSheet) -> RateCard:
    """Of a sheet; what is about other things than requests is left out."""
    return RateCard(
        currency=sheet.currency, valid_from=sheet.valid_from,
        prices=tuple(
            _price(price, sheet.fees) for price in sheet.prices if _is_of_requests(price.when)
        ),
        changes=tuple(
            CardChange(
                rule=_rule(each.when), basis_points=min(each.basis_points, MOST_TOLD)
            )
            for each in sheet.adjustments if _is_of_requests(each.when)
        ),
    )


def card_in_force(cards: Sequence[RateCard], at: int) -> RateCard | None:
    """The one that prices a request that came then (wall ns)."""
    found: RateCard | None = None
    for card in cards:
        if card.valid_from <= at and (found is None or card.valid_from > found.valid_from):
            found = card
    return found


class Rates:
    """What the four meters of a request cost, in pico over one denominator."""

    __slots__ = ("_cached", "_output", "_over", "_request", "_uncached")

    def __init__(self, each: Sequence[Fraction]) -> None:
        over = lcm(*(rate.denominator for rate in each))
        uncached, cached, output, request = (int(rate * over) for rate in each)
        self._over: int = over
        self._uncached: int = uncached
        self._cached = cached
        self._output = output
        self._request = request

    def of(self, tokens: Tokens, requests: int = 1) -> int:
        """In whole pico, rounded up."""
        exact = (
            tokens.input_uncached * self._uncached + tokens.input_cached * self._cached
            + tokens.output * self._output + requests * self._request
        )
        return -(-exact // self._over)

    def at_most(self, prompt_tokens: int, output_tokens: int) -> int:
        """Of a request of which nothing is known to be cached."""
        exact = (
            prompt_tokens * max(self._uncached, self._cached) + output_tokens * self._output
            + self._request
        )
        return -(-exact // self._over)


def rates_of(card: RateCard, model: str, class_: str, site: str, bound: bool) -> Rates:
    """Of a request that was served so."""
    return Rates([_rate(card, meter, model, class_, site, bound) for meter in _METERS])


def dearest_rates(card: RateCard, model: str, classes: Iterable[str]) -> Rates:
    """At least those of a request that may be served at any site, in any of the classes."""
    rules = [*(each.rule for each in card.prices), *(each.rule for each in card.changes)]
    sites = {OTHER_SITE, *(site for rule in rules for site in rule.sites)}
    found = [
        [_rate(card, meter, model, class_, site, bound) for meter in _METERS]
        for class_ in classes for site in sorted(sites) for bound in (False, True)
    ]
    return Rates([max(each) for each in zip(*found, strict=True)])


class PricedCard:
    """A card, and the rates that were worked out of it so far."""

    __slots__ = ("_card", "_dearest", "_rates")

    def __init__(self, card: RateCard) -> None:
        self._card = card
        self._rates: dict[tuple[str, str, str, bool], Rates] = {}
        self._dearest: dict[tuple[str, tuple[str, ...]], Rates] = {}

    def rates(self, model: str, class_: str, site: str, bound: bool) -> Rates:
        """As `rates_of`."""
        place = (model, class_, site, bound)
        rates = self._rates.get(place)
        if rates is None:
            if len(self._rates) >= MOST_RATES:
                self._rates.clear()
            rates = self._rates[place] = rates_of(self._card, model, class_, site, bound)
        return rates

    def dearest(self, model: str, classes: tuple[str, ...]) -> Rates:
        """As `dearest_rates`, `on_demand` among the classes."""
        place = (model, classes)
        rates = self._dearest.get(place)
        if rates is None:
            if len(self._dearest) >= MOST_RATES:
                self._dearest.clear()
            known = sorted({"on_demand", *classes})
            rates = self._dearest[place] = dearest_rates(self._card, model, known)
        return rates


def _rate(
    card: RateCard, meter: str, model: str, class_: str, site: str, bound: bool
) -> Fraction:
    for price in card.prices:
        if _fits(price.rule, meter, model, class_, site, bound):
            rate = Fraction(price.price_pico, price.per)
            for change in card.changes:
                if _fits(change.rule, meter, model, class_, site, bound):
                    rate = rate * (WHOLE_BP + change.basis_points) / WHOLE_BP
            return rate
    return Fraction(0)


def _fits(rule: CardRule, meter: str, model: str, class_: str, site: str, bound: bool) -> bool:
    return (
        (not rule.meters or meter in rule.meters)
        and (not rule.models or model in rule.models)
        and (not rule.classes or class_ in rule.classes)
        and (not rule.sites or site in rule.sites)
        and (rule.bound is None or rule.bound == bound)
    )


def _is_of_requests(when: When) -> bool:
    return not when.kinds and (not when.meters or not when.meters.isdisjoint(_METERS))


def _price(price: Price, fees: Sequence[Fee]) -> CardPrice:
    charge = price.charge
    points = sum(fee.basis_points for fee in fees if not fee.of or price.name in fee.of)
    if isinstance(charge, Graduated | Volume):
        dearest, per = max(tier.price_pico for tier in charge.tiers), charge.per
    elif isinstance(charge, Package):
        dearest, per = charge.price_pico, charge.size
    else:
        dearest, per = charge.price_pico, charge.per
    told, over = _told(Fraction(dearest * (WHOLE_BP + points), per * WHOLE_BP))
    return CardPrice(rule=_rule(price.when), price_pico=told, per=over)


def _told(rate: Fraction) -> tuple[int, int]:
    """A rate in numbers that messages hold: in lowest terms, and rounded up where those are longer.
    What a single unit of is beyond every budget stays beyond it."""
    over = min(rate.denominator, MOST_TOLD)
    if rate.numerator > MOST_TOLD:
        over = max(min(over, MOST_TOLD * rate.denominator // rate.numerator), 1)
    return min(-(-rate.numerator * over // rate.denominator), MOST_TOLD), over


def _rule(when: When) -> CardRule:
    return CardRule(
        meters=tuple(sorted(when.meters)), models=tuple(sorted(when.models)),
        classes=tuple(sorted(when.classes)), sites=tuple(sorted(when.sites)), bound=when.bound,
    )
