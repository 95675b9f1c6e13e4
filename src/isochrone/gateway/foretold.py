"""Sets what was expected of a site beside what came, for each site that a stream was at.

A stream that was lost and went on elsewhere has a first token at each site, and each site's own was
predicted when that site was chosen.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from isochrone.core.routing.choice import Foretold
from isochrone.core.routing.chosen import Choice
from isochrone.wire.usage import DecisionRecord

if TYPE_CHECKING:
    from isochrone.gateway.forward import Exchange

NOTHING_FORETOLD: Final[tuple[Foretold, ...]] = ()


def foretold_of(
    exchange: "Exchange", last: Choice
) -> tuple[int | None, tuple[Foretold, ...]]:
    """Of a stream that was lost: when the site of its last choice began to answer, None where it
    did not, and the choices before it that did."""
    first_ns: int | None = None
    foretold: list[Foretold] = []
    for began in exchange.began:
        choice = began.choice
        if choice is last:
            first_ns = began.first_ns
        elif choice.site is not None:
            foretold.append(Foretold(
                site=choice.site,
                since_ms=(began.since_ns - exchange.received_ns) / 1e6,
                predicted_ttft_ms=choice.cost_ms - choice.decode_ms,
                actual_ttft_ms=(began.first_ns - began.since_ns) / 1e6,
            ))
    return first_ns, tuple(foretold)


def times_of_a_lost_stream(
    decision: DecisionRecord, attempts: int
) -> Sequence[tuple[float, float]]:
    """First tokens as expected and as they came, in ms; none where a try failed before that, as
    nobody predicts that."""
    found = [(each.predicted_ttft_ms, each.actual_ttft_ms) for each in decision.foretold]
    if decision.predicted_ttft_ms is not None and decision.actual_ttft_ms is not None:
        found.append((decision.predicted_ttft_ms, decision.actual_ttft_ms))
    return found if len(found) == attempts else ()
