"""Writes DNS answers: small by design, and never larger than who asks can take.

Owner names point into the question, so an answer of a few addresses stays near a hundred bytes.
What does not fit into a datagram is answered empty with the bit that says: ask again over TCP.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from isochrone.core.steering.place import WIDTH_BITS
from isochrone.dns import codes
from isochrone.dns.query import ClientSubnet, Malformed, Query

MOST_TCP_BYTES = 65_535
TXT_PIECE_BYTES = 255
MOST_ERROR_TEXT_BYTES = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record. `skip`: its owner is the question's name without so many leading labels; `owner`
    is the whole name instead, where it is another one."""

    type: int
    ttl_s: int
    data: bytes
    skip: int = 0
    owner: tuple[bytes, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What to answer a query. `scope`: length of the block of clients that it holds for. `why` is
    said to resolvers that take extended errors; `truncated`: nothing but that it is."""

    rcode: int = codes.NO_ERROR
    authoritative: bool = True
    answers: tuple[Record, ...] = ()
    authority: tuple[Record, ...] = ()
    additional: tuple[Record, ...] = ()
    scope: int = 0
    why: str = ""
    truncated: bool = False


def encode_name(labels: Sequence[bytes]) -> bytes:
    """A name that is not compressed."""
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def encode_texts(texts: Sequence[str]) -> bytes:
    """Data of a TXT record: each text as one string, cut to the 255 bytes that it may have."""
    pieces = [text.encode()[:TXT_PIECE_BYTES] for text in texts]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)


def encode_soa(
    server: Sequence[bytes], contact: Sequence[bytes], *, serial: int, negative_ttl_s: int
) -> bytes:
    """Data of a SOA record. Nobody copies this zone, so the times of copies are the usual ones."""
    times = (serial & 0xFFFFFFFF, 3600, 600, 86_400, negative_ttl_s)
    return encode_name(server) + encode_name(contact) + b"".join(_u32(each) for each in times)


def encode_malformed(query: Malformed, udp_bytes: int) -> bytes:
    """The error for what cannot be answered otherwise."""
    flags = codes.FLAG_RESPONSE | query.opcode << 11 | query.rcode & 0xF
    if query.recursion_desired:
        flags |= codes.FLAG_RECURSION_DESIRED
    option = _opt(udp_bytes, query.rcode, dnssec_ok=False, options=b"") if query.has_edns else b""
    counts = (1 if query.question else 0, 0, 0, 1 if option else 0)
    return _header(query.id, flags, counts) + query.question + option


def encode_response(query: Query, response: Response, *, most_bytes: int, udp_bytes: int) -> bytes:
    """The whole message. `most_bytes` is what it may have; `udp_bytes` is what we say that we take.

    Additional records go first when there is no room, then everything but the question.
    """
    option = _option_of(query, response, udp_bytes)
    flags = codes.FLAG_RESPONSE | response.rcode & 0xF
    if response.authoritative:
        flags |= codes.FLAG_AUTHORITATIVE
    if query.recursion_desired:
        flags |= codes.FLAG_RECURSION_DESIRED
    options = 1 if option else 0
    if not response.truncated:
        answers = [_record(query, each) for each in response.answers]
        authority = [_record(query, each) for each in response.authority]
        additional = [_record(query, each) for each in response.additional]
        for extra in (additional, []) if additional else ([],):
            counts = (1, len(answers), len(authority), len(extra) + options)
            body = b"".join((*answers, *authority, *extra))
            message = _header(query.id, flags, counts) + query.question + body + option
            if len(message) <= most_bytes:
                return message
    flags |= codes.FLAG_TRUNCATED
    return _header(query.id, flags, (1, 0, 0, options)) + query.question + option


def _header(number: int, flags: int, counts: Sequence[int]) -> bytes:
    return b"".join(_u16(each) for each in (number, flags, *counts))


def _record(query: Query, record: Record) -> bytes:
    if record.owner is not None:
        owner = encode_name(record.owner)
    elif record.skip == len(query.labels):
        owner = b"\0"
    else:
        skipped = sum(len(label) + 1 for label in query.labels[: record.skip])
        owner = _u16(0xC000 | codes.HEADER_BYTES + skipped)
    head = _u16(record.type) + _u16(codes.CLASS_IN) + _u32(record.ttl_s)
    return owner + head + _u16(len(record.data)) + record.data


def _option_of(query: Query, response: Response, udp_bytes: int) -> bytes:
    """The OPT record that a query with one is answered with."""
    if query.edns is None:
        return b""
    options = b""
    if query.edns.client is not None:
        options += _echo(query.edns.client, response.scope)
    if response.why:
        text = response.why.encode()[:MOST_ERROR_TEXT_BYTES]
        value = _u16(codes.EXTENDED_ERROR_OTHER) + text
        options += _u16(codes.OPTION_EXTENDED_ERROR) + _u16(len(value)) + value
    return _opt(udp_bytes, response.rcode, dnssec_ok=query.edns.dnssec_ok, options=options)


def _echo(client: ClientSubnet, scope: int) -> bytes:
    """Family, source length and address as they came, and the scope of the answer."""
    subnet = client.subnet
    length, address, told = 0, b"", 0
    if subnet is not None:
        length, told = subnet.length, scope
        width = WIDTH_BITS[subnet.family]
        address = subnet.bits.to_bytes(width // 8, "big")[: (length + 7) // 8]
    value = _u16(client.family) + bytes([length, told]) + address
    return _u16(codes.OPTION_CLIENT_SUBNET) + _u16(len(value)) + value


def _opt(udp_bytes: int, rcode: int, *, dnssec_ok: bool, options: bytes) -> bytes:
    flags = codes.FLAG_DNSSEC_OK if dnssec_ok else 0
    return (
        b"\0" + _u16(codes.TYPE_OPT) + _u16(udp_bytes) + bytes([rcode >> 4, 0]) + _u16(flags)
        + _u16(len(options)) + options
    )


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")
