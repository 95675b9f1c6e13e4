"""Reads chunks of a body where a read holds whole ones and nothing but them (RFC 9112, 7.1).

Whatever is not plain (extensions, trailers, the last chunk, sizes that no stream has) is left to
the parser.
"""

from typing import Final

MOST_DIGITS: Final = 8
MOST_SCANNED_BYTES: Final = 4096  # beyond that the parser is quicker than a look at each chunk
_DIGITS: Final = b"0123456789abcdefABCDEF"


def lone_chunk(data: bytes) -> bytes:
    """The content of `data` if it is exactly one chunk that has some; else nothing."""
    stop = data.find(b"\r\n", 0, MOST_DIGITS + 2)
    if stop < 1 or data[:stop].translate(None, _DIGITS):
        return b""
    begin = stop + 2
    if len(data) != begin + int(data[:stop], 16) + 2 or not data.endswith(b"\r\n"):
        return b""
    return data[begin:-2] if len(data) > begin + 2 else b""


def is_whole(data: bytes, begin: int) -> bool:
    """Whether `data` from there on is whole chunks with content, or nothing."""
    if len(data) > MOST_SCANNED_BYTES:
        return False
    while begin < len(data):
        stop = data.find(b"\r\n", begin, begin + MOST_DIGITS + 2)
        if stop <= begin or data[begin:stop].translate(None, _DIGITS):
            return False
        end = stop + 2 + int(data[begin:stop], 16)
        if end == stop + 2 or data[end : end + 2] != b"\r\n":
            return False
        begin = end + 2
    return True
