"""Files that people name for results: whole or not at all, and never in the place of a device."""

import os
import stat
from pathlib import Path

import pytest

from isochrone.adapters.disk.whole_file import whole_file
from isochrone.adapters.parquet.tables import read_parquet, write_parquet
from isochrone.wiring.private_file import write_private
from isochrone.wiring.twin_report import write_text


def half(path: Path) -> None:
    with whole_file(path) as part:
        part.write_text("half")
        raise FileNotFoundError("as when something goes wrong while it is written")


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_text(path, "before")
    with pytest.raises(FileNotFoundError):
        half(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    end, link = tmp_path / "there" / "out", tmp_path / "out"
    link.symlink_to(end)
    for text in ("new", "again"):
        write_text(link, text)
        assert link.is_symlink()
        assert end.read_text() == text
    write_parquet(link, [{"a": 1}])
    assert link.is_symlink()
    assert read_parquet(end) == [{"a": 1}]


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "rows\n")
        assert os.read(reading, 100) == b"rows\n"
    finally:
        os.close(reading)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux has /proc")
def test_the_pipe_behind_standard_output_is_written_to() -> None:
    reading, writing = os.pipe()
    try:
        write_text(Path(f"/proc/self/fd/{writing}"), "rows\n")
        assert os.read(reading, 100) == b"rows\n"
        write_private(Path(f"/proc/self/fd/{writing}"), b"key\n")
        assert os.read(reading, 100) == b"key\n"
    finally:
        os.close(reading)
        os.close(writing)


def test_what_is_private_goes_through_a_link_and_is_its_owners_only(tmp_path: Path) -> None:
    end, link = tmp_path / "end", tmp_path / "link"
    end.write_text("before")
    link.symlink_to(end)
    write_private(link, b"key")
    assert link.is_symlink()
    assert end.read_bytes() == b"key"
    assert stat.S_IMODE(end.stat().st_mode) == 0o600
