"""Reads chunks of a body where a read holds whole ones and nothing but them (RFC 9112, 7.1).

Whatever is not plain (extensions, trailers, the last chunk, sizes that no stream has) is left to
the parser.
"""

from typing import Final

MOST_DIGITS: Final = 8
MOST_SCANNED_BYTES: Final = 4096  # beyond that the parser is quicker than a look at each chunk
_DIGITS: Final = b"0123456789abcdefABCDEF"
_LINE_FEED: Final = 10
# How nearly all engines write a size: what is compared with it need not be read.
_SIZES: Final = [b"%x" % size for size in range(4096)]


def _lines() -> list[bytes]:
    """By the length of a chunk with its framing, the line with its size."""
    found = [b""] * (len(_SIZES) + 7)
    for size, digits in enumerate(_SIZES):
        if size:
            found[len(digits) + size + 4] = digits + b"\r\n"
    return found


_LINES: Final = _lines()


def lone_chunk(data: bytes) -> bytes:
    """The content of `data` if it is exactly one chunk that has some; else nothing."""
    length = len(data)
    if length < len(_LINES):
        line = _LINES[length]
        begin = len(line)
        if begin and data[:begin] == line:
            return data[begin:-2] if data[-2:] == b"\r\n" else b""
    stop = data.find(b"\r\n", 0, MOST_DIGITS + 2)
    if stop < 1 or data[:stop].translate(None, _DIGITS):
        return b""
    begin = stop + 2
    if length != begin + int(data[:stop], 16) + 2 or not data.endswith(b"\r\n"):
        return b""
    return data[begin:-2] if length > begin + 2 else b""


def whole_chunks(data: bytes) -> bytes:
    """The joined contents of `data` if it is whole chunks and nothing else, each of which has some,
    with no carriage return, and its size as most engines write it; else nothing."""
    parts = data.split(b"\r")  # size, LF and content, LF and size, LF and content, ..., LF
    last = len(parts) - 1
    if last < 2 or last % 2 or parts[last] != b"\n":
        return b""
    contents: list[bytes] = []
    size = parts[0]
    for i in range(1, last, 2):
        part = parts[i]
        length = len(part) - 1
        if not 0 < length < len(_SIZES) or part[0] != _LINE_FEED or size != _SIZES[length]:
            return b""
        contents.append(part[1:])
        part = parts[i + 1]
        if len(part) < 1 or part[0] != _LINE_FEED:
            return b""
        size = part[1:]
    return b"".join(contents)


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
