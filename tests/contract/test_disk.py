"""The Disk port: one suite on files and on the twin's fake."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from isochrone.adapters.disk.files import FileDisk
from isochrone.ports.disk import Disk
from isochrone.twin.fakes.disk import MemoryDisk
from isochrone.twin.loop import run as run_virtually

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["files", "memory", "mount"])
def disk_and_run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, Run]:
    if request.param == "files":
        return FileDisk(tmp_path / "journal"), asyncio.run
    disk = MemoryDisk()
    return disk if request.param == "memory" else disk.mount(), run_virtually


def test_appended_bytes_are_read_back(disk_and_run: tuple[Disk, Run]) -> None:
    disk, run = disk_and_run

    async def main() -> None:
        segment = disk.create("a", reserve_bytes=4096)
        segment.append(b"one")
        segment.append(b"two")
        assert segment.size_bytes == 6
        read = disk.read("a")
        assert read.startswith(b"onetwo")
        assert not read[6:].strip(b"\0")
        await segment.sync()
        segment.append(b"!")
        await segment.sync()
        segment.close()
        assert disk.read("a").rstrip(b"\0") == b"onetwo!"

    run(main())


def test_names_are_sorted_and_deleted_ones_are_gone(disk_and_run: tuple[Disk, Run]) -> None:
    disk, _ = disk_and_run
    for name in ("b", "a", "c"):
        disk.create(name, reserve_bytes=0).close()
    disk.replace("note", b"x")
    disk.delete("b")
    disk.delete("never there")
    assert list(disk.names()) == ["a", "c", "note"]


def test_a_name_is_created_once(disk_and_run: tuple[Disk, Run]) -> None:
    disk, _ = disk_and_run
    disk.create("a", reserve_bytes=10).close()
    with pytest.raises(OSError):
        disk.create("a", reserve_bytes=10)


def test_what_is_not_there_cannot_be_read(disk_and_run: tuple[Disk, Run]) -> None:
    with pytest.raises(OSError):
        disk_and_run[0].read("a")


def test_notes_are_replaced_whole(disk_and_run: tuple[Disk, Run]) -> None:
    disk, _ = disk_and_run
    disk.replace("note", b"a long first text")
    disk.replace("note", b"short")
    assert disk.read("note") == b"short"


def test_notes_are_saved_whole_while_the_loop_goes_on(disk_and_run: tuple[Disk, Run]) -> None:
    disk, run = disk_and_run

    async def main() -> None:
        disk.replace("note", b"first")
        await disk.save("note", b"x" * 100_000)
        assert disk.read("note") == b"x" * 100_000
        cancelled = asyncio.ensure_future(disk.save("note", b"second"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        await disk.save("other", b"y")
        await disk.save("note", b"third")
        assert disk.read("note") in (b"second", b"third")  # each of them whole
        assert list(disk.names()) == ["note", "other"]

    run(main())


def test_a_closed_segment_takes_nothing(disk_and_run: tuple[Disk, Run]) -> None:
    disk, _ = disk_and_run
    segment = disk.create("a", reserve_bytes=0)
    segment.close()
    segment.close()
    with pytest.raises(OSError):
        segment.append(b"x")


def test_closing_does_not_disturb_a_sync(disk_and_run: tuple[Disk, Run]) -> None:
    disk, run = disk_and_run

    async def main() -> None:
        segment = disk.create("a", reserve_bytes=0)
        segment.append(b"x" * 100_000)
        sync = asyncio.ensure_future(segment.sync())
        await asyncio.sleep(0)
        sync.cancel()
        await asyncio.wait([sync])
        segment.close()
        assert disk.read("a") == b"x" * 100_000

    run(main())


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    first = FileDisk(tmp_path / "journal")
    with pytest.raises(OSError, match="in use"):
        FileDisk(tmp_path / "journal")
    first.close()
    FileDisk(tmp_path / "journal").close()
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o700
