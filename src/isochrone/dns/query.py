"""Parses one DNS query, or says how it is malformed. Nothing that may arrive raises.

Names in questions are not compressed in any real query, so a pointer there is malformed: that way
no loop can be written. Names of other records are skipped, not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from isochrone.core.steering.place import WIDTH_BITS, Family, Subnet
from isochrone.dns import codes

MOST_RECORDS = 16  # besides the question; a query has one or two


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSubnet:
    """The client's network as its resolver tells it (RFC 7871). `subnet` is None when the client
    wants it kept to itself (source length 0); `family` is echoed as it came."""

    family: int
    subnet: Subnet | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edns:
    """The OPT record of a query: the answer may have `udp_bytes`."""

    udp_bytes: int
    version: int
    dnssec_ok: bool
    client: ClientSubnet | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query of one question. `question` is its bytes as they came (names keep their case);
    `labels` are in lower case, the first one first."""

    id: int
    recursion_desired: bool
    question: bytes
    labels: tuple[bytes, ...]
    type: int
    class_: int
    edns: Edns | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """What can only be answered with an error. `question` is empty where it could not be read."""

    id: int
    opcode: int
    recursion_desired: bool
    rcode: int
    question: bytes = b""
    has_edns: bool = False


class _Broken(Exception):
    """The bytes end too early or say something impossible."""


def parse_query(data: bytes) -> Query | Malformed | None:
    """Parse a message; None for what must not be answered at all: less than a header, or an answer
    (two servers that answer each other's answers never stop)."""
    if len(data) < codes.HEADER_BYTES:
        return None
    number, flags = _u16(data, 0), _u16(data, 2)
    if flags & codes.FLAG_RESPONSE:
        return None
    opcode = flags >> 11 & 0xF
    recursion_desired = bool(flags & codes.FLAG_RECURSION_DESIRED)

    def malformed(rcode: int, question: bytes = b"", has_edns: bool = False) -> Malformed:
        return Malformed(
            id=number, opcode=opcode, recursion_desired=recursion_desired, rcode=rcode,
            question=question, has_edns=has_edns,
        )

    if opcode != codes.OPCODE_QUERY:
        return malformed(codes.NOT_IMPLEMENTED)
    counts = [_u16(data, at) for at in (4, 6, 8, 10)]
    if counts[0] != 1 or sum(counts[1:]) > MOST_RECORDS:
        return malformed(codes.FORMAT_ERROR)
    try:
        labels, at = _question_name(data, codes.HEADER_BYTES)
        type_, class_ = _u16(data, at), _u16(data, at + 2)
    except _Broken:
        return malformed(codes.FORMAT_ERROR)
    question = data[codes.HEADER_BYTES : at + 4]
    try:
        edns = _edns(data, at + 4, sum(counts[1:3]), counts[3])
    except _Broken:
        has_edns = _shows_edns(data, at + 4, sum(counts[1:]))
        return malformed(codes.FORMAT_ERROR, question, has_edns)
    if edns is not None and edns.version != 0:
        return malformed(codes.BAD_VERSION, question, has_edns=True)
    return Query(
        id=number, recursion_desired=recursion_desired, question=question, labels=labels,
        type=type_, class_=class_, edns=edns,
    )


def _u16(data: bytes, at: int) -> int:
    if at + 2 > len(data):
        raise _Broken
    return data[at] << 8 | data[at + 1]


def _question_name(data: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """(labels in lower case, where the name ends)."""
    labels: list[bytes] = []
    start = at
    while True:
        if at >= len(data):
            raise _Broken
        length = data[at]
        at += 1
        if length == 0:
            break
        if length > codes.LONGEST_LABEL or at + length > len(data):
            raise _Broken
        labels.append(data[at : at + length].lower())
        at += length
    if at - start > codes.LONGEST_NAME:
        raise _Broken
    return tuple(labels), at


def _skip_name(data: bytes, at: int) -> int:
    while True:
        if at >= len(data):
            raise _Broken
        length = data[at]
        if length == 0:
            return at + 1
        if length >= 0xC0:
            return at + 2
        if length > codes.LONGEST_LABEL:
            raise _Broken
        at += 1 + length


def _records(data: bytes, at: int, count: int) -> Iterator[tuple[int, int, int]]:
    """(where it starts, its type, where what follows its name starts) of each record. Everything
    must be whole, and nothing may follow: that is known at the end only."""
    for _ in range(count):
        start = at
        at = _skip_name(data, at)
        type_, length = _u16(data, at), _u16(data, at + 8)
        yield start, type_, at
        at += 10 + length
        if at > len(data):
            raise _Broken
    if at != len(data):
        raise _Broken


def _shows_edns(data: bytes, at: int, count: int) -> bool:
    """Whether there is an OPT record before the place where the records break: who sent none is
    sent none."""
    try:
        return any(type_ == codes.TYPE_OPT for _, type_, _ in _records(data, at, count))
    except _Broken:
        return False


def _edns(data: bytes, at: int, before: int, additional: int) -> Edns | None:
    """The OPT record among the last `additional` records, after `before` others."""
    found: Edns | None = None
    for number, (start, type_, head) in enumerate(_records(data, at, before + additional)):
        if type_ == codes.TYPE_OPT:
            if number < before or found is not None or data[start] != 0:
                raise _Broken
            upper, lower = _u16(data, head + 4), _u16(data, head + 6)
            length = _u16(data, head + 8)
            found = Edns(
                udp_bytes=_u16(data, head + 2), version=upper & 0xFF,
                dnssec_ok=bool(lower & codes.FLAG_DNSSEC_OK),
                client=_client_subnet(data[head + 10 : head + 10 + length]),
            )
    return found


def _client_subnet(options: bytes) -> ClientSubnet | None:
    """The client subnet among the options of an OPT record; other options are skipped."""
    found: ClientSubnet | None = None
    at = 0
    while at < len(options):
        code, length = _u16(options, at), _u16(options, at + 2)
        at += 4
        if at + length > len(options):
            raise _Broken
        if code == codes.OPTION_CLIENT_SUBNET:
            if found is not None:
                raise _Broken
            found = _subnet(options[at : at + length])
        at += length
    return found


def _subnet(value: bytes) -> ClientSubnet:
    """RFC 7871, 6: in a query the scope is 0, the address has just the octets that the source
    length needs, and no bit is set beyond it."""
    if len(value) < 4:
        raise _Broken
    number, source, scope, address = _u16(value, 0), value[2], value[3], value[4:]
    if scope != 0 or len(address) != (source + 7) // 8:
        raise _Broken
    if source == 0 and number in (0, 1, 2):
        return ClientSubnet(family=number, subnet=None)
    if number not in (1, 2):
        raise _Broken
    family: Family = 4 if number == 1 else 6
    width = WIDTH_BITS[family]
    if source > width:
        raise _Broken
    bits = int.from_bytes(address, "big") << (width - 8 * len(address))
    if bits & ((1 << (width - source)) - 1):
        raise _Broken
    return ClientSubnet(
        family=number, subnet=Subnet(family=family, bits=bits, length=source)
    )
