"""What the journal notes between the opening and the closing of a request, and of its batches."""

import msgspec

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Tokens


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """Tokens of an open request at one instant."""

    request_id: RequestId
    at: int
    tokens: Tokens


class Shipped(msgspec.Struct, array_like=True, frozen=True):
    """The batch that ends at `offset` of `segment` is in the durable stream."""

    segment: str
    offset: int
