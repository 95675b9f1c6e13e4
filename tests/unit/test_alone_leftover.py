"""What workers left that are not run any more: shipped by the first one, and seen when it fails."""

import asyncio
import itertools
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from isochrone.adapters.alone.bus import AloneBus
from isochrone.adapters.clock import SystemClock
from isochrone.adapters.disk.files import FileDisk
from isochrone.gateway import records
from isochrone.gateway.journal import Journal
from isochrone.twin.loop import run
from isochrone.wire import fleet
from isochrone.wire.usage import UsageBatch
from isochrone.wiring.alone_leftover import folders_left_over, ship_left_over, worker_folder
from isochrone.wiring.watched import FIRST_WAIT_S, LONGEST_WAIT_S, watched
from tests.unit.build_usage import a_usage_record, an_opening


class Store:
    """Takes what is shipped, after so many bugs."""

    def __init__(self, bugs: int) -> None:
        self._bugs = bugs
        self.requests: list[str] = []

    async def store(
        self, subject: str, payload: bytes, *, message_id: str, timeout_s: float
    ) -> None:
        if self._bugs:
            self._bugs -= 1
            raise IndexError("nobody thought of this")
        self.requests += [each.request_id for each in fleet.decode(payload, UsageBatch).events]

    async def close(self) -> None: ...


def leave(folder: Path, request: str) -> None:
    """A worker's journal with one request that ended, as a kill leaves it."""
    disk = FileDisk(folder)
    journal = Journal(disk, SystemClock(), "here")
    journal.recover()
    assert journal.opened(an_opening(request)) is None
    journal.closed(a_usage_record(request))
    journal.flush()
    disk.close()


def test_a_bug_in_shipping_is_logged_and_the_journal_is_shipped_after_all(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        leave(worker_folder(tmp_path, number), f"r-{number}")
    left = folders_left_over(tmp_path, 2)
    assert [each.name for each in left] == ["worker-2", "worker-3"]
    store, clock = Store(bugs=1), SystemClock()

    async def main() -> None:
        bus = AloneBus(clock, store)
        for folder in left:
            await watched(
                folder.name, partial(ship_left_over, folder, bus, "here", clock), first_wait_s=0.0
            )

    with capture_logs() as logs:
        asyncio.run(main())
    assert store.requests == ["r-2", "r-3"]
    said = [(each["event"], each.get("task")) for each in logs]
    assert said.count(("task_failed", "worker-2")) == 1
    assert said.count(("journal_left_over_shipped", None)) == 2
    kept = [FileDisk(worker_folder(tmp_path, number)) for number in (1, 2, 3)]
    assert [bool(disk.names()) for disk in kept] == [True, False, False], "the first one runs"


@pytest.mark.parametrize("what", ["another format", "no permission"])
def test_what_cannot_be_read_is_not_removed(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = worker_folder(tmp_path, 2)
    leave(folder, "r-2")
    old, damaged = folder / "segment-00000000000000000007", folder / "damaged-segment-1"
    old.write_bytes(records.frame(records.CLOSED, fleet.encode({"as": "maps"})))
    damaged.write_bytes(b"?")
    if what == "no permission":
        read = FileDisk.read

        def refuse(disk: FileDisk, name: str) -> bytes:
            if name == old.name:
                raise PermissionError(13, "permission denied")
            return read(disk, name)

        monkeypatch.setattr(FileDisk, "read", refuse)
    store, clock = Store(bugs=0), SystemClock()
    for _ in range(2):
        with capture_logs() as logs:
            asyncio.run(ship_left_over(folder, AloneBus(clock, store), "here", clock))
        assert "journal_left_over" in [each["event"] for each in logs]
    assert store.requests == ["r-2"]
    assert sorted(each.name for each in folder.glob("*-*")) == [damaged.name, old.name]


def test_a_folder_that_cannot_be_read_waits_for_the_next_start(tmp_path: Path) -> None:
    folder = worker_folder(tmp_path, 4)
    folder.write_text("not a folder")
    clock = SystemClock()
    with capture_logs() as logs:
        asyncio.run(ship_left_over(folder, AloneBus(clock, Store(0)), "here", clock))
    assert [each["event"] for each in logs] == ["journal_left_over"]


def test_work_that_always_fails_is_tried_more_and_more_seldom() -> None:
    began: list[float] = []

    async def main() -> None:
        async def work() -> None:
            began.append(asyncio.get_running_loop().time())
            raise IndexError("nobody thought of this")

        running = asyncio.ensure_future(watched("work", work))
        await asyncio.sleep(1_000)
        assert not running.done()
        running.cancel()

    with capture_logs() as logs:
        run(main())
    waits = [after - before for before, after in itertools.pairwise(began)]
    assert waits[0] == FIRST_WAIT_S
    assert waits[-1] == LONGEST_WAIT_S
    assert waits == sorted(waits)
    assert {each["event"] for each in logs} == {"task_failed"}
    assert len(logs) == len(began)
