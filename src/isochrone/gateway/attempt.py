"""One try of a request at one target: connects, sends, and takes the answer in.

Nothing reaches the client before the first byte of a stream or the whole of another answer is
there, so everything that goes wrong earlier may be tried again elsewhere; the exchange decides.
"""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from isochrone.core.continuation.kin import Kin, kin_of
from isochrone.core.ids import ReplicaId
from isochrone.core.metering.event import Tokens
from isochrone.core.routing.engine_slots import Place
from isochrone.core.world.model import COMMON_ENDPOINTS
from isochrone.core.world.tenant import Class
from isochrone.gateway.coalescing import DENSE_BYTES
from isochrone.gateway.continuation.hop import kin_lines, parse_kin
from isochrone.gateway.continuation.seam import Seam
from isochrone.gateway.message_meter import MessageMeter, meter_for
from isochrone.gateway.meter import StreamMeter
from isochrone.gateway.peer_hop import CLASSES, parse_tokens
from isochrone.gateway.replies import EVENTS, Refusal
from isochrone.gateway.request import engine_body
from isochrone.gateway.target import Target
from isochrone.gateway.tenant_slots import is_parted, placed_body
from isochrone.gateway.upstream import UpstreamConnection, without_address
from isochrone.gateway.waiting import is_pushed, may_wait_ms
from isochrone.wire import peer
from isochrone.wire.peer_codes import answer_code, proof, same_code

if TYPE_CHECKING:
    from isochrone.gateway.tries import Tries

# Statuses of an engine that say "not here, not now": our key is wrong, it is full or loading.
TRY_ELSEWHERE: Final = frozenset((401, 403, 429, 502, 503))
OK: Final = 200  # nothing else below 400 is an answer: a redirect leads where clients cannot go

_HOP: Final = peer.HOP.encode()
_REFUSED: Final = peer.REFUSED.encode()
_QUEUED: Final = peer.QUEUED.encode()
_STOPPED: Final = peer.STOPPED.encode()
_TURNED_AWAY: Final = peer.TURNED_AWAY
_TURNED_AWAY_BYTES: Final = len(_TURNED_AWAY)

_NO_HEADERS: Final[Mapping[bytes, bytes]] = {}
_TOO_DEEP: Final = Refusal(
    status=400, reason="bad_request", message="The body is nested too deeply.",
)


class Attempt:
    """Receives the answer of one target for `exchange`."""

    status = 0
    content_type = "application/json"
    retry_after: str | None = None
    stated_tokens: Tokens | None = None
    turned_away = False  # a peer gave its slot back in mid-stream, and had none for it again
    meter: StreamMeter | MessageMeter | Seam | None
    place: Place | None = None  # in an engine that is told where its requests run
    last_ns = 0  # when the request was last sent
    _headers: Mapping[bytes, bytes]  # of a peer's answer
    _connection: UpstreamConnection | None = None
    _class_said: Class | None = None  # of a request for which the peer was to pay
    _over = False
    _given_up = False  # in the middle
    _size = 0
    _pieces: list[bytes] | None = None

    def __init__(self, exchange: "Tries", target: Target) -> None:
        self._exchange = exchange
        self.target = target
        self.unread_tokens = 0  # of the prompt, which its replica has to read still
        self.expected_ms = 0.0  # to the first byte; 0 where nobody can tell
        self.connected = False
        self.praised = False    # its first byte was told already
        self.late = False       # it was said already that its first byte is far too late
        self.meter = None
        self._headers = _NO_HEADERS
        replica = target.replica
        self.replica_id: ReplicaId | None = None if replica is None else replica.id

    @property
    def kin(self) -> Kin | None:
        """Of the replica that answers; None where a peer has not told."""
        replica = self.target.replica
        return parse_kin(self._headers) if replica is None else kin_of(replica)

    @property
    def said_of_stops(self) -> bytes | None:
        """What a peer that refuses it says of how it gave way there."""
        return self._headers.get(_STOPPED)

    def start(self, now_ns: int) -> None:
        """Send on an idle connection, or on a new one."""
        exchange = self._exchange
        idle = exchange.context.pool.take(self.target.address, now_ns)
        if idle is not None:
            self._send(idle)
        else:
            exchange.context.spawn(self._dial(exchange.connect_share_s(self.target)))

    def cancel(self) -> None:
        """Stop; the other side sees its connection close."""
        self._over = True
        connection, self._connection = self._connection, None
        if connection is not None:
            self._given_up = True
            connection.abort()

    def leave(self) -> None:
        """It is over for its place at an engine."""
        place, self.place = self.place, None
        if place is None:
            return
        unheard = self.status == 0 or (self._given_up and place.slot is None)
        now_ns = self._exchange.context.clock.monotonic_ns()
        place.left(now_ns, ran=None if unheard and self.last_ns else self.status == OK)

    def set_reading(self, reading: bool) -> None:
        """Pause or resume with the client."""
        if self._connection is not None:
            self._connection.set_reading(reading)

    async def _dial(self, timeout_s: float) -> None:
        self.connected = False
        try:
            connection = await self._exchange.context.pool.connect(
                self.target.address, timeout_s=timeout_s
            )
        except TimeoutError:
            self._fail(f"no connection within {timeout_s:.2f} s", unreachable=True)
        except OSError as error:
            self._fail(f"no connection: {without_address(error)}", unreachable=True)
        else:
            if self._over:
                connection.abort()
            else:
                self._send(connection)

    async def _dial_later(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        if not self._over:
            await self._dial(self._exchange.connect_share_s(self.target))

    def _send(self, connection: UpstreamConnection) -> None:
        exchange = self._exchange
        self._connection, self.connected = connection, True
        try:
            is_local = self.target.replica is not None
            data = self._engine_request() if is_local else self._peer_request()
        except RecursionError:  # it was read once, with more of the stack free
            self._stop()
            exchange.refuse(_TOO_DEEP)
            return
        if self.place is not None and self.place.wait_ns:
            self._connection = None
            connection.abort()
            exchange.context.spawn(self._dial_later(self.place.wait_ns / 1e9))
            self.place.wait_ns = 0
            return
        self.last_ns = exchange.context.clock.monotonic_ns()
        if not exchange.reply.head_sent:
            exchange.sent_ns = self.last_ns
        connection.send(data, self)
        if exchange.client_is_slow:
            connection.set_reading(False)

    def _engine_request(self) -> bytes:
        exchange, replica = self._exchange, self.target.replica
        assert replica is not None
        request, body = exchange.request, exchange.asking or exchange.body
        same_name = replica.upstream_model == request.model
        salt = ""
        if replica.cache_salt and request.endpoint != "messages":
            salt = exchange.context.salts.of_engine(exchange.key.org_id, request.own_salt or b"")
        if request.stream or salt or not same_name or request.endpoint not in COMMON_ENDPOINTS:
            body = engine_body(
                request, body, model=None if same_name else replica.upstream_model,
                running_counts=replica.running_counts, salt=salt,
            )
        if replica.pid is not None and is_parted(replica, request):
            if self.place is None:
                self.place = exchange.context.tenant_slots.place(exchange, replica)
            else:
                self.place.may_reuse = False  # others may have been sent there meanwhile
            body = placed_body(body, self.place, request.choices // request.prompts)
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (
            self.target.start_of(exchange.head.path), exchange.head.forwarded, len(body), body,
        )

    def _peer_request(self) -> bytes:
        exchange, context = self._exchange, self._exchange.context
        body, path = exchange.asking or exchange.body, exchange.head.path
        narrowing, client_id = exchange.narrowing, exchange.head.client_request_id
        tried, claim, class_ = exchange.tried_now, exchange.claim, exchange.class_
        unpaid = claim is not None and claim.unpaid
        if claim is not None and unpaid:
            class_ = claim.asked
        start, requests = self.target.hop_start(
            context.site,
            (path, exchange.key.id, class_,
             "" if narrowing is None else narrowing.hop_text, exchange.head.forwarded),
        )
        lines = "" if client_id is None else f"x-request-id: {client_id}\r\n"
        if exchange.wanted is not None:
            lines += kin_lines(exchange.wanted)
        if tried:
            lines += peer.tried_line([each.site for each in tried])
        code = proof(
            requests, exchange.request_id, context.clock.wall_ns(), body,
            pushed=is_pushed(exchange), patience_ms=may_wait_ms(exchange), unpaid=unpaid,
        )
        return b"%b%b%b: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            start, lines.encode("latin-1"), _HOP, code.encode("latin-1"), len(body), body,
        )

    # -- the answer, called by the connection ----------------------------------------------------

    def answered(self, status: int, headers: Mapping[bytes, bytes]) -> None:
        self.status = status
        content_type = headers.get(b"content-type")
        if content_type is not None and content_type != b"application/json":
            self.content_type = content_type.decode("latin-1")
        if self.target.replica is None:
            if not self._peer_is_genuine(status, headers):
                self._give_up("the answer does not carry the peer's code", unreachable=False)
                return
            queued_ms = headers.get(_QUEUED)
            if queued_ms is not None and queued_ms.isdigit() and len(queued_ms) < 10:
                self._exchange.queued_ns += int(queued_ms) * 1_000_000
            rule = headers.get(_REFUSED)
            if rule is not None:
                self._stop()
                after = headers.get(b"retry-after", b"")
                self._exchange.refused_by_peer(
                    self, rule.decode("latin-1"),
                    int(after) if after.isdigit() and len(after) < 10 else None,
                )
                return
            if self._class_said is not None:
                self._is_served_in(self._class_said)
        elif b"content-encoding" in headers and not _is_plain(headers):
            self._give_up("the engine answered in a coding nobody asked for", unreachable=False)
            return
        elif status in TRY_ELSEWHERE or (status != OK and status < 400):
            if status in (401, 403):
                self._exchange.context.targets.blame(
                    self.target.replica, f"it answers our key with status {status}"
                )
            self._hear_when_to_return(headers)
            self._give_up(f"the engine answered with status {status}", unreachable=False)
            return
        if status >= 400:
            self._hear_when_to_return(headers)
        request = self._exchange.request
        if status == OK and request.stream and self.has_events:
            self._begin_stream()

    def _hear_when_to_return(self, headers: Mapping[bytes, bytes]) -> None:
        retry_after = headers.get(b"retry-after")
        self.retry_after = None if retry_after is None else retry_after.decode("latin-1")

    def _is_served_in(self, class_: Class) -> None:
        """The peer that was to pay for the request has said whether it did."""
        exchange, claim = self._exchange, self._exchange.claim
        if claim is not None and claim.unpaid:
            exchange.class_ = claim.answered(class_)
            exchange.reply.extra = claim.lines

    @property
    def has_events(self) -> bool:
        """Whether the answer says that it is a stream of events."""
        return self.content_type.lower().startswith(EVENTS)

    def _begin_stream(self) -> None:
        request = self._exchange.request
        self.meter = meter_for(
            request.endpoint, request.choices, self._exchange.client_gets_usage,
            prompts=request.prompts,
        )

    def _peer_is_genuine(self, status: int, headers: Mapping[bytes, bytes]) -> bool:
        assert self.target.answers is not None
        said, _, code = headers.get(_HOP, b"").decode("latin-1").rpartition(" ")
        right = answer_code(
            self.target.answers, self._exchange.request_id, self.target.site, status, said
        )
        if not same_code(code, right):
            return False
        counts, _, replica = said.partition(" ")
        replica, _, class_ = replica.partition(" ")
        self._class_said = CLASSES.get(class_)
        self.replica_id = None if replica == peer.NOTHING else ReplicaId(replica)
        self.stated_tokens = parse_tokens(counts)
        self._headers = headers
        return True

    def received(self, data: bytes) -> None:
        meter = self.meter
        if meter is not None:
            out = self._of_stream(meter.feed(data))
            if out and not (meter.error and self._exchange.engine_failed(self, out)):
                self._exchange.stream(self, out)
            if len(data) >= DENSE_BYTES and self._connection is not None:
                self._connection.rest()
            return
        self._size += len(data)
        if self._size > self._exchange.context.settings.max_answer_bytes:
            self._give_up("the answer is too large", unreachable=False)
        else:
            if self._pieces is None:
                self._pieces = []
            self._pieces.append(data)

    def _of_stream(self, events: bytes) -> bytes:
        """Whole events that were read, without the word of a peer that leaves the stream to this
        gateway."""
        # Asked of every read of a hop: `endswith` parses its arguments each time, a slice does not.
        if self.target.replica is None and events[-_TURNED_AWAY_BYTES:] == _TURNED_AWAY:
            self.turned_away = True
            return events[:-_TURNED_AWAY_BYTES]
        return events

    def ended(self) -> None:
        self._connection = None
        if self._over:
            return
        if self.meter is None:
            body = b"".join(self._pieces or ())
            if self.status == OK and not (_is_object(body) or self.has_events):
                self._fail("the engine's answer is no JSON object", unreachable=False)
                return
            self._over = True
            self._exchange.answer_whole(self, body)
            return
        self._over = True
        rest = self.meter.end()
        if rest:
            if self.meter.error and self._exchange.engine_failed(self, rest):
                return
            self._exchange.stream(self, rest)
        self._exchange.stream_ended(self)

    def lost(self, why: str) -> None:
        connection, self._connection = self._connection, None
        if self._over or connection is None:
            return
        if self.status == 0 and not connection.fresh and self._exchange.was_closing(self):
            if self._exchange.may_ask_anew():
                timeout_s = self._exchange.connect_share_s(self.target)
                self._exchange.context.spawn(self._dial(timeout_s))
            else:
                self._over = True
            return
        self._over = self._given_up = True
        if self._exchange.head_sent and self.status:
            self._exchange.stream_broken(self, why)
        else:
            # An engine that closes has died; a gateway that closes has other connections.
            self._exchange.attempt_failed(
                self, why, unreachable=self.target.replica is not None
            )

    def _give_up(self, why: str, *, unreachable: bool) -> None:
        self._stop()
        self._exchange.attempt_failed(self, why, unreachable=unreachable)

    def _fail(self, why: str, *, unreachable: bool) -> None:
        if not self._over:
            self._over = True
            self._exchange.attempt_failed(self, why, unreachable=unreachable)

    def _stop(self) -> None:
        self._over = True
        self.cancel()


def _is_object(body: bytes) -> bool:
    """Whether it begins and ends as an object of JSON does: the page of a proxy does not."""
    if body[:1] != b"{" or body[-1:] != b"}":
        body = body.strip()
    return body[:1] == b"{" and body[-1:] == b"}"


def _is_plain(headers: Mapping[bytes, bytes]) -> bool:
    return headers[b"content-encoding"].strip().lower() in (b"", b"identity")
