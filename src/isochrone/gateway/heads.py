"""Heads of messages: what a head says, read once, and the memory of heads that came before.

A client that stays sends the same head again and again, and so does an engine that answers; only
the length of the body differs. What the parser said of a head is therefore remembered under the
head's own bytes, the digits of its content-length cut out, and is used again for exactly these
bytes. Of a head between two gateways the value of `x-isochrone-hop`, which stands right before the
content-length, is cut out as well. Nothing else is ever skipped: a head that is new, has no plain
content-length, or does not come in one piece with its whole body goes through the parser.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Final, Generic, TypeVar

from isochrone.gateway.target import forwarded_lines
from isochrone.wire import peer

T = TypeVar("T")

CLIENT_ID_CHARS: Final = 200
MOST_REMEMBERED: Final = 2048
MOST_REMEMBERED_BYTES: Final = 2048  # of one head
MOST_DIGITS: Final = 9
_ZERO: Final = 48  # b"0"[0]

# Heads with these differ from request to request, so remembering them would only fill the memory.
_VARYING: Final = frozenset(
    (b"x-request-id", b"traceparent", b"tracestate", b"idempotency-key", b"transfer-encoding",
     b"expect", b"upgrade")
)
_LENGTH: Final = b"\r\ncontent-length: "
_NAMES: Final = (b"\r\nContent-Length: ", _LENGTH)
_EXPLAIN: Final = peer.EXPLAIN.encode()
_HOP: Final = f"\r\n{peer.HOP}: ".encode()
MOST_HOP_BYTES: Final = 256
_PLAIN: Final = b" ,-._/:@"  # beside letters and digits; no part of a line end


class RequestHead:
    """One head. Filled by the parser; complete after `settle` and never changed from then on."""

    __slots__ = (
        "asks_why",
        "client_request_id",
        "complete",
        "forwarded",
        "headers",
        "keep_alive",
        "known",
        "method",
        "old_http",
        "path",
        "secret_sha256",
        "session_id",
        "size_bytes",
        "url",
    )

    def __init__(self) -> None:
        self.method = b""
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.size_bytes = 0  # names and values of whole headers
        self.complete = False
        self.keep_alive = False
        self.old_http = False  # HTTP/1.0: no chunked answers
        self.path = ""
        self.client_request_id: str | None = None
        self.asks_why = False  # the client wants the whole choice on record
        self.session_id = b""  # the client's own word for what its requests have in common
        self.secret_sha256: str | None = None
        self.forwarded = b""
        self.known: object = None  # what routing has found out about it, for its own use

    def settle(self) -> None:
        """The head is whole: work out once what every request with it needs."""
        self.complete = True
        self.path = path_of(self.url)
        self.client_request_id = _client_request_id(self.headers)
        self.session_id = self.headers.get(b"x-session-id", b"")
        self.asks_why = self.headers.get(_EXPLAIN, b"").strip().lower() == b"full"
        self.secret_sha256 = _secret_sha256(self.headers)
        self.forwarded = forwarded_lines(self.headers)

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    @property
    def has_body(self) -> bool:
        """Whether a body is announced."""
        return (
            self.headers.get(b"content-length", b"0") != b"0"
            or b"transfer-encoding" in self.headers
        )


class HeadMemory(Generic[T]):
    """What is known of a head by its bytes without what is cut out. Bounded: when it is full,
    everything is forgotten at once."""

    __slots__ = ("_after", "_before", "_is_hop", "_known", "_last", "_max_body_bytes")

    def __init__(self, max_body_bytes: int) -> None:
        self._known: dict[bytes, T] = {}
        self._max_body_bytes = max_body_bytes
        # The head that came last, up to its digits and behind them: most come again at once.
        self._before = self._after = b"\0"
        self._last: T | None = None
        self._is_hop = False  # of that head the hop is cut out, too

    def recall(self, data: bytes) -> tuple[T, bytes, bytes] | None:
        """(what is known, body, value of the hop) when `data` is one whole message whose head is
        remembered; the value is empty where there is none."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return self._look_up(data)
        begin, hop = len(before), b""
        if self._is_hop:
            stop = data.find(b"\r\n", begin)
            hop = _hop_value(data, begin, stop)
            if hop == b"":
                return None
            begin = stop + len(_LENGTH)
        end, stop, size_bytes = min(len(data), begin + MOST_DIGITS), begin, 0
        while stop < end:
            digit = data[stop] - _ZERO
            if digit < 0 or digit > 9:
                break
            size_bytes = size_bytes * 10 + digit
            stop += 1
        known = self._last
        if known is None or not data.startswith(after, stop):
            # Another head, alike up to its length; or it has no plain length.
            return self._look_up(data) if data.startswith(b"\r\n", stop) else None
        whole = stop + len(after) + size_bytes == len(data) and stop > begin
        if whole and size_bytes <= self._max_body_bytes:
            return known, data[stop + len(after):], hop
        return None

    def _look_up(self, data: bytes) -> tuple[T, bytes, bytes] | None:
        parts = _split(data)
        if parts is None:
            return None
        before, after = parts
        known = self._known.get(before + after)
        if known is None:
            return None
        self._before, self._after, self._last = before, after, known
        self._is_hop = before.endswith(_HOP)
        return self.recall(data)

    def learn(self, data: bytes, headers: Mapping[bytes, bytes], known: T) -> None:
        """Remember the head of `data`, one whole message that the parser found nothing wrong with.
        """
        parts = _split(data)
        if parts is None or not _VARYING.isdisjoint(headers):
            return
        before, after = parts
        if len(before) + len(after) > MOST_REMEMBERED_BYTES:
            return
        begin = len(before)
        if before.endswith(_HOP):
            begin = data.find(b"\r\n", begin) + len(_LENGTH)
        if data[begin : max(data.find(b"\r\n", begin), begin)] != headers.get(b"content-length"):
            return
        if len(self._known) >= MOST_REMEMBERED:
            self._known.clear()
        self._known[before + after] = known


def _split(data: bytes) -> tuple[bytes, bytes] | None:
    """The head up to what is cut out, and behind it to its end."""
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return None
    at = data.find(_HOP, 0, end)
    if at >= 0:
        begin = at + len(_HOP)
        stop = data.find(b"\r\n", begin, end)
        digits_end = data.find(b"\r\n", stop + len(_LENGTH), end)
        if _hop_value(data, begin, stop) == b"" or digits_end != end - 4:
            return None
        return data[:begin], data[digits_end:end]
    for name in _NAMES:
        at = data.find(name, 0, end)
        if at >= 0:
            begin = at + len(name)
            stop = data.find(b"\r\n", begin, end)
            return data[:begin], data[stop:end]
    return None


def _hop_value(data: bytes, begin: int, stop: int) -> bytes:
    """The value of a hop, where it is plain and the content-length follows; else nothing."""
    if not begin < stop <= begin + MOST_HOP_BYTES or not data.startswith(_LENGTH, stop):
        return b""
    value = data[begin:stop]
    plain = value.translate(None, _PLAIN).isalnum() and value.strip() == value
    return value if plain else b""


def path_of(url: bytes) -> str:
    """The path without its query, of a target in either form (RFC 9112, 3.2)."""
    if url[:8].lower().startswith((b"http://", b"https://")):
        url = b"/" + url.partition(b"://")[2].partition(b"?")[0].partition(b"/")[2]
    return url.partition(b"?")[0].decode("latin-1")


def _client_request_id(headers: dict[bytes, bytes]) -> str | None:
    """The client's own id of the request, if it is short and printable, and not its secret: ids are
    written down."""
    given = headers.get(b"x-request-id")
    if given is None:
        return None
    secrets = (headers.get(b"authorization", b"")[7:], headers.get(b"x-api-key", b""))
    if any(secret.strip() and secret.strip() in given for secret in secrets):
        return None
    text = given.decode("latin-1")
    fit = len(text) <= CLIENT_ID_CHARS and text.isascii() and text.isprintable()
    return text if fit and text else None


def _secret_sha256(headers: dict[bytes, bytes]) -> str | None:
    """The hash of the secret in `Authorization: Bearer SECRET`, or else in `x-api-key`, as clients
    of Anthropic's API send it; None without one."""
    authorization = headers.get(b"authorization")
    if authorization is None:
        secret = headers.get(b"x-api-key")
        return None if secret is None else sha256(secret.strip()).hexdigest()
    if authorization[:7].lower() != b"bearer ":
        return None
    return sha256(authorization[7:].strip()).hexdigest()
