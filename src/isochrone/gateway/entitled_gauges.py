"""Reads how what was sold stands at this gateway, by model, for the metrics in `metrics.py`."""

from collections import Counter
from collections.abc import Iterator

from isochrone.gateway import metrics
from isochrone.gateway.entitled import Entitled
from isochrone.gateway.letters import Letters
from isochrone.ports.telemetry import Family, Metric, Sample


def entitled_families(entitled: Entitled, letters: Letters, now_ns: int) -> Iterator[Family]:
    """Everything that is sold, as it stands now."""
    rates: Counter[tuple[str, ...]] = Counter()
    wanted: Counter[tuple[str, ...]] = Counter()
    left: Counter[tuple[str, ...]] = Counter()
    used: Counter[tuple[str, ...]] = Counter()
    claims: Counter[tuple[str, ...]] = Counter()
    for model, (honoured, refused, used_tokens) in entitled.past.items():
        claims[model, "honoured"], claims[model, "refused"] = honoured, refused
        used[model,] = used_tokens
    for sold in entitled.sold():
        model, standing = sold.entitlement.model, letters.standing(sold.entitlement.id)
        rates[model, "usable"] += standing.usable_tok_s
        rates[model, "borrowed"] += standing.borrowed_tok_s
        rates[model, "lent"] += standing.lent_tok_s
        wanted[model,] += round(sold.allowance.demand_tok_s)
        left[model,] += sold.allowance.left(now_ns)
        used[model,] += sold.used_tokens
        claims[model, "honoured"] += sold.honoured
        claims[model, "refused"] += sold.refused
    yield _family(metrics.ENTITLED_RATE, rates)
    yield _family(metrics.ENTITLED_WANTED, wanted)
    yield _family(metrics.ALLOWANCE, left)
    yield _family(metrics.ENTITLED_TOKENS, used)
    yield _family(metrics.CLAIMS, claims)
    outcomes = letters.payment_outcomes.items()
    yield Family(metrics.PAYMENTS, [Sample((name,), count) for name, count in outcomes])
    counts = {"sent": letters.sent, "lost": letters.lost, "heard": letters.heard}
    yield Family(metrics.LETTERS, [Sample((name,), count) for name, count in counts.items()])


def _family(metric: Metric, values: Counter[tuple[str, ...]]) -> Family:
    return Family(metric, [Sample(labels, value) for labels, value in values.items()])
