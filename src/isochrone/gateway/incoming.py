"""One request as it comes in from a client connection: head, body so far, and what is wrong."""

from dataclasses import dataclass

MOST_HEADERS = 128
CLIENT_ID_CHARS = 200

# Headers that mean one thing only; given twice, the two readers of a request could differ.
SINGLE = frozenset(
    (
        b"host", b"authorization", b"content-length", b"transfer-encoding", b"content-type",
        b"expect", b"x-request-id",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request cannot be read any further; the connection ends after the answer."""

    status: int
    reason: str
    message: str


class Incoming:
    """Filled by the parser of one connection; `headers` have lower-case names."""

    __slots__ = (
        "began_ns",
        "body_bytes",
        "complete",
        "fault",
        "grown_bytes",
        "head_bytes",
        "head_complete",
        "headers",
        "keep_alive",
        "method",
        "old_http",
        "pieces",
        "url",
    )

    def __init__(self, began_ns: int) -> None:
        self.began_ns = began_ns
        self.method = b""
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.head_bytes = 0  # names and values of whole headers
        self.grown_bytes = 0  # reads that did not complete the head
        self.head_complete = False
        self.keep_alive = False
        self.old_http = False  # HTTP/1.0: no chunked answers
        self.pieces: list[bytes] = []
        self.body_bytes = 0
        self.complete = False
        self.fault: Fault | None = None

    @property
    def path(self) -> str:
        """The path without its query, of a target in either form (RFC 9112, 3.2)."""
        url = self.url
        if url[:4].lower() == b"http":
            url = b"/" + url.partition(b"://")[2].partition(b"/")[2]
        return url.partition(b"?")[0].decode("latin-1")

    @property
    def body(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)

    @property
    def has_body(self) -> bool:
        """Whether the head announces a body."""
        return (
            self.headers.get(b"content-length", b"0") != b"0"
            or b"transfer-encoding" in self.headers
        )

    @property
    def client_request_id(self) -> str | None:
        """The client's own id of the request, if it is short and printable."""
        given = self.headers.get(b"x-request-id")
        if given is None:
            return None
        text = given.decode("latin-1")
        fit = len(text) <= CLIENT_ID_CHARS and text.isascii() and text.isprintable()
        return text if fit and text else None

    def header(self, name: str) -> str | None:
        """A header by its lower-case name."""
        value = self.headers.get(name.encode())
        return None if value is None else value.decode("latin-1")
