"""The request log's file: what a full disk does to it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structlog.testing import capture_logs

from isochrone.wiring.gateway_start import LineFile


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Like a disk without room: what goes beyond is cut off, then refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log" / "requests.jsonl"
    file = LineFile(path)
    with capture_logs() as said, files_of_at_most(14):
        for number in range(4):
            file.write(b'{"line":%d}\n' % number)
    for number in range(7, 9):
        file.write(b'{"line":%d}\n' % number)
    file.close()
    assert [each["event"] for each in said] == ["request_log_not_written"]
    assert path.read_bytes() == b'{"line":0}\n{"l\n{"line":7}\n{"line":8}\n'
