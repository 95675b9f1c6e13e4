"""What is read of chunks without the parser is what the parser reads, or nothing."""

from typing import Any

import httptools
from hypothesis import example, given
from hypothesis import strategies as st

from isochrone.gateway.chunks import is_whole, lone_chunk, whole_chunks

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Reader:
    """What httptools makes of a body."""

    def __init__(self) -> None:
        self.content = b""
        self.chunks = 0
        self.open = False  # within a chunk
        self.over = False
        self.parser: Any = httptools.HttpResponseParser(self)
        self.parser.feed_data(HEAD)

    def on_body(self, body: bytes) -> None:
        self.content += body

    def on_chunk_header(self) -> None:
        self.open = True

    def on_chunk_complete(self) -> None:
        self.open = False
        self.chunks += 1

    def on_message_complete(self) -> None:
        self.over = True


def read(data: bytes) -> Reader | None:
    """None for what is no chunked body."""
    reader = Reader()
    try:
        reader.parser.feed_data(data)
    except httptools.HttpParserError:
        return None
    return reader


def chunk(content: bytes, digits: str = "%x") -> bytes:
    return (digits % len(content)).encode() + b"\r\n" + content + b"\r\n"


contents = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"5\r\nabcde\r\n"]),
)
sizes = st.sampled_from(["%x", "%X", "%04x", "0x%x", "+%x", " %x", "%x ", "%x;a"])
pieces = st.one_of(
    st.builds(chunk, contents, sizes),
    st.sampled_from([b"0\r\n\r\n", b"\r\n", b"", b"g\r\n", b"1_0\r\n", b"100000000\r\n"]),
    st.binary(max_size=10),
)


@given(st.lists(pieces, max_size=4), st.integers(0, 60))
@example([chunk(b"\r\n\r\n")], 60)
@example([b"3\r\n\r\n\r"], 60)
def test_what_is_read_without_the_parser_is_what_it_would_read(
    parts: list[bytes], cut: int
) -> None:
    data = b"".join(parts)
    for piece in (data, data[:cut], data[cut:]):
        content, whole, parsed = lone_chunk(piece), is_whole(piece, 0), read(piece)
        if content:
            assert parsed is not None
            assert (parsed.content, parsed.chunks, parsed.open, parsed.over) == (
                content, 1, False, False
            )
            assert whole
        joined = whole_chunks(piece)
        if joined:
            assert parsed is not None
            assert parsed.content == joined
            assert (parsed.open, parsed.over) == (False, False)
            assert whole
        if whole:
            assert parsed is not None
            assert not parsed.over
            # What follows is read as the size of a chunk: nothing was left half read.
            parsed.parser.feed_data(chunk(b"next"))
            assert parsed.content.endswith(b"next")
            assert not parsed.open


def test_plain_chunks_are_read() -> None:
    assert lone_chunk(chunk(b"data: x\n\n")) == b"data: x\n\n"
    assert lone_chunk(chunk(b"a" * 70_000)) == b"a" * 70_000
    assert lone_chunk(chunk(b"a" * 300, "%X")) == b"a" * 300
    for size in (1, 15, 16, 17, 255, 256, 257, 4094, 4095, 4096, 4097):
        assert lone_chunk(chunk(b"a" * size)) == b"a" * size
    parts = [b"data: x\n\n", b"d", b"\n", b"y" * 4095]
    assert whole_chunks(b"".join(map(chunk, parts))) == b"".join(parts)
    assert is_whole(HEAD + chunk(b"a") + chunk(b"b"), len(HEAD))
    assert not is_whole(chunk(b"a") + b"0\r\n\r\n", 0)
