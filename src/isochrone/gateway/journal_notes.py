"""What the journal notes between the opening and the closing of a request, and of its batches."""

import msgspec

from isochrone.core.ids import RequestId
from isochrone.core.metering.event import Tokens, TokenSource


class TokensNote(msgspec.Struct, frozen=True):
    """`core.metering.tokens.Tokens`, whose types msgspec cannot read."""

    input_uncached: int
    input_cached: int
    output: int
    source: TokenSource

    @classmethod
    def of(cls, tokens: Tokens) -> "TokensNote":
        return cls(tokens.input_uncached, tokens.input_cached, tokens.output, tokens.source)

    def tokens(self) -> Tokens:
        return Tokens(
            input_uncached=self.input_uncached, input_cached=self.input_cached,
            output=self.output, source=self.source,
        )


class Progress(msgspec.Struct, array_like=True, frozen=True):
    """Tokens of an open request at one instant."""

    request_id: RequestId
    at: int
    tokens: TokensNote


class Shipped(msgspec.Struct, array_like=True, frozen=True):
    """The batch that ends at `offset` of `segment` is in the durable stream."""

    segment: str
    offset: int
