"""Reads requests from the bytes of one client connection, and says what is wrong with them.

httptools parses; what it lets pass and two HTTP readers could still understand differently, what
is too large, and what is not served here in this form becomes the fault of its request. The parser
does not show all that it lets pass (which protocol a start line names, how many spaces it has), so
the bytes of a head are kept until it is whole, and looked at once more.
"""

import re
from collections import deque
from typing import Any, Final

import httptools

from isochrone.gateway.heads import HeadMemory, RequestHead
from isochrone.gateway.incoming import Fault, Incoming
from isochrone.gateway.settings import GatewaySettings
from isochrone.wire import peer

_HOP: Final = peer.HOP.encode()
MOST_HEADERS = 128
MOST_PIPELINED = 64
MOST_PIECES = 1024  # of one read: empty lines within chunks are cheap to send

# Headers that mean one thing only; given twice, the two readers of a request could differ.
SINGLE = frozenset(
    (
        b"host", b"authorization", b"content-length", b"transfer-encoding", b"content-type",
        b"expect", b"x-request-id", b"x-api-key", b"upgrade", peer.RESIDENCY.encode(),
        peer.TRANSIT.encode(), peer.HOP.encode(),
    )
)

_HOST = re.compile(rb"[0-9A-Za-z.\-_~%!$&'()*+,;=:\[\]]*")  # RFC 3986, 3.2: host and port
_TABBED = re.compile(rb"\ntransfer-encoding:[^\r\n]*\t", re.IGNORECASE)


class Uploads:
    """Bytes of all bodies of one server that have not come in whole."""

    __slots__ = ("held_bytes",)

    def __init__(self) -> None:
        self.held_bytes = 0


class RequestReader:
    """Appends to `queue` what it reads. The last request there may be incomplete; behind one with
    a fault nothing is read. `heads` remembers heads of whole requests."""

    __slots__ = (
        "_at", "_heads", "_held_bytes", "_now_ns", "_parser", "_queue", "_raw", "_resuming",
        "_settings", "_too_many", "_uploads",
    )

    def __init__(
        self, queue: deque[Incoming], heads: HeadMemory[RequestHead], uploads: Uploads,
        settings: GatewaySettings,
    ) -> None:
        self._queue = queue
        self._heads = heads
        self._uploads = uploads
        self._settings = settings
        self._held_bytes = 0
        self._parser: Any = None
        self._resuming = False  # the parser is told again what it has forgotten
        self._too_many = False
        self._now_ns = 0
        self._raw = b""  # the piece that is being read, behind those before it of the same head
        self._at = 0  # where in it the next head begins, but for empty lines

    def read(self, data: bytes, now_ns: int) -> None:
        """Take in what has arrived. At most the last request of the queue is incomplete now."""
        queue, self._now_ns = self._queue, now_ns
        before = queue[-1] if queue else None
        self._feed(data)
        if not queue:
            self._raw = b""
            return
        last = queue[-1]
        if last.head.complete:
            self._raw = b""
        if before is last or (before is None and len(queue) == 1):
            last.read_bytes += len(data)
            if last.framing_bytes > self._settings.max_head_bytes:
                last.fault = last.fault or self._noise(last)
        self._hold(0 if last.complete or last.fault is not None else last.body_bytes)
        if self._uploads.held_bytes > self._settings.max_uploading_bytes and self._held_bytes:
            text = "Too many large bodies are being sent to this gateway; try again."
            last.fault = Fault(status=503, reason="too_many_uploads", message=text)
            self._hold(0)
        if last.fault is not None:
            last.pieces.clear()
        elif last.complete and before is None and len(queue) == 1 and not last.bodiless:
            self._heads.learn(data, last.head.headers, last.head)

    def close(self) -> None:
        """Nothing more is read: breaks the cycle between the parser and its callbacks."""
        self._parser = None
        self._hold(0)

    def _hold(self, size_bytes: int) -> None:
        """Account for what is there of a body that is not whole."""
        if size_bytes != self._held_bytes:
            self._uploads.held_bytes += size_bytes - self._held_bytes
            self._held_bytes = size_bytes

    # -- the parser ------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        """Read in pieces that end where a head or a body ends, so that it is known where the next
        head begins."""
        begin, size = 0, len(data)
        last = self._queue[-1] if self._queue else None
        if last is None or last.complete:
            end = data.find(b"\r\n\r\n")
            if end > 0 and data.find(b"\r", end + 4) < 0:  # one head, and nothing behind chunks
                self._feed_piece(data)
                return
        for _ in range(MOST_PIECES):
            end = self._end_of_piece(data, begin)
            if not self._feed_piece(data if end - begin == size else data[begin:end]):
                return
            begin = end
            if begin == size:
                return
        self._feed_piece(data[begin:])

    def _end_of_piece(self, data: bytes, begin: int) -> int:
        """Where the body ends that is being read; else behind the next empty line, with which
        heads and bodies in chunks end, also where it has begun in what was read before."""
        last = self._queue[-1] if self._queue else None
        if last is not None and last.head.complete and not last.complete:
            length = last.head.headers.get(b"content-length")
            if length is not None:
                return min(begin + int(length) - last.body_bytes, len(data))
            end = begin
            while data.startswith((b"\r", b"\n"), end):
                end += 1
            if end > begin:
                return end
        end = data.find(b"\r\n\r\n", begin)
        return len(data) if end < 0 else end + 4

    def _feed_piece(self, data: bytes) -> bool:
        """Whether reading can go on. What the parser finds wrong becomes the fault of the request
        at the end."""
        queue = self._queue
        if queue and not queue[-1].head.complete:
            self._raw += data
        else:
            self._raw, self._at = data, 0
        while data:
            if self._parser is None:
                self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserCallbackError:
                if not self._too_many:
                    raise
                text = f"At most {MOST_PIPELINED} requests may be sent ahead."
                self._spoil(Fault(status=400, reason="too_many_pipelined", message=text))
                return False
            except httptools.HttpParserUpgrade as upgrade:
                if queue[-1].fault is not None:
                    return False
                self._parser = self._resumed(queue[-1])
                data = data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                text = f"The request is not valid HTTP/1.1: {error}."
                fault = Fault(status=400, reason="bad_http", message=text)
                preface = self._parser.get_method() == b"PRI"
                self._spoil(_version("2.0") if preface else fault)
                return False
        return not queue or queue[-1].fault is None

    def _resumed(self, incoming: Incoming) -> Any:
        """An upgrade may be ignored (RFC 9110, 7.8), but the parser has stopped behind the head:
        a new one that was told how the body is framed and goes on with it."""
        parser = httptools.HttpRequestParser(self)
        headers = incoming.head.headers
        if incoming.head.has_body:
            incoming.complete = False
            chunked = b"transfer-encoding" in headers
            name = b"transfer-encoding" if chunked else b"content-length"
            self._resuming = True
            parser.feed_data(b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % (name, headers[name]))
            self._resuming = False
        return parser

    def _spoil(self, fault: Fault) -> None:
        if not self._queue or self._queue[-1].complete:
            self._queue.append(Incoming(self._now_ns))
        incoming = self._queue[-1]
        incoming.fault = incoming.fault or fault

    # Called by the parser: only notes, so that no error of ours passes for one of HTTP.

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        if len(self._queue) >= MOST_PIPELINED:
            self._too_many = True
            raise OverflowError("too many requests ahead")  # the only way to stop the parser
        self._queue.append(Incoming(self._now_ns))

    def on_url(self, url: bytes) -> None:
        if self._resuming:
            return
        self._queue[-1].head.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        incoming = self._queue[-1]
        if self._resuming or incoming.head.complete:
            return  # a trailer is no header: nobody looks at it
        headers = incoming.head.headers
        name = name.lower()
        if name in headers and incoming.fault is None and name in SINGLE:
            text = f"The header '{name.decode('latin-1')}' is given twice."
            incoming.fault = Fault(status=400, reason="duplicate_header", message=text)
        headers[name] = value
        incoming.head.size_bytes += len(name) + len(value) + 4
        if len(headers) > MOST_HEADERS and incoming.fault is None:
            incoming.fault = self._head_too_large()

    def on_headers_complete(self) -> None:
        if self._resuming:
            return
        incoming, parser = self._queue[-1], self._parser
        head = incoming.head
        head.method = parser.get_method()
        version = parser.get_http_version()
        head.old_http = version == "1.0"
        head.keep_alive = incoming.keep_alive = parser.should_keep_alive() and not head.old_http
        if head.method == b"HEAD":  # is GET, but for the body of the answer (RFC 9110, 9.3.2)
            head.method, incoming.bodiless = b"GET", True
        head.settle()
        incoming.hop = head.headers.get(_HOP, b"")
        if incoming.fault is None:
            incoming.fault = (
                _bad_version(version)
                or self._bad_bytes(head, parser.get_method() + b" " + head.url + b" HTTP/")
                or self._bad_size(head)
                or _bad_framing(head)
                or _bad_target(head)
                or _not_served(head, upgrade=parser.should_upgrade())
            )

    def on_body(self, body: bytes) -> None:
        incoming = self._queue[-1]
        if incoming.fault is not None:
            return
        incoming.body_bytes += len(body)
        self._at += len(body)
        if incoming.body_bytes > self._settings.max_body_bytes:
            incoming.fault = self._body_too_large()
        else:
            incoming.add(body)

    def on_message_complete(self) -> None:
        self._queue[-1].complete = True
        self._queue[-1].ended_ns = self._now_ns

    # -- what the parser does not show -----------------------------------------------------------

    def _bad_bytes(self, head: RequestHead, start: bytes) -> Fault | None:
        """The head has to begin with `start`: the parser also reads start lines of RTSP and ICE,
        and those with several spaces between their words. And some readers do not take a tab before
        `chunked` away, and so read another body."""
        raw, begin = self._raw, self._at
        if not raw.startswith(start, begin):
            while raw.startswith((b"\r", b"\n"), begin):
                begin += 1
        if not raw.startswith(start, begin):
            text = "The request does not begin with 'METHOD TARGET HTTP/1.1'."
            return Fault(status=400, reason="bad_http", message=text)
        self._at = raw.find(b"\r\n\r\n", begin) + 4
        if b"transfer-encoding" in head.headers and _TABBED.search(raw, begin, self._at):
            text = "The header 'transfer-encoding' has a tab in it."
            return Fault(status=400, reason="bad_framing", message=text)
        return None

    # -- what is too large -----------------------------------------------------------------------

    def _bad_size(self, head: RequestHead) -> Fault | None:
        if head.size_bytes + len(head.url) > self._settings.max_head_bytes:
            return self._head_too_large()
        length = head.headers.get(b"content-length", b"0")  # the parser lets digits pass, only
        if len(length) > 18 or int(length) > self._settings.max_body_bytes:
            return self._body_too_large()
        return None

    def _noise(self, incoming: Incoming) -> Fault:
        if not incoming.head.complete:
            return self._head_too_large()
        text = "The chunks of the body have more framing than content."
        return Fault(status=400, reason="bad_framing", message=text)

    def _head_too_large(self) -> Fault:
        text = (
            f"The head has more than {self._settings.max_head_bytes} bytes "
            f"or {MOST_HEADERS} headers."
        )
        return Fault(status=431, reason="head_too_large", message=text)

    def _body_too_large(self) -> Fault:
        text = f"The body has more than {self._settings.max_body_bytes} bytes."
        return Fault(status=413, reason="body_too_large", message=text)


def _version(version: str) -> Fault:
    status = 505 if version == "2.0" else 400
    return Fault(status=status, reason="http_version", message="Use HTTP/1.1.")


def _bad_version(version: str) -> Fault | None:
    return None if version in ("1.1", "1.0") else _version(version)


def _bad_framing(head: RequestHead) -> Fault | None:
    coding = head.headers.get(b"transfer-encoding")
    if coding is None:
        return None
    if head.old_http:
        text = "HTTP/1.0 has no transfer-encoding."
        return Fault(status=400, reason="bad_framing", message=text)
    if coding.strip().lower() != b"chunked":
        text = "The only transfer-encoding that is understood here is chunked."
        return Fault(status=501, reason="transfer_coding", message=text)
    return None


def _bad_target(head: RequestHead) -> Fault | None:
    """Where the request goes: RFC 9112, 3.2."""
    host = head.headers.get(b"host")
    if host is None and not head.old_http:
        return Fault(status=400, reason="bad_host", message="The header 'host' is missing.")
    if host is not None and not _HOST.fullmatch(host.rstrip()):
        return Fault(status=400, reason="bad_host", message="The header 'host' names no host.")
    if not head.url.startswith(b"/") and b"://" in head.url:
        authority = re.split(rb"[/?#]", head.url.partition(b"://")[2], maxsplit=1)[0]
        if not authority or not _HOST.fullmatch(authority):
            text = "The target of the request names no host."
            return Fault(status=400, reason="bad_target", message=text)
    if b"#" in head.url:
        text = "The target of a request has no fragment."
        return Fault(status=400, reason="bad_target", message=text)
    return None


def _not_served(head: RequestHead, *, upgrade: bool) -> Fault | None:
    """What HTTP/1.1 has and nobody gets here."""
    if head.method == b"CONNECT":
        return Fault(status=405, reason="method", message="CONNECT is not served.")
    if upgrade and b"h2c" not in _tokens(head.headers.get(b"upgrade", b"")):
        text = "No upgrade is served here; plain HTTP/1.1 is."
        return Fault(status=400, reason="upgrade", message=text)
    expected = head.headers.get(b"expect")
    if expected is not None and not head.old_http and expected.strip().lower() != b"100-continue":
        text = "The only expectation that is met here is 100-continue."
        return Fault(status=417, reason="expectation", message=text)
    return None


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip().lower() for token in value.split(b",")]
