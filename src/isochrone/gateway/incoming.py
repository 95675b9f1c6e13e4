"""One request as it comes in from a client connection: head, body so far, and what is wrong."""

from dataclasses import dataclass

from isochrone.gateway.heads import RequestHead

MOST_HEADERS = 128

# Headers that mean one thing only; given twice, the two readers of a request could differ.
SINGLE = frozenset(
    (
        b"host", b"authorization", b"content-length", b"transfer-encoding", b"content-type",
        b"expect", b"x-request-id", b"x-api-key", b"upgrade",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request cannot be read any further; the connection ends after the answer."""

    status: int
    reason: str
    message: str


class Incoming:
    """Filled by the parser of one connection, or at once with a head that is remembered."""

    __slots__ = (
        "began_ns", "body_bytes", "complete", "ended_ns", "fault", "grown_bytes", "head",
        "keep_alive", "pieces",
    )

    def __init__(self, began_ns: int) -> None:
        self.began_ns = self.ended_ns = began_ns  # first and last read of it
        self.head = RequestHead()
        self.keep_alive = False  # the head's wish, until something goes wrong
        self.grown_bytes = 0  # reads that did not complete the head
        self.pieces: list[bytes] = []
        self.body_bytes = 0
        self.complete = False
        self.fault: Fault | None = None

    @classmethod
    def whole(cls, began_ns: int, head: RequestHead, body: bytes) -> "Incoming":
        """A request that has come in whole."""
        incoming = cls.__new__(cls)
        incoming.began_ns = incoming.ended_ns = began_ns
        incoming.head = head
        incoming.keep_alive = head.keep_alive
        incoming.pieces = [body]
        incoming.complete = True
        incoming.fault = None
        return incoming

    @property
    def body(self) -> bytes:
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
