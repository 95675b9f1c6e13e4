"""Writes the answer of one request to its client: whole, as a stream, or as a refusal.

What a serving gateway adds for its peer (message code, replica, token counts) is added here too.
"""

from typing import Final

from isochrone.core.continuation.kin import Kin
from isochrone.core.ids import ReplicaId, RequestId
from isochrone.core.metering.event import Tokens
from isochrone.gateway.continuation.hop import kin_lines
from isochrone.gateway.incoming import Incoming
from isochrone.gateway.peer_hop import KEEP_ALIVE_S, Hop, render_tokens
from isochrone.gateway.replies import (
    EVENTS,
    JSON,
    Refusal,
    head,
    head_for_peer,
    refusal_lines,
)
from isochrone.gateway.server import ClientConnection
from isochrone.gateway.surface import ROUTES, error_body_for
from isochrone.wire import peer
from isochrone.wire.peer_codes import answer

_KEEP_ALIVE: Final = f"keep-alive: timeout={KEEP_ALIVE_S}\r\n"


class Reply:
    """The client's side of one exchange. `head_sent` once a stream has begun; `extra` are lines
    that every head of this request gets; `class_said` is what a peer is told that has to know in
    which class it is served.

    Each way to the end comes in two steps, so that the usage event is written in between: first the
    bytes (`whole`, `refuse`, `end_stream`), then `close`, which lets the next request begin.
    """

    __slots__ = (
        "_close", "_connection", "_cut", "_incoming", "class_said", "extra", "head_sent", "hop",
        "request_id",
    )

    def __init__(
        self, connection: ClientConnection, incoming: Incoming, request_id: RequestId,
        hop: Hop | None,
    ) -> None:
        self._connection = connection
        self._incoming = incoming
        self._close = False
        self._cut = False
        self.head_sent = False
        self.request_id = request_id
        self.hop = hop
        self.extra = ""
        self.class_said = ""

    def whole(
        self, status: int, *, where: str, timing: str, content_type: str, body: bytes,
        replica: ReplicaId | None, tokens: Tokens, retry_after: str | None,
    ) -> None:
        """An engine's answer that is not a stream, good or bad."""
        extra, counts = self.extra, peer.NOTHING
        if self.hop is not None:
            extra += _KEEP_ALIVE
            counts = render_tokens(tokens)
        if status >= 400:
            extra += f"{peer.REASON}: engine_error\r\n"
            if retry_after is not None:
                extra += f"retry-after: {retry_after}\r\n"
        self._write_whole(status, where, timing, content_type, body, extra, counts, replica)

    def refuse(self, refusal: Refusal, *, where: str, timing: str, typed: bool) -> None:
        """An error of our own; `typed` lets a peer try its next site."""
        extra = self.extra + refusal_lines(refusal)
        if self.hop is not None:
            extra += _KEEP_ALIVE
            if typed:
                extra += f"{peer.REFUSED}: {refusal.reason}\r\n"
        body = error_body_for(ROUTES.get(self._incoming.head.path), refusal)
        self._write_whole(refusal.status, where, timing, JSON, body, extra)

    def _write_whole(
        self, status: int, where: str, timing: str, content_type: str, body: bytes, extra: str,
        counts: str = peer.NOTHING, replica: ReplicaId | None = None,
    ) -> None:
        self._close = self._connection.will_close(self._incoming)
        if self.hop is None:
            top = head(
                status, content_type=content_type, request_id=self.request_id, where=where,
                timing=timing, length=len(body), close=self._close,
                client_request_id=self._incoming.head.client_request_id, extra=extra,
            )
        else:
            top = head_for_peer(
                status, content_type=content_type, extra=extra, length=len(body),
                hop=self._proof(self.hop, status, counts, replica), close=self._close,
            )
        self._connection.write(top + body)

    def begin_stream(
        self, *, where: str, timing: str, replica: ReplicaId | None, kin: Kin | None, data: bytes
    ) -> None:
        """The head of a stream together with its first bytes. A peer is told the `kin` of the
        replica, so that it knows who could go on."""
        self.head_sent = True
        extra = self.extra + "cache-control: no-cache\r\n"
        if self.hop is not None:
            extra += _KEEP_ALIVE
            if kin is not None:
                extra += kin_lines(kin)
            extra += f"{peer.HOP}: {self._proof(self.hop, 200, peer.NOTHING, replica)}\r\n"
        if self._incoming.head.old_http:
            self._incoming.keep_alive = False  # the end of the connection is the end of the body
        else:
            extra += "transfer-encoding: chunked\r\n"
        self._close = self._connection.will_close(self._incoming)
        top = head(
            200, content_type=EVENTS, request_id=self.request_id, where=where, timing=timing,
            length=None, close=self._close,
            client_request_id=self._incoming.head.client_request_id, extra=extra,
        )
        self._connection.write(top + self._framed(data))

    def stream(self, data: bytes) -> None:
        """More of a stream."""
        outbox = self._connection.outbox
        if data is outbox.content and not self._incoming.head.old_http:
            self._connection.write(outbox.framed)
        else:
            self._connection.write(self._framed(data))

    def end_stream(self) -> None:
        """The proper end of a stream."""
        if not self._incoming.head.old_http:
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
        return data if self._incoming.head.old_http else b"%x\r\n%b\r\n" % (len(data), data)

    def _proof(self, hop: Hop, status: int, counts: str, replica: ReplicaId | None) -> str:
        """What proves the answer to the peer, and what it says."""
        entrant = hop.entrant
        return answer(
            entrant.answers, self.request_id, entrant.serving, status, tokens=counts,
            replica=peer.NOTHING if replica is None else replica, class_=self.class_said,
        )
