"""One request as it comes in from a client connection: head, body so far, and what is wrong."""

from dataclasses import dataclass

from isochrone.gateway.heads import RequestHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request cannot be read any further; the connection ends after the answer."""

    status: int
    reason: str
    message: str


class Incoming:
    """Filled by the reader of one connection, or at once with a head that is remembered."""

    __slots__ = (
        "began_ns",
        "bodiless",
        "body_bytes",
        "complete",
        "ended_ns",
        "fault",
        "head",
        "hop",
        "keep_alive",
        "pieces",
        "read_bytes",
        "uploading_bytes",
    )

    def __init__(self, began_ns: int) -> None:
        self.began_ns = self.ended_ns = began_ns  # first and last read of it
        self.head = RequestHead()
        self.keep_alive = False  # the head's wish, until something goes wrong
        self.bodiless = False  # HEAD: the answer's body is not sent
        self.read_bytes = 0  # by reads that hold nothing but this request
        self.pieces: list[bytes | bytearray] = []
        self.body_bytes = 0
        self.complete = False
        self.fault: Fault | None = None
        self.hop = b""  # what a peer says of this request; never read from a head that is known

    @classmethod
    def whole(
        cls, began_ns: int, head: RequestHead, body: bytes, hop: bytes
    ) -> "Incoming":
        """A request that has come in whole."""
        incoming = Incoming(began_ns)
        incoming.head = head
        incoming.hop = hop
        incoming.keep_alive = head.keep_alive
        incoming.pieces = [body]
        incoming.complete = True
        return incoming

    def add(self, body: bytes) -> None:
        """More of the body. From the second piece on they share one buffer: a body that comes in
        many small pieces takes no more memory than one that does not."""
        pieces = self.pieces
        if not pieces:
            pieces.append(body)
        elif len(pieces) == 1:
            pieces.append(bytearray(body))
        else:
            pieces[1] += body

    @property
    def body(self) -> bytes:
        pieces = self.pieces
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            return pieces[0]
        return b"".join(pieces)

    @property
    def framing_bytes(self) -> int:
        """What was read for it that is neither a header nor allowed for by its body: chunk sizes
        are small beside chunks of a few bytes, and beyond that somebody wants us to read noise."""
        head = self.head
        if not head.complete:
            return self.read_bytes
        return self.read_bytes - head.size_bytes - len(head.url) - 9 * self.body_bytes
