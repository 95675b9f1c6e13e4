"""Prices one request by itself, so that who asked can be told what an answer cost.

As if it were all that was used: tiers begin at nothing, and what is once a period (bounds,
recurring amounts, fees) is left out. Of prices per unit it is what the request adds to the charge.
"""

from collections.abc import Sequence

from isochrone.core.billing.rate import Period, Quantity, Rated, rate
from isochrone.core.billing.sheet import HOUR_NS, Facts, Meter, PriceSheet
from isochrone.core.metering.event import UsageEvent


def price_of_request(event: UsageEvent, sheets: Sequence[PriceSheet], *, bound: bool) -> Rated:
    """`bound`: the policy of its key named the country that served. Only lines of usage."""
    hour_at = event.received_at - event.received_at % HOUR_NS
    counts: dict[Meter, int] = {
        "input_uncached_tokens": event.tokens.input_uncached,
        "input_cached_tokens": event.tokens.input_cached,
        "output_tokens": event.tokens.output,
    }
    if event.tokens.source != "none" or event.outcome == "finished":
        counts["requests"] = 1
    used = [
        Quantity(
            facts=Facts(
                meter=meter, model=event.model, class_=event.class_, site=event.serving_site,
                bound=bound,
            ),
            hour_at=hour_at, amount=amount,
        )
        for meter, amount in counts.items() if amount
    ]
    rated = rate(used, sheets, Period(begin=hour_at, end=hour_at + HOUR_NS))
    lines = tuple(line for line in rated.lines if line.kind == "usage")
    return Rated(currency=rated.currency, lines=lines, unpriced=rated.unpriced)
