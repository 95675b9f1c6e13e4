"""Writes the answer of one request to its client: whole, as a stream, or as a refusal.

What a serving gateway adds for its peer (message code, replica, token counts) is added here too.
"""

from isochrone.core.ids import ReplicaId, RequestId
from isochrone.core.metering.event import Tokens
from isochrone.gateway.incoming import Incoming
from isochrone.gateway.peer_hop import KEEP_ALIVE_S, Hop, render_tokens
from isochrone.gateway.replies import (
    EVENTS,
    JSON,
    Origin,
    Refusal,
    error_body,
    head,
    refusal_headers,
)
from isochrone.gateway.server import ClientConnection
from isochrone.wire import peer


class Reply:
    """The client's side of one exchange. `head_sent` once a stream has begun.

    Each way to the end comes in two steps, so that the usage event is written in between: first the
    bytes (`whole`, `refuse`, `end_stream`), then `close`, which lets the next request begin.
    """

    __slots__ = ("_close", "_connection", "_cut", "_incoming", "head_sent", "hop")

    def __init__(
        self, connection: ClientConnection, incoming: Incoming, hop: Hop | None
    ) -> None:
        self._connection = connection
        self._incoming = incoming
        self._close = False
        self._cut = False
        self.head_sent = False
        self.hop = hop

    def whole(
        self, status: int, origin: Origin, *, content_type: str, body: bytes,
        replica: ReplicaId | None, tokens: Tokens, retry_after: str | None,
    ) -> None:
        """An engine's answer that is not a stream, good or bad."""
        extra = self._for_peer(status, origin.request_id, replica)
        if self.hop is not None:
            extra[peer.TOKENS] = render_tokens(tokens)
        if retry_after is not None:
            extra["retry-after"] = retry_after
        if status >= 400:
            extra[peer.REASON] = "engine_error"
        self._write_whole(status, origin, content_type, body, extra)

    def refuse(self, refusal: Refusal, origin: Origin, *, typed: bool) -> None:
        """An error of our own; `typed` lets a peer try its next site."""
        extra = refusal_headers(refusal)
        extra |= self._for_peer(refusal.status, origin.request_id, None)
        if self.hop is not None and typed:
            extra[peer.REFUSED] = refusal.reason
        self._write_whole(refusal.status, origin, JSON, error_body(refusal), extra)

    def _write_whole(
        self, status: int, origin: Origin, content_type: str, body: bytes, extra: dict[str, str]
    ) -> None:
        self._close = self._connection.will_close(self._incoming)
        top = head(
            status, origin, content_type=content_type, length=len(body), close=self._close,
            extra=extra,
        )
        self._connection.write(top + body)

    def begin_stream(self, origin: Origin, replica: ReplicaId | None, data: bytes) -> None:
        """The head of a stream together with its first bytes."""
        self.head_sent = True
        extra = self._for_peer(200, origin.request_id, replica)
        extra["cache-control"] = "no-cache"
        if self._incoming.old_http:
            self._incoming.keep_alive = False  # the end of the connection is the end of the body
        else:
            extra["transfer-encoding"] = "chunked"
        self._close = self._connection.will_close(self._incoming)
        top = head(
            200, origin, content_type=EVENTS, length=None, close=self._close, extra=extra
        )
        self._connection.write(top + self._framed(data))

    def stream(self, data: bytes) -> None:
        """More of a stream."""
        self._connection.write(self._framed(data))

    def end_stream(self) -> None:
        """The proper end of a stream."""
        if not self._incoming.old_http:
            self._connection.write(b"0\r\n\r\n")

    def cut_stream(self, last_event: bytes) -> None:
        """A stream that cannot go on: one last event, and then no end of the body."""
        self._cut = True
        if last_event:
            self._connection.write(self._framed(last_event))

    def close(self) -> None:
        """Everything was written: free the connection for its next request, or end it."""
        if self._cut:
            self._connection.cut()
        else:
            self._connection.done(close=self._close)

    def _framed(self, data: bytes) -> bytes:
        return data if self._incoming.old_http else b"%x\r\n%b\r\n" % (len(data), data)

    def _for_peer(
        self, status: int, request_id: str, replica: ReplicaId | None
    ) -> dict[str, str]:
        if self.hop is None:
            return {}
        request = self.hop.request
        code = peer.answer_code(self.hop.key, RequestId(request_id), request.serving, status)
        headers = {peer.CODE: code, "keep-alive": f"timeout={KEEP_ALIVE_S}"}
        if replica is not None:
            headers[peer.REPLICA] = replica
        return headers
