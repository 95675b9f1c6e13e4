"""Says of which requests the record keeps the whole choice, and of which the outcome in brief.

The cost of each site that was considered takes most of a record. It is kept of a sample, and of
each request whose course anybody may ask about. See docs/explain.md.
"""

from typing import TYPE_CHECKING, Final

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Outcome

if TYPE_CHECKING:
    from isochrone.gateway.forward import Exchange

_DIGITS: Final = 4  # of an id's random end


class Detail:
    """`share` of the requests, from 0 to 1, are in the sample."""

    __slots__ = ("_below",)

    def __init__(self, share: float) -> None:
        # As text, since hexadecimal digits sort as they count and an id need not be parsed then.
        part = round(share * 16**_DIGITS)
        self._below = "g" if part >= 16**_DIGITS else f"{part:0{_DIGITS}x}"

    def is_sampled(self, request_id: RequestId) -> bool:
        """Whether a request is in the sample: the same answer whoever asks, without a draw of its
        own, since the end of an id is random."""
        return request_id[-_DIGITS:] < self._below

    def is_kept(self, exchange: "Exchange", outcome: Outcome) -> bool:
        """Whether the record of a request that ended like this keeps the whole of its last
        choice."""
        choice = exchange.choice
        return (
            choice is None
            or choice.site is None
            or outcome != "finished"
            or exchange.attempts != 1
            or len(exchange.tried) > 0
            or len(exchange.passed_over) > 0
            or exchange.narrowing is not None
            or exchange.head.asks_why
            or choice.is_spill
            or self.is_sampled(exchange.request_id)
        )
