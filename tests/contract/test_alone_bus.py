"""The bus of a gateway that runs alone: the Bus contract where it applies, and usage in a file."""

import asyncio
import fcntl
import json
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isochrone.adapters.alone.bus import AloneBus, NoStore
from isochrone.adapters.alone.stored_usage import StoredUsage
from isochrone.adapters.alone.usage_file import LINES_AT_ONCE, SLOW_NS, UsageFile
from isochrone.adapters.clock import SystemClock
from isochrone.core.errors import BusUnavailable
from isochrone.core.ids import RequestId
from isochrone.core.metering.event import UsageEvent
from isochrone.ports.bus import Bus
from isochrone.wire import fleet
from isochrone.wire.usage import UsageRecord, encode_batch
from tests.contract import test_bus as contract
from tests.unit.build_usage import a_record, a_usage_event

DEADLINE_S = 30.0


class OneProcess:
    """All logins are the one bus of the process; it is never away."""

    def __init__(self) -> None:
        self._bus = AloneBus(SystemClock(), NoStore())

    async def bus(self) -> Bus:
        return self._bus

    def down(self) -> None:
        raise AssertionError("it cannot be away")

    def up(self) -> None:
        raise AssertionError("it cannot be away")

    async def lose_bucket(self, bucket: str) -> None:
        raise AssertionError("it loses nothing")


@pytest.fixture
def run() -> contract.Run:
    def alone(main: contract.Main) -> None:
        async def go() -> None:
            async with asyncio.timeout(2 * DEADLINE_S):
                await main(OneProcess())

        asyncio.run(go())

    return alone


test_messages = contract.test_messages_reach_matching_subscriptions_in_order
test_a_watch_lists_then_follows = contract.test_watch_lists_then_follows
test_a_watch_follows_only_its_prefix = contract.test_watch_follows_only_its_prefix
test_a_watch_of_no_bucket = contract.test_watch_of_an_empty_or_missing_bucket


def test_what_is_retained_is_told_to_later_subscribers(run: contract.Run) -> None:
    async def main(place: contract.Place) -> None:
        bus = await place.bus()
        assert isinstance(bus, AloneBus)
        await bus.publish("digest.a", b"lost")
        for payload in (b"1", b"2"):
            await bus.retain("digest.a", payload)
        heard: list[tuple[str, bytes]] = []
        await bus.subscribe("digest.*", lambda *what: heard.append(what))
        assert heard == [("digest.a", b"2")]
        await bus.retain("digest.b", b"3")
        assert heard == [("digest.a", b"2"), ("digest.b", b"3")]

    run(main)


def test_it_refuses_what_it_cannot_do(run: contract.Run) -> None:
    async def main(place: contract.Place) -> None:
        bus = await place.bus()
        with pytest.raises(BusUnavailable):
            await bus.put("nowhere", "key", b"")
        with pytest.raises(BusUnavailable):
            await bus.pull("USAGE", "book", most=1, wait_s=0)
        await bus.close()
        with pytest.raises(BusUnavailable):
            await bus.publish_durable("usage.a", b"", message_id="m")

    run(main)


# -- usage in a file -----------------------------------------------------------------------------


def events(*names: str, long_ago: bool = False) -> tuple[UsageEvent, ...]:
    """Events of requests that came just now, or before any process of this test was started."""
    received_at = 1_700_000_000_123_456_789 if long_ago else SystemClock().wall_ns()
    return tuple(
        replace(
            a_usage_event(), request_id=RequestId(name), received_at=received_at,
            finished_at=received_at + 1_000_000,
        )
        for name in names
    )


async def store(
    usage: UsageFile, batch: str, found: tuple[UsageEvent, ...], timeout_s: float = DEADLINE_S
) -> None:
    payload = encode_batch(batch, [], [fleet.encode(a_record(event)) for event in found])
    await usage.store("usage.here", payload, message_id=batch, timeout_s=timeout_s)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def requests(path: Path) -> list[str]:
    return [line["request_id"] for line in lines(path)]


def go(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * DEADLINE_S):
            await main()

    asyncio.run(bounded())


def test_a_line_is_made_of_a_records_first_fields() -> None:
    stored = StoredUsage.__struct_fields__
    assert stored == UsageRecord.__struct_fields__[: len(stored)]
    assert UsageRecord.__struct_fields__[len(stored) :] == ("decision",)


def test_each_request_is_a_line_that_people_can_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "usage.jsonl"
    (event,) = events("r1", long_ago=True)

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        await store(usage, "here-1-u", (event,))
        await usage.close()

    go(main)
    (line,) = lines(path)
    assert line["request_id"] == "r1"
    assert line["received_at"] == "2023-11-14T22:13:20.123457Z"
    assert line["key"] == event.key_id
    assert line["class"] == event.class_
    assert (line["ingress"], line["site"]) == (event.ingress_site, event.serving_site)
    assert [line[name] for name in ("input_uncached", "input_cached", "output")] == [
        event.tokens.input_uncached, event.tokens.input_cached, event.tokens.output,
    ]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("batches", [1, 16])
def test_long_batches_hold_nobody_up(tmp_path: Path, batches: int) -> None:
    path = tmp_path / "usage.jsonl"

    async def main() -> None:
        usage, most, before = UsageFile(path, SystemClock()), 0, 0
        storing = asyncio.gather(*(
            store(usage, f"here-{batch}-u", events(*(f"{batch}-{i}" for i in range(100))))
            for batch in range(batches)
        ))
        while not storing.done():
            await asyncio.sleep(0)
            lines = sum(
                made.count(b"\n") for waiting in usage._on_way.values() for made in waiting.lines
            )
            most, before = max(most, lines - before), lines
        await storing
        await usage.close()
        assert 0 < most <= LINES_AT_ONCE, "made between two turns of others"

    go(main)
    assert requests(path) == [f"{batch}-{i}" for batch in range(batches) for i in range(100)]


def test_writing_keeps_pace_where_others_take_their_time(tmp_path: Path) -> None:
    """Lines that took longer than batches are gathered are made in larger pieces from then on."""

    async def main() -> None:
        usage = UsageFile(tmp_path / "usage.jsonl", SystemClock())
        paces = []
        for took_ns in (SLOW_NS + 1, SLOW_NS + 1, SLOW_NS // 2, 0, 0, 0):
            usage._pace(took_ns)
            paces.append(usage._at_once // LINES_AT_ONCE)
        assert paces == [2, 4, 4, 2, 1, 1]
        await usage.close()

    go(main)


def test_a_record_that_makes_no_sense_refuses_its_batch_only(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        payload = encode_batch("here-1-u", [], [fleet.encode(["r1"])])
        stored, refused = await asyncio.gather(
            store(usage, "here-2-u", events("a")),
            usage.store("usage.here", payload, message_id="here-1-u", timeout_s=DEADLINE_S),
            return_exceptions=True,
        )
        assert stored is None
        assert isinstance(refused, BusUnavailable)
        await usage.close()

    go(main)
    assert requests(path) == ["a"]


def test_a_batch_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        first = events("a", "b")
        await asyncio.gather(*(store(usage, "here-1-u", first) for _ in range(3)))
        await store(usage, "here-1-u", first)
        await asyncio.gather(*(store(usage, f"here-{i}-u", events(f"c{i}")) for i in range(2, 9)))
        await usage.close()

    go(main)
    assert requests(path) == ["a", "b", *(f"c{i}" for i in range(2, 9))]


def test_a_batch_of_an_earlier_run_is_found_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        old = events("a", "b", "c", long_ago=True)
        await store(usage, "here-1-u", old)
        await usage.close()
        after = UsageFile(path, SystemClock())
        await store(after, "here-1-u", old)
        await store(after, "here-2-u", events("d", long_ago=True))
        await after.close()

    go(main)
    assert requests(path) == ["a", "b", "c", "d"]


def test_a_batch_of_an_earlier_run_is_found_although_the_clock_was_set_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "usage.jsonl"

    class SetBack(SystemClock):
        def wall_ns(self) -> int:
            return super().wall_ns() - 3600 * 10**9

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        old = events("a", "b")
        await store(usage, "here-1-u", old)
        await usage.close()
        after = UsageFile(path, SetBack())
        await store(after, "here-1-u", old)
        await after.close()

    go(main)
    assert requests(path) == ["a", "b"]


@pytest.mark.parametrize("kept", ["first line", "half a line", "two lines"])
def test_a_batch_that_was_cut_in_the_middle_is_completed(tmp_path: Path, kept: str) -> None:
    path = tmp_path / "usage.jsonl"
    old = events("a", "b", "c", long_ago=True)

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        await store(usage, "here-0-u", events("z", long_ago=True))
        await store(usage, "here-1-u", old)
        await usage.close()
        whole = path.read_bytes().splitlines(keepends=True)
        left = {"first line": 2, "half a line": 2, "two lines": 3}[kept]
        half = whole[2][:40] if kept == "half a line" else b""
        path.write_bytes(b"".join(whole[:left]) + half)
        after = UsageFile(path, SystemClock())
        await store(after, "here-1-u", old)
        await after.close()

    go(main)
    assert requests(path) == ["z", "a", "b", "c"]


def test_two_processes_share_the_file(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"

    async def main() -> None:
        usages = [UsageFile(path, SystemClock()) for _ in range(2)]
        await asyncio.gather(*(
            store(usages[i % 2], f"here-{i}-u", events(*(f"{i}-{j}" for j in range(20))))
            for i in range(30)
        ))
        for usage in usages:
            await usage.close()

    go(main)
    found = requests(path)
    for start in range(0, len(found), 20):  # every batch lies in one piece
        batch = found[start].split("-")[0]
        assert found[start : start + 20] == [f"{batch}-{j}" for j in range(20)]
    assert len(found) == 600 == len(set(found))


def test_what_another_process_left_in_the_middle_spoils_no_line(tmp_path: Path) -> None:
    """A worker that is killed while it writes leaves half a line, and the others go on."""
    path = tmp_path / "usage.jsonl"
    cut = events("b", "c")

    async def main() -> None:
        usage, other = (UsageFile(path, SystemClock()) for _ in range(2))
        await store(usage, "here-1-u", events("a"))
        await store(other, "here-2-u", cut)
        await other.close()
        os.truncate(path, path.stat().st_size - 40)  # as far as it came
        await store(usage, "here-3-u", events("d", "e"))
        again = UsageFile(path, SystemClock())
        await store(again, "here-2-u", cut)
        await again.close()
        await usage.close()

    go(main)
    assert requests(path) == ["a", "b", "d", "e", "c"]


@contextmanager
def no_file_above(size_bytes: int) -> Iterator[None]:
    """A disk with room for so much of one file, as the system enforces it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_without_room_nothing_is_stored_and_trying_again_is_right(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        await store(usage, "here-1-u", events("a"))
        size_bytes = path.stat().st_size
        second = events("b", "c", "d")
        with no_file_above(2 * size_bytes), pytest.raises(BusUnavailable):
            await store(usage, "here-2-u", second)
        assert path.stat().st_size == size_bytes
        await store(usage, "here-2-u", second)
        await usage.close()

    go(main)
    assert requests(path) == ["a", "b", "c", "d"]


def test_a_disk_that_hangs_is_said_in_time(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        holder = os.open(path, os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)
        first = events("a")
        with pytest.raises(BusUnavailable, match="not written within"):
            await store(usage, "here-1-u", first, timeout_s=0.05)
        os.close(holder)
        await store(usage, "here-1-u", first)
        await usage.close()

    go(main)
    assert requests(path) == ["a"]


def test_a_file_that_was_moved_away_is_made_again(tmp_path: Path) -> None:
    path, moved = tmp_path / "usage.jsonl", tmp_path / "usage.1"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        await store(usage, "here-1-u", events("a"))
        path.rename(moved)
        usage.reopen()
        await store(usage, "here-2-u", events("b"))
        await usage.close()

    go(main)
    assert (requests(moved), requests(path)) == (["a"], ["b"])


def test_a_file_that_another_process_holds_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Every reload opens it again, and other workers hold it while their disk syncs."""
    path, moved = tmp_path / "usage.jsonl", tmp_path / "usage.1"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        await store(usage, "here-1-u", events("a"))
        path.rename(moved)
        with path.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            reopening = asyncio.get_running_loop().run_in_executor(None, usage.reopen)
            await asyncio.wait_for(asyncio.shield(reopening), 5)
            storing = asyncio.ensure_future(store(usage, "here-2-u", events("b")))
            await asyncio.sleep(0)
            assert not storing.done()
        await storing
        await usage.close()

    go(main)
    assert (requests(moved), requests(path)) == (["a"], ["b"])


def test_a_file_that_cannot_be_made_again_is_gone_on_with(tmp_path: Path) -> None:
    path, moved = tmp_path / "folder" / "usage.jsonl", tmp_path / "moved"

    async def main() -> None:
        usage = UsageFile(path, SystemClock())
        path.parent.rename(moved)
        path.parent.write_text("in its place")
        usage.reopen()
        await store(usage, "here-1-u", events("a"))
        await usage.close()

    go(main)
    assert requests(moved / "usage.jsonl") == ["a"]


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_usage_cannot_be_kept_in_is_refused_at_the_start(tmp_path: Path, kind: str) -> None:
    """It would wait in the journal for ever, until that takes no more requests."""
    path = Path("/dev/null")
    if kind == "pipe":
        path = tmp_path / "usage"
        os.mkfifo(path)
    with pytest.raises(OSError, match=r'no regular file; "none" is for nowhere'):
        UsageFile(path, SystemClock())


def test_what_is_no_batch_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        usage = UsageFile(tmp_path / "usage.jsonl", SystemClock())
        with pytest.raises(BusUnavailable):
            await usage.store("usage.here", b"?", message_id="m", timeout_s=1.0)
        await usage.close()

    go(main)
